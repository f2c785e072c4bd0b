"""The vocabulary of a folder, for a model that is a file already."""

from pathlib import Path

from gguf.constants import Keys

from ggufsmith.container.errors import Usage
from ggufsmith.container.values import Metadata
from ggufsmith.quantize.source import open_model
from ggufsmith.tokenizer.files import optional_object
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.stripping import fit_name


def vocabulary_of(file: Path, folder: Path) -> tuple[Metadata, tuple[str, ...]]:
    """The `tokenizer.*` keys of a folder for the model in `file`, and sentences for the report.

    Malformed and Unsupported as `read_vocabulary`.
    """
    if not folder.is_dir():
        raise Usage("there is no such folder", where=folder, fix="Pass the folder with the tokenizer's files.")
    with open_model(file).files as model:
        embedding = model.tensors.get("token_embd.weight")
        named = {key: value for key, value in model.metadata.items() if key == Keys.General.NAME}
    config = optional_object(folder, "config.json") or {}
    size = embedding.shape[0] if embedding is not None else None
    vocabulary = read_vocabulary(folder, config=config, size=size, architecture="LlamaForCausalLM")
    _, said = fit_name(named, vocabulary, stated=True)
    return vocabulary.metadata(), (*vocabulary.notes, *said)
