"""How the hidden states of an embedding model become one vector, as a folder of sentence-transformers says it.

modules.json lists the parts of such a model; the one of a class ...Pooling has a config.json in a folder of its own.

Source: llama.cpp's conversion/base.py, _try_set_pooling_type; sentence_transformers' Pooling, for both spellings.
"""

from collections.abc import Mapping
from pathlib import Path

from gguf.constants import Keys, PoolingType

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.untrusted import contained, load_json, read_object
from ggufsmith.container.values import Metadata, u32
from ggufsmith.convert.architecture import Architecture

# Value of "pooling_mode", or suffix of a switch "pooling_mode_..." -> type.
MODES: Mapping[str, PoolingType] = {
    "mean_tokens": PoolingType.MEAN,
    "cls_token": PoolingType.CLS,
    "mean": PoolingType.MEAN,
    "cls": PoolingType.CLS,
    "lasttoken": PoolingType.LAST,
}


def pooling_metadata(folder: Path, record: Architecture) -> Metadata:
    """The pooling key of an architecture that has one; empty for a folder that says nothing.

    Malformed: a list of modules that is none, or leads out of the folder. Unsupported: a pooling llama.cpp has not.
    """
    listed = folder / "modules.json"
    if not record.pooling or not listed.is_file():
        return {}
    modules = load_json(listed, inside=folder)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise Malformed("a list of objects was expected", where=listed)
    path = next((module.get("path") for module in modules if str(module.get("type")).endswith("Pooling")), None)
    if path is None:
        return {}
    file = contained(folder, folder / str(path) / "config.json")
    if not file.is_file():
        raise Malformed(
            f"{listed.name} names this file, but it is missing", where=file, fix="Download the missing file."
        )
    config = read_object(file, inside=folder)
    switched = (mode for mode in MODES if config.get(f"pooling_mode_{mode}"))
    kind = MODES.get(next(switched, str(config.get("pooling_mode"))))
    if kind is None:
        raise Unsupported(
            "llama.cpp pools by the mean, the first or the last token, but this model does not",
            where=file,
            fix="Move modules.json away to convert the language model alone.",
        )
    return {Keys.LLM.POOLING_TYPE.format(arch=record.name): u32(kind.value)}
