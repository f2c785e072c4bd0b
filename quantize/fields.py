"""What a block says, as numbers: its codes, scales and minima, out of the bytes and back.

The layouts are those of ggml-common.h and of the dequantize_row_* functions in ggml-quants.c. A number of a few bits is
described by the positions of its bits in the block, so that one pair of functions reads and writes all formats; of all
bytes that ggml writes, `pack(unpack(b))` is b.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.quantize.grids import IQ4_VALUES


@dataclass(frozen=True, eq=False)
class Numbers:
    """Integers among the bits of a block.

    bits:   intp [count, width]: where the bits of each are, the lowest first; bit i of byte k is number 8 k + i.
    lowest: what bits of zeros stand for. Signed bytes have -128 and their highest bit inverted.
    signed: whether the highest bit is inverted.
    """

    bits: NDArray[np.intp]
    lowest: int = 0
    signed: bool = False

    @cached_property
    def pieces(self) -> tuple[tuple[NDArray[np.intp], NDArray[np.uint8], int, int], ...]:
        """The same as runs of bits that every number has side by side in one byte: the bytes, how far up in them the
        runs are, how many bits they have, and which bit of the number is their first.
        """
        width = self.bits.shape[1]
        apart = (np.diff(self.bits, axis=1) != 1) | (self.bits[:, 1:] % 8 == 0)
        starts = [0, *(1 + np.flatnonzero(apart.any(0))), width]
        return tuple(
            (self.bits[:, first] // 8, (self.bits[:, first] % 8).astype(np.uint8), int(end - first), int(first))
            for first, end in pairwise(starts)
        )


@dataclass(frozen=True, eq=False)
class CodeLayout:
    """A format whose weights are d * scale * level - dmin * minimum.

    sub:     weights that share a scale and a minimum.
    codes:   of each weight, the number of its level. Where the levels are evenly spaced it is the level itself.
    levels:  float32, the levels that a search may use, in ascending order.
    scales:  of each sub-block; None: they are 1, and d is the scale.
    minima:  of each sub-block; None: they are `minimum`.
    minimum: 0 where a format has no dmin, and -1 where it is added as it stands.
    dmin:    the name of its field; None: there is none.
    unit, half: a scale is (its code + half) * unit.
    d:       the bits of d; None: they are its field.
    """

    format: Format
    sub: int
    codes: Numbers
    levels: NDArray[np.float32]
    scales: Numbers | None = None
    minima: Numbers | None = None
    minimum: int = 0
    dmin: str | None = None
    unit: float = 1
    half: float = 0
    d: Numbers | None = None

    @property
    def even(self) -> bool:
        """Whether the levels are neighbouring integers."""
        return bool(np.all(np.diff(self.levels) == 1))

    def read_levels(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        """The level of each weight, [blocks, weights]; see read_numbers."""
        codes = read_numbers(data, self.codes)
        return codes if self.even else self.levels[codes]

    def write_levels(self, bits: NDArray[np.uint8], levels: NDArray[np.int8]) -> None:
        """The inverse."""
        write_numbers(bits, self.codes, levels if self.even else np.searchsorted(self.levels, levels))


@dataclass(frozen=True, eq=False)
class RowFields:
    """The numbers of n rows, of `width` weights each.

    levels: int8 [n, width], what codes stand for.
    scales, minima: int16 [n, width / sub]. d, dmin: float32 [n, width / block], exactly as float16 has them.
    """

    levels: NDArray[np.int8]
    scales: NDArray[np.int16]
    minima: NDArray[np.int16]
    d: NDArray[np.float32]
    dmin: NDArray[np.float32]


def parts(format: Format, *pieces: tuple[str, int, int]) -> NDArray[np.intp]:
    """The bits of numbers that are put together from fields, the lowest bits from the first.

    A piece (field, width, run) is a field full of numbers of `width` bits, of which `run` neighbouring bytes hold the
    first `run` in their lowest bits, the next `run` in the bits above, and so on.
    """
    return np.hstack([spread(places(format, field), width, run) for field, width, run in pieces])


def places(format: Format, field: str) -> NDArray[np.intp]:
    """The bytes of a field."""
    dtype, at = format.dtype.fields[field][:2]  # type: ignore[index]
    return np.arange(at, at + dtype.itemsize)


def spread(places: NDArray[np.intp], width: int, run: int) -> NDArray[np.intp]:
    """The bits of the numbers that fill these bytes; see `parts`."""
    starts = 8 * places.reshape(-1, 1, run) + np.arange(0, 8, width)[:, None]
    bits: NDArray[np.intp] = starts.reshape(-1, 1) + np.arange(width)
    return bits


def six_bits(format: Format) -> NDArray[np.intp]:
    """The 8 scales and 8 minima of Q4_K and Q5_K: get_scale_min_k4."""
    byte, low, high = places(format, "scales"), np.arange(4), np.arange(2)
    early = 8 * byte[:8, None] + np.arange(6)
    nibbles = 8 * byte[8:]
    scales = np.hstack([nibbles[:, None] + low, 8 * byte[:4, None] + 6 + high])
    minima = np.hstack([nibbles[:, None] + 4 + low, 8 * byte[4:8, None] + 6 + high])
    return np.concatenate([early[:4], scales, early[4:], minima])


def integers(first: int, last: int) -> NDArray[np.float32]:
    """The levels from `first` to `last`."""
    return np.arange(first, last + 1, dtype=np.float32)


def legacy(name: str, bits: int, dmin: str | None, *pieces: tuple[str, int, int]) -> CodeLayout:
    """A format of 32 weights, with codes around zero, or from an offset on."""
    form, lowest = BY_NAME[name], 0 if dmin else -(2 ** (bits - 1))
    codes = Numbers(parts(form, *pieces), lowest)
    levels = integers(lowest, lowest + 2**bits - 1)
    return CodeLayout(form, form.weights, codes, levels, minimum=-1 if dmin else 0, dmin=dmin)


def with_minima(name: str, top: int, sub: int, numbers: NDArray[np.intp], *pieces: tuple[str, int, int]) -> CodeLayout:
    """A K-quant with minima, whose bits are behind those of the scales in `numbers`."""
    form, half = BY_NAME[name], len(numbers) // 2
    scales, minima = Numbers(numbers[:half]), Numbers(numbers[half:])
    return CodeLayout(form, sub, Numbers(parts(form, *pieces)), integers(0, top), scales, minima, dmin="dmin")


def layouts() -> Mapping[str, CodeLayout]:
    """All formats of this kind."""
    q2, q3, q4, q5, q6 = (BY_NAME[f"Q{bits}_K"] for bits in (2, 3, 4, 5, 6))
    q8, nl, xs = BY_NAME["Q8_0"], BY_NAME["IQ4_NL"], BY_NAME["IQ4_XS"]
    scales = places(q3, "scales")
    third = np.hstack([spread(scales[:8], 4, 8), spread(scales[8:], 2, 4)])
    listed = (
        legacy("Q4_0", 4, None, ("qs", 4, 16)),
        legacy("Q4_1", 4, "m", ("qs", 4, 16)),
        legacy("Q5_0", 5, None, ("qs", 4, 16), ("qh", 1, 1)),
        legacy("Q5_1", 5, "m", ("qs", 4, 16), ("qh", 1, 1)),
        CodeLayout(q8, 32, Numbers(parts(q8, ("qs", 8, 1)), -128, signed=True), integers(-127, 127)),
        with_minima("Q2_K", 3, 16, parts(q2, ("scales", 4, 16)), ("qs", 2, 32)),
        with_minima("Q4_K", 15, 32, six_bits(q4), ("qs", 4, 32)),
        with_minima("Q5_K", 31, 32, six_bits(q5), ("qs", 4, 32), ("qh", 1, 32)),
        CodeLayout(
            q3, 16, Numbers(parts(q3, ("qs", 2, 32), ("hmask", 1, 32)), -4), integers(-4, 3), Numbers(third, -32)
        ),
        CodeLayout(
            q6,
            16,
            Numbers(parts(q6, ("ql", 4, 64), ("qh", 2, 32)), -32),
            integers(-32, 31),
            Numbers(parts(q6, ("scales", 8, 1)), -128, signed=True),
        ),
        CodeLayout(nl, 32, Numbers(parts(nl, ("qs", 4, 16))), IQ4_VALUES),
        CodeLayout(
            xs,
            32,
            Numbers(parts(xs, ("qs", 4, 16))),
            IQ4_VALUES,
            Numbers(parts(xs, ("scales_l", 4, 1), ("scales_h", 2, 1)), -32),
        ),
    )
    return {layout.format.name: layout for layout in listed}


LAYOUTS = layouts()


# ---- bytes and numbers ----


def read_numbers(data: NDArray[np.uint8], numbers: Numbers) -> NDArray[np.int16]:
    """int16 [blocks, count] from the bytes of blocks, uint8 [blocks, size]."""
    found = np.zeros((len(data), len(numbers.bits)), np.int16)
    for places, shifts, width, first in numbers.pieces:
        run = data.take(places, axis=1)
        run >>= shifts
        run &= np.uint8((1 << width) - 1)
        found |= run.astype(np.int16) << first
    return (found ^ sign_of(numbers)) + np.int16(numbers.lowest)


def write_numbers(bits: NDArray[np.uint8], numbers: Numbers, values: NDArray[Any]) -> None:
    """The inverse, into the single bits of blocks, uint8 [blocks, 8 * size]; the values fit."""
    raw = (values.astype(np.int16) - np.int16(numbers.lowest)) ^ sign_of(numbers)
    for k in range(numbers.bits.shape[1]):
        bits[:, numbers.bits[:, k]] = raw >> k & 1


def sign_of(numbers: Numbers) -> np.int16:
    """The bit that is inverted, or none."""
    return np.int16(1 << (numbers.bits.shape[1] - 1) if numbers.signed else 0)


def blocks_of(format: Format, data: NDArray[np.uint8]) -> NDArray[Any]:
    """uint8 [n, bytes per row] as records [n * blocks per row]."""
    return np.ascontiguousarray(data).reshape(-1, format.size).view(format.dtype)[:, 0]


def unpack(layout: CodeLayout, data: NDArray[np.uint8]) -> RowFields:
    """The numbers of rows, uint8 [n, bytes per row]."""
    n, form = len(data), layout.format
    records = blocks_of(form, data)
    whole = records.view(np.uint8).reshape(-1, form.size)
    subs = (len(records), form.weights // layout.sub)
    scales = read_numbers(whole, layout.scales) if layout.scales else np.ones(subs, np.int16)
    minima = read_numbers(whole, layout.minima) if layout.minima else np.full(subs, layout.minimum, np.int16)
    d = halves(read_numbers(whole, layout.d).view(np.uint16)[:, 0] if layout.d else records["d"])
    dmin = halves(records[layout.dmin]) if layout.dmin else np.zeros_like(d)
    narrow = layout.read_levels(whole).astype(np.int8)
    return RowFields(*(cast(Any, a.reshape(n, -1)) for a in (narrow, scales, minima, d, dmin)))


def pack(layout: CodeLayout, fields: RowFields) -> NDArray[np.uint8]:
    """The bytes of rows, uint8 [n, bytes per row]: the inverse of `unpack`."""
    form = layout.format
    count = fields.d.size
    bits = np.zeros((count, 8 * form.size), np.uint8)
    layout.write_levels(bits, fields.levels.reshape(count, -1))
    for numbers, values in ((layout.scales, fields.scales), (layout.minima, fields.minima)):
        if numbers:
            write_numbers(bits, numbers, values.reshape(count, -1))
    d = fields.d.reshape(-1).astype(np.float16).view(np.uint16)
    if layout.d:
        write_numbers(bits, layout.d, d[:, None])
    records = blocks_of(form, np.packbits(bits, axis=1, bitorder="little"))
    if not layout.d:
        records["d"] = d
    if layout.dmin:
        records[layout.dmin] = fields.dmin.reshape(-1).astype(np.float16).view(np.uint16)
    return records.view(np.uint8).reshape(len(fields.d), -1)


def values(layout: CodeLayout, fields: RowFields) -> NDArray[np.float32]:
    """The weights, float32 [n, width], by the operations of ggml's decoders."""
    block, sub = layout.format.weights, layout.sub
    each = block // sub
    scale = np.repeat(fields.d, each, axis=1) * scales_of(layout, fields.scales)
    low = np.repeat(fields.dmin, each, axis=1) * fields.minima.astype(np.float32)
    wide = np.repeat(scale, sub, axis=1) * fields.levels.astype(np.float32)
    return wide - np.repeat(low, sub, axis=1) if layout.dmin else wide


def scales_of(layout: CodeLayout, codes: NDArray[np.int16]) -> NDArray[np.float32]:
    """What codes of scales stand for, in units of d."""
    return (codes.astype(np.float32) + np.float32(layout.half)) * np.float32(layout.unit)


def codes_of(layout: CodeLayout, scales: NDArray[np.float32]) -> NDArray[np.int16]:
    """The inverse."""
    return (scales / np.float32(layout.unit) - np.float32(layout.half)).astype(np.int16)


def halves(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 of the bits of float16."""
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


@cache
def layout_of(name: str) -> CodeLayout:
    """The layout of a format. KeyError if its weights are not of this kind."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    # Its layouts are beside the kernels, which are only loaded where they are needed.
    lattices: Mapping[str, CodeLayout] = import_module("ggufsmith.quantize.lattice_fields").LAYOUTS
    return lattices[name]


@cache
def is_refinable(name: str) -> bool:
    """Whether the blocks of a format have a layout here."""
    try:
        layout_of(name)
    except KeyError:
        return False
    return True
