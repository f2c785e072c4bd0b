"""The vocabulary of a folder, for a model that is a file already."""

from pathlib import Path

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import Metadata
from ggufsmith.convert.config import read_optional_json
from ggufsmith.quantize.source import open_model
from ggufsmith.tokenizer.read import read_vocabulary


def vocabulary_of(file: Path, folder: Path) -> tuple[Metadata, tuple[str, ...]]:
    """The `tokenizer.*` keys of a folder for the model in `file`, and sentences for the report.

    Malformed and Unsupported as `read_vocabulary`.
    """
    if not folder.is_dir():
        raise Malformed("there is no such folder", where=folder, fix="Pass the folder with the tokenizer's files.")
    with open_model(file).files as model:
        embedding = model.tensors.get("token_embd.weight")
    config = read_optional_json(folder / "config.json")
    size = embedding.shape[0] if embedding is not None else None
    vocabulary = read_vocabulary(folder, config=config, size=size, architecture="LlamaForCausalLM")
    return vocabulary.metadata(), vocabulary.notes
