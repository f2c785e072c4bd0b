"""The keys and tensors of a GGUF file, as functions that make a config.json of them want to read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.typed import TypedKeys
from ggufsmith.container.values import boolean
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.hf.rope import Vector

MAX_BLOCKS = 4096


@dataclass(frozen=True)
class Given:
    """What a file of this architecture says. Names of keys have "{arch}" in them, as those of gguf.constants do.

    vector: a small vector in float32, by the name of its tensor; None if there is none.
    """

    record: Architecture
    keys: TypedKeys
    tensors: Mapping[str, TensorInfo]
    vector: Vector = lambda name: None

    def number(self, name: str) -> Any:
        """One number, None if there is none. Malformed or Unsupported for another value."""
        return self.keys.number(name.format(arch=self.record.name))

    def whole(self, name: str) -> int:
        """A number, 0 if there is none."""
        return int(self.number(name) or 0)

    def flag(self, name: str) -> bool | None:
        """True or false, None if there is no such key."""
        found = self.keys.optional(name.format(arch=self.record.name), bool)
        return None if found is None else bool(found)

    def each(self, name: str, count: int) -> list[Any] | None:
        """A number or a truth for each of so many; None if there is no such key. One stands for all."""
        key = name.format(arch=self.record.name)
        value = self.keys.metadata.get(key)
        if value is not None and isinstance(value.data, bool | int | float):
            return [value.data] * count
        found = self.keys.numbers(key, np.float32, count)
        return None if found is None else [int(number) for number in found]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor. Malformed if it is missing."""
        if name not in self.tensors:
            raise Malformed("the tensor is missing", where=f"{self.keys.where}: {name}")
        return self.tensors[name].shape

    @property
    def blocks(self) -> int:
        """How many blocks the model has, without those that were appended for multi-token prediction."""
        stated = self.whole(Keys.LLM.BLOCK_COUNT) - self.whole(Keys.LLM.NEXTN_PREDICT_LAYERS)
        if not 0 < stated <= MAX_BLOCKS:
            raise Malformed(f"there must be 1 to {MAX_BLOCKS} blocks, not {stated}", where=self.keys.where)
        return stated

    def value(self, name: str, make: Any) -> Any:
        """A flag or a number, by the constructor of the key."""
        return self.flag(name) if make is boolean else self.number(name)
