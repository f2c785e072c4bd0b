"""Multi-token prediction: the blocks that are appended to a model to guess further tokens ahead.

Published as `mtp.layers.N` beside the model's own layers; llama.cpp wants them as further blocks behind these, with the
tensors around them under `nextn`. How many there are, the tensors say: configs announce blocks that fine-tunes have
lost, and say nothing of blocks that are there. Source: llama.cpp, conversion/qwen.py (_QwenMtpMixin).
"""

import re
from collections.abc import Iterable

from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.config import Config
from ggufsmith.convert.names import plain_name

CHOICES = ("keep", "drop", "only")
LAYER = re.compile(r"(?:model\.)?mtp\.layers\.([0-9]{1,4})\.(.+)")
AROUND = re.compile(r"(?:model\.)?mtp\.(\w+)((?:\.\w+)*)")
OWN = re.compile(r"(?:model\.)?layers\.([0-9]{1,4})\.")
DROPPED = "the multi-token prediction head, as --mtp drop asks"


def layer_of(name: str) -> int:
    """The number of the layer that a tensor belongs to, -1 if to none."""
    match = OWN.match(plain_name(name))
    return int(match[1]) if match else -1


def count(record: Architecture, names: Iterable[str], blocks: int) -> int:
    """The number of blocks that the checkpoint holds behind those of the model."""
    if record.appended:
        return max(max(map(layer_of, names), default=-1) + 1 - blocks, 0)
    found = (LAYER.fullmatch(plain_name(name)) for name in names) if record.mtp is not None else ()
    return max((int(match[1]) + 1 for match in found if match), default=0)


def appended_name(record: Architecture, name: str, blocks: int) -> str:
    """The name of a tensor among the model's layers, for a model of so many layers without the appended ones."""
    if record.mtp is None:
        return name
    plain = plain_name(name)
    if match := LAYER.fullmatch(plain):
        return f"model.layers.{blocks + int(match[1])}.{match[2]}"
    if (match := AROUND.fullmatch(plain)) and match[1] in record.mtp:
        return f"model.layers.{blocks}.{record.mtp[match[1]]}{match[2]}"
    return name


def note(record: Architecture, config: Config, found: int) -> str | None:
    """A sentence if the config announces other blocks than the checkpoint holds."""
    names = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
    announced = config.integer(*names, default=0) if record.predicts else 0
    if announced == found:
        return None
    return (
        f"config.json announces {announced} blocks for multi-token prediction, and the checkpoint holds {found}: "
        "the checkpoint counts"
    )
