"""Opens whatever holds one model in ggml's types: GGUF files, their shards, and the Llama files from before GGUF."""

from dataclasses import replace
from pathlib import Path

from ggufsmith.container.errors import Usage
from ggufsmith.container.ggml import is_ggml
from ggufsmith.container.shards import SUFFIX, open_gguf_set
from ggufsmith.container.values import Metadata
from ggufsmith.naming.filename import parse
from ggufsmith.quantize.old_llama import open_old_llama
from ggufsmith.quantize.opened import OpenedModel
from ggufsmith.quantize.stacked import stack_experts


def open_model(path: Path, vocabulary: Metadata | None = None) -> OpenedModel:
    """Open a model by its first bytes. vocabulary: `tokenizer.*` keys to put in the place of the file's.

    Raises what `open_gguf_set`, `stack_experts` and `open_ggml` raise; Malformed for an old file that is not a whole
    Llama model.
    """
    model = _open(path)
    if vocabulary is None:
        return model
    files = model.files
    kept = {key: value for key, value in files.metadata.items() if not key.startswith("tokenizer.")}
    return replace(model, files=replace(files, metadata={**kept, **vocabulary}), vocabulary_notes=())


def _open(path: Path) -> OpenedModel:
    if path.is_dir():
        raise Usage("this is a folder", where=path, fix="Pass a GGUF file; gguf-convert takes model folders.")
    if is_ggml(path):
        return open_old_llama(path)
    # Stores that name files by their hash leave out the ending.
    name = replace(parse(path.name if path.name.endswith(SUFFIX) else path.name + SUFFIX), shard=None)
    files = open_gguf_set(path)
    try:
        stacked, notes = stack_experts(files)
    except BaseException:
        files.close()
        raise
    return OpenedModel(stacked, name, notes=notes)
