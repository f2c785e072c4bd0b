"""How the hidden states of an embedding model become one vector, as a folder of sentence-transformers says it.

modules.json lists the parts of such a model; the one of a class ...Pooling has a config.json in a folder of its own.

Source: llama.cpp's conversion/base.py, _try_set_pooling_type; sentence_transformers' Pooling, for both spellings.
"""

from collections.abc import Mapping
from pathlib import Path

from gguf.constants import Keys, PoolingType

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.values import Metadata, u32
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.modules import ALONE, POOLING, is_a, module_config, read_modules

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
    pools = [module for module in read_modules(folder) if is_a(module, POOLING)] if record.pooling else []
    if not pools or pools[0].get("path") is None:
        return {}
    home, config = module_config(folder, pools[0])
    file = home / "config.json"
    switched = (mode for mode in MODES if config.get(f"pooling_mode_{mode}"))
    kind = MODES.get(next(switched, str(config.get("pooling_mode"))))
    if kind is None:
        raise Unsupported(
            "llama.cpp pools by the mean, the first or the last token, but this model does not",
            where=file,
            fix=ALONE,
        )
    return {Keys.LLM.POOLING_TYPE.format(arch=record.name): u32(kind.value)}
