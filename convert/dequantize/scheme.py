"""What a quantization scheme is: how one weight is stored as several tensors, and how its rows are made again.

A scheme is a frozen record in a module of its own, and `detect.SCHEMES` lists them. The tensors of one weight (the
main one and its companions) become one `DequantizedTensor` with the name and the shape of the dense weight, so that
plan, ops and streaming see a plain float32 tensor. Headers decide; a scheme that reads a few bytes to know a shape says
so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.formats import Format
from ggufsmith.convert.config import Config
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

Shape = tuple[int, ...]
Parts = Mapping[str, StoredTensor]
ORIGINAL = "Convert the 16-bit checkpoint that it was made from."


class Weights(Protocol):
    """How to make the rows of one weight.

    shape:   of the dense weight. granule: chunks should begin at a multiple of this many rows.
    nominal: the plain dtype that the values had or would have ("F16", "BF16", "F32").
    """

    @property
    def shape(self) -> Shape:
        """Of the dense weight, slowest axis first."""

    @property
    def granule(self) -> int:
        """Rows are best read from a multiple of this many on."""

    @property
    def nominal(self) -> str:
        """The plain dtype that the values had or would have."""

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """Fill `out`, (last - first, width), with rows first..last. Thread-safe; reads no more than it needs."""


@dataclass(frozen=True)
class Exact:
    """A block type of ggml that holds a weight without loss.

    blocks: fills (last - first, bytes per row) with rows first..last. False: these rows do not fit after all.
    """

    format: Format
    blocks: Callable[[Store, int, int, NDArray[np.uint8]], bool]


@dataclass(frozen=True)
class DequantizedTensor(StoredTensor):
    """A source that is made of others. `parts` are the stored tensors it consumes."""

    weights: Weights
    parts: tuple[StoredTensor, ...]
    exact: Exact | None = None

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return self.parts

    @property
    def granule(self) -> int:
        return self.weights.granule

    @property
    def nominal(self) -> str:
        return self.weights.nominal


def read_f32(store: Store, source: StoredTensor, first: int, last: int, out: NDArray[np.float32]) -> None:
    """Fill `out`, (last - first, width), with rows first..last (exclusive) of any source of floats."""
    if isinstance(source, DequantizedTensor):
        source.weights.rows(store, first, last, out)
    else:
        out[:] = to_f32(store.rows(source, first, last), source.dtype)


class SchemeSettings(Config):
    """What the config says of quantization."""

    @cached_property
    def of_weights(self) -> tuple[Mapping[str, Any], ...]:
        """What each of `config_groups` says of weights; none for other methods."""
        groups = self.mapping("config_groups").values()
        found = (group.get("weights") for group in groups if isinstance(group, Mapping))
        return tuple(weights for weights in found if isinstance(weights, Mapping))

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """The sizes of blocks that it mentions."""
        shapes = [self.first("weight_block_size")]
        for weights in self.of_weights:
            shapes += [weights.get("block_structure"), [1, weights.get("group_size")]]
        return tuple(
            (shape[0], shape[1])
            for shape in shapes
            if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape)
        )


@dataclass(frozen=True)
class SchemeInputs:
    """What a scheme gets to build a weight: its name, its stored parts by role, the settings, and the bytes."""

    name: str
    parts: Parts
    settings: SchemeSettings
    store: Store

    @property
    def main(self) -> StoredTensor:
        """The tensor that marks the weight."""
        return next(iter(self.parts.values()))

    def part(self, role: str) -> StoredTensor:
        """A companion that has to be there. Malformed names what is missing."""
        found = self.parts.get(role)
        if found is None:
            raise self.wrong(f"its {role} is missing", "Download the complete checkpoint again.")
        return found

    def matrix(self, role: str) -> StoredTensor:
        """A companion, or the main tensor, that has to be a matrix with something in it."""
        found = self.part(role)
        if len(found.shape) != 2 or 0 in found.shape:
            raise self.wrong(f"{role} has the shape {list(found.shape)}, but a matrix is expected")
        return found

    def wrong(self, what: str, fix: str | None = None) -> Malformed:
        """The error of a weight whose parts do not fit together."""
        return Malformed(f"{self.main.name}: {what}", where=self.main.path, fix=fix)

    def unsupported(self, what: str, supported: str) -> Unsupported:
        """The error of a variant that is not read, with what is."""
        return Unsupported(f"{self.main.name}: {what}; supported: {supported}", where=self.main.path, fix=ORIGINAL)

    def expect(self, role: str, dtypes: str, shape: Shape) -> StoredTensor:
        """A companion of one of these dtypes and exactly this shape."""
        found = self.part(role)
        if found.dtype not in dtypes.split() or found.shape != shape:
            wanted = f"{' or '.join(dtypes.split())} {list(shape)}"
            raise self.wrong(f"{role} is {found.dtype} {list(found.shape)}, but {wanted} is expected")
        return found


@dataclass(frozen=True)
class Scheme:
    """One way to store a quantized weight.

    name, note:  for messages and the table of inputs: what is supported.
    methods:     the values of quant_method under which it is found.
    main:        the ends of the name of the tensor that marks such a weight.
    dtypes:      what that tensor may hold.
    companions:  role -> the ends of names that may fill it; "{main}" is the end of the main tensor.
    required:    the roles without which a weight cannot be made. They also tell schemes of one main tensor apart.
    unused:      ends of names of companions that do not touch the weights.
    dense:       the end of the name of the dense weight; "{main}" keeps the main tensor's name.
    fits:        whether the shapes are those of this scheme, for schemes whose tensors have the same names.
    build:       the weights, once everything is checked. Malformed or Unsupported says what is wrong.
    exact:       how a type of ggml holds such weights without loss, if one does.
    """

    name: str
    note: str
    methods: tuple[str, ...]
    main: tuple[str, ...]
    dtypes: tuple[str, ...]
    companions: Mapping[str, tuple[str, ...]]
    required: tuple[str, ...]
    build: Callable[[SchemeInputs], Weights]
    dense: str = "{main}"
    unused: tuple[str, ...] = ()
    fits: Callable[[Parts], bool] = field(default=lambda parts: True)
    exact: Callable[[Any], Exact | None] = field(default=lambda weights: None)

    def parts(self, source: StoredTensor, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor] | None:
        """The tensors of the weight that `source` marks, by role ("main" first); None if it marks none."""
        if source.dtype not in self.dtypes or not source.name.endswith(self.main):
            return None
        main = next(end for end in self.main if source.name.endswith(end))
        stem = source.name.removesuffix(main)
        found = {"main": source}
        for role, ends in self.companions.items():
            for end in _written(ends, main):
                companion = tensors.get(stem + end)
                if companion is not None and companion is not source:
                    found[role] = companion
                    break
        return found

    def dense_name(self, source: StoredTensor) -> str:
        """What the weight would be called if it were not quantized."""
        main = next(end for end in self.main if source.name.endswith(end))
        return source.name.removesuffix(main) + self.dense.format(main=main)

    def unused_by(self, source: StoredTensor, tensors: Mapping[str, StoredTensor]) -> list[str]:
        """Companions that are there and do not touch the weights."""
        main = next(end for end in self.main if source.name.endswith(end))
        stem = source.name.removesuffix(main)
        return [stem + end for end in _written(self.unused, main) if stem + end in tensors]


@cache
def _written(ends: tuple[str, ...], main: str) -> tuple[str, ...]:
    """Ends of names, with that of the main tensor in them."""
    return tuple(end.format(main=main) for end in ends)


def floats(source: StoredTensor) -> str:
    """The plain dtype nearest to stored floats."""
    return source.dtype if source.dtype in ("F16", "BF16") else "BF16"
