"""What IQ2 and IQ3 types are, as data: how ggml searches each, where its bits lie, and the tables of its lattice.

Decoding, which needs nothing else, is here too; the search is in iq_lattice.py.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import grids
from ggufsmith.quantize.cache import Kernel, Type, read, typeof
from ggufsmith.quantize.kernels import UNSTEERED, Call, Codec
from ggufsmith.quantize.kernels.blocks import QK_K, byte_at, load_halves, offsets, room
from ggufsmith.quantize.kernels.common import DECODE, SEARCH
from ggufsmith.quantize.kernels.iq_nearest import table_entries
from ggufsmith.quantize.simd import W, f32, jitable

D_SIZE = 2  # bytes of the scale
OFF_GRID, ALL_IF_ANY, ALWAYS = 0, 1, 2


class Lattice(NamedTuple):
    """How ggml searches one type.

    size:    weights per sub-block, which share a scale.
    tries:   number of scales tried, the middle one for the largest code at the largest weight.
    step:    their distance, in units of half a code.
    spread:  factor of the mean square in the weights sqrt(spread * mean + x * x) with importance.
    floor:   without importance, weights are floor * spread * mean + x * x.
    least:   a sub-block whose largest weight is below it is zero.
    even:    whether the number of minus signs in eight is even (seven are stored).
    fit:     whether a first fit to codes 0 .. 4 gives the scale around which the others are tried.
    again:   which groups are searched once more with the best scale: those off the grid, all if any is, or always all.
    nudge:   factor of the stored scale.
    clear:   whether a block whose scales are all zero is written as zeros.
    """

    size: int
    tries: int
    step: np.float32
    spread: np.float32
    floor: np.float32
    least: np.float32
    even: bool
    fit: bool
    again: int
    nudge: np.float32
    clear: bool


class BitLayout(NamedTuple):
    """Where the bits of a super-block lie, counted from behind its scale d, which comes first.

    low, high: int32, of the number of each group's point: its low `width` bits, and the `above` bits above. sign: of
    each eight weights. scale: of each sub-block, four bits. words: the length, in units of four bytes.
    factor: a sub-block's weights are d * (0.5 + scale) * factor * the point's values, with signs.
    """

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    sign: NDArray[np.int32]
    scale: NDArray[np.int32]
    width: int
    above: int
    words: int
    factor: np.float32


def behind_scale(name: str) -> dict[str, int]:
    """Field -> the byte at which it begins, counted from behind the scale; and "words", the length in units of four."""
    names, places = BY_NAME[name].dtype.names or (), offsets(name)
    first = places[1]
    return {**{field: at - first for field, at in zip(names, places, strict=False)}, "words": (places[-1] - first) // 4}


def positions(n: int, at: int, each: int, run: int = 1, skip: int = 0) -> NDArray[np.int32]:
    """n bit positions from byte `at`, `each` bits apart; after every `run` of them, `skip` more bits."""
    i = np.arange(n)
    return (8 * at + each * i + skip * (i // run)).astype(np.int32)


class Grid(NamedTuple):
    """The search table as the kernels take it; see grids.Candidates and iq_nearest.table_entries."""

    starts: NDArray[np.int32]
    stops: NDArray[np.int32]
    counts: NDArray[np.int32]
    packed: NDArray[np.int32]
    odd: NDArray[np.int32]
    terms: NDArray[np.uint8]
    points: NDArray[np.int32]
    size: int
    position: NDArray[np.int32]
    level: NDArray[np.float32]


def sign_table(even: bool) -> NDArray[np.float32]:
    """Stored sign bits -> eight times 1 or -1; float32 [128 or 256, 8]."""
    stored = grids.EVEN_SIGNS if even else np.arange(256, dtype=np.uint8)
    return np.where(stored[:, None] >> np.arange(8) & 1, np.float32(-1), np.float32(1))


@jitable
def field(blocks: Any, at: int, bit: int, width: int) -> int:
    """`width` bits at a bit of the words that begin at byte `at`."""
    at += bit >> 5 << 2
    low = byte_at(blocks, at) | byte_at(blocks, at + 1) << 8
    high = byte_at(blocks, at + 2) | byte_at(blocks, at + 3) << 8
    return (low | high << 16) >> (bit & 31) & ((1 << width) - 1)


def decoder(dims: int) -> Callable[..., None]:
    """Super-blocks to weights: decode(blocks, out, spec, layout, values float32 [points, dims], sign_table)."""

    @jitable
    def decode(blocks: Any, out: Any, spec: Lattice, layout: BitLayout, values: Any, signs: Any) -> None:
        low_at, high_at, sign_at, scale_at = layout.low, layout.high, layout.sign, layout.scale
        bits, scales = room(1, np.uint16), room(1, f32)
        size, sign_width = D_SIZE + 4 * layout.words, 7 if spec.even else 8
        for first in range(0, out.size // QK_K, W):
            load_halves(blocks, first * size, size, bits, scales)
            for lane in range(W):
                at, to, group, eight = (first + lane) * size + D_SIZE, (first + lane) * QK_K, 0, 0
                for sub in range(scale_at.size):
                    scale = scales[lane] * (f32(0.5) + f32(field(blocks, at, scale_at[sub], 4))) * layout.factor
                    for _ in range(spec.size // 8):
                        sign = signs[field(blocks, at, sign_at[eight], sign_width)]
                        eight += 1
                        for part in range(0, 8, dims):
                            high = field(blocks, at, high_at[group], layout.above) << layout.width
                            value = values[field(blocks, at, low_at[group], layout.width) | high]
                            group += 1
                            for i in range(dims):
                                out[to + i] = scale * value[i] * sign[part + i]
                            to += dims

    return decode


NONE = np.empty(0, np.int32)
EMPTY_GRID = Grid(NONE, NONE, NONE, NONE, NONE, np.empty(0, np.uint8), NONE, 0, NONE, np.empty(0, np.float32))
TABLE = read(np.float32, 2)


def grid_of(name: str) -> Grid:
    """The search table of a grid, as kernels take it."""
    found, values = grids.candidates(name), grids.values(name)
    tables = table_entries(values.shape[1], len(grids.levels(name)))
    lists = found.starts, found.stops, found.counts, found.packed, found.odd, found.terms, found.points
    return Grid(*lists, len(values), *tables)


def signatures(spec: Lattice, layout: BitLayout) -> tuple[tuple[Type, ...], tuple[Type, ...]]:
    """The types of the arguments of the encoder and of `decode`."""
    data = (typeof(spec), typeof(layout))
    return (*SEARCH, *data, typeof(EMPTY_GRID)), (*DECODE, *data, TABLE, TABLE)


class LatticeType:
    """One type: its data, its tables, which are made when they are first used, and the two kernels of its family."""

    def __init__(self, name: str, spec: Lattice, layout: BitLayout, encoder: Kernel, decoder: Kernel) -> None:
        self.name, self.spec, self.layout = name, spec, layout
        self.encoder, self.decoder = encoder, decoder

    @cached_property
    def grid(self) -> Grid:
        """The search table."""
        return grid_of(self.name)

    @cached_property
    def tables(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The points' values, and the signs, as `decoder` takes them."""
        return grids.values(self.name).astype(np.float32), sign_table(self.spec.even)

    def codec(self, needs_importance: bool = False) -> Codec:
        """The kernels with what sets this type apart."""
        search = Call(self.encoder, lambda: (self.spec, self.layout, self.grid))
        alone = Call(self.encoder, lambda: (*UNSTEERED, self.spec, self.layout, self.grid))
        decode = Call(self.decoder, lambda: (self.spec, self.layout, *self.tables))
        return Codec(None if needs_importance else alone, search, decode, alive=self.spec.size)
