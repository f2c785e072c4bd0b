"""What the blocks of IQ1, IQ2 and IQ3 types say, as numbers: see fields.py. The level of a weight is its sign times the
value that its point of the lattice has there; of IQ1, in eighths, the value with an eighth more or less.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import grids
from ggufsmith.quantize.fields import CodeLayout, Numbers, places, read_numbers, spread, write_numbers
from ggufsmith.quantize.kernels import iq2, iq3
from ggufsmith.quantize.kernels.iq_types import LatticeType

D_BITS = 16  # of the scale, in front of all else
SHIFTED = (-7, 1, 9)  # levels of IQ1 with plus signs


@dataclass(frozen=True, eq=False, kw_only=True)
class LatticeLayout(CodeLayout):
    """A format whose codes are of points: groups of weights, each a point of a lattice. Levels are those of plus signs.

    points: int8 [points, dims]. place: int16, the number of the point whose codes are the digits of an index, or -1.
    signs:  what makes levels of points.
    """

    points: NDArray[np.int8]
    place: NDArray[np.int16]
    signs: Numbers

    @property
    def dims(self) -> int:
        """Weights per point."""
        return int(self.points.shape[1])

    @property
    def base(self) -> int:
        """Values that a weight of a point can have."""
        return len(self.levels)

    def write_points(self, bits: NDArray[np.uint8], codes: NDArray[Any]) -> None:
        """Points by their codes, [blocks, weights]. Points that are not on the lattice come from nowhere."""
        digits = codes.reshape(len(codes), -1, self.dims)
        write_numbers(bits, self.codes, self.place[digits @ self.base ** np.arange(self.dims)])


@dataclass(frozen=True, eq=False, kw_only=True)
class SignedLayout(LatticeLayout):
    """IQ2 and IQ3, where every weight has a sign.

    digit: uint8, the code of each value of a point.
    pairs: signs are of eight weights each; whether only an even number of them is minus, of which seven are stored.
    """

    digit: NDArray[np.uint8]
    pairs: bool

    def read_levels(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        """See CodeLayout."""
        size = self.points[read_numbers(data, self.codes)].reshape(len(data), -1)
        stored = read_numbers(data, self.signs)
        eight = grids.EVEN_SIGNS[stored] if self.pairs else stored.astype(np.uint8)
        minus = np.unpackbits(eight, axis=1, bitorder="little").view(bool)
        return np.where(minus, -size, size)

    def write_levels(self, bits: NDArray[np.uint8], levels: NDArray[np.int8]) -> None:
        """See CodeLayout."""
        self.write_points(bits, self.digit[np.abs(levels)])
        eight = np.packbits(levels < 0, axis=1, bitorder="little")
        write_numbers(bits, self.signs, eight & 127 if self.pairs else eight)


@dataclass(frozen=True, eq=False, kw_only=True)
class ShiftedLayout(LatticeLayout):
    """IQ1: levels are eight times the values of points, and one more or, by a minus sign, one less."""

    @property
    def shared(self) -> int:
        """Groups that share a sign."""
        return len(self.codes.bits) // len(self.signs.bits)

    def read_levels(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        """See CodeLayout."""
        points = self.points[read_numbers(data, self.codes)].reshape(len(data), -1)
        minus = np.repeat(read_numbers(data, self.signs), self.shared * self.dims, axis=1)
        return 8 * points + 1 - 2 * minus.astype(np.int8)

    def write_levels(self, bits: NDArray[np.uint8], levels: NDArray[np.int8]) -> None:
        """See CodeLayout."""
        points = (levels.astype(np.int16) + 9) >> 3  # 0, 1 or 2
        self.write_points(bits, points)
        first = slice(0, None, self.shared * self.dims)
        write_numbers(bits, self.signs, levels[:, first] < 8 * (points[:, first] - 1))


def places_of(codes: NDArray[Any], base: int) -> NDArray[np.int16]:
    """`LatticeLayout.place` of points with these codes, [points, dims]."""
    dims = codes.shape[1]
    place = np.full(base**dims, -1, np.int16)
    place[codes.astype(np.int64) @ base ** np.arange(dims)] = np.arange(len(codes))
    return place


def signed_layout(kind: LatticeType) -> SignedLayout:
    """From what the kernels of the type know."""
    at, form = kind.layout, BY_NAME[kind.name]
    levels = np.array(grids.levels(kind.name), np.float32)
    digit = np.zeros(128, np.uint8)
    digit[levels.astype(int)] = np.arange(len(levels))
    codes = np.hstack([at.low[:, None] + np.arange(at.width), at.high[:, None] + np.arange(at.above)])
    signs = at.sign[:, None] + np.arange(7 if kind.spec.even else 8)
    return SignedLayout(
        form,
        kind.spec.size,
        Numbers(D_BITS + codes.astype(np.intp)),
        levels,
        Numbers(D_BITS + (at.scale[:, None] + np.arange(4)).astype(np.intp)),
        unit=float(at.factor),
        half=0.5,
        points=grids.values(kind.name),
        place=places_of(grids.codes(kind.name), len(levels)),
        digit=digit,
        signs=Numbers(D_BITS + signs.astype(np.intp)),
        pairs=kind.spec.even,
    )


def shifted_layout(name: str, high: NDArray[np.intp], scales: NDArray[np.intp], **others: Any) -> ShiftedLayout:
    """IQ1_S or IQ1_M. high: the bits of the numbers of points that are not in `qs`. scales: the bits of scales."""
    form = BY_NAME[name]
    return ShiftedLayout(
        form,
        form.weights // len(scales),
        Numbers(np.hstack([spread(places(form, "qs"), 8, 1), high])),
        np.array(SHIFTED, np.float32),
        Numbers(scales),
        unit=0.25,
        half=0.5,
        points=grids.values("IQ1_S"),
        place=places_of(grids.codes("IQ1_S"), len(SHIFTED)),
        **others,
    )


def iq1_s() -> ShiftedLayout:
    """Words of 16 bits in qh: three bits of each of four points, a scale of three bits, and the sign of all four."""
    word = 8 * places(BY_NAME["IQ1_S"], "qh")[::2, None]
    high = (word + np.arange(0, 12, 3))[..., None] + np.arange(3)
    return shifted_layout("IQ1_S", high.reshape(-1, 3), word + 12 + np.arange(3), signs=Numbers(word + 15))


def iq1_m() -> ShiftedLayout:
    """Four bits in qh for each point, the last of them its sign; words of four scales of three bits and a part of d."""
    form = BY_NAME["IQ1_M"]
    four, word = spread(places(form, "qh"), 4, 1), 8 * places(form, "scales")[::2, None]
    scales = (word + np.arange(0, 12, 3))[..., None] + np.arange(3)
    d = (word + 12 + np.arange(4)).reshape(1, -1)
    return shifted_layout("IQ1_M", four[:, :3], scales.reshape(-1, 3), signs=Numbers(four[:, 3:]), d=Numbers(d))


LATTICES = (*iq2.TYPES.values(), *iq3.TYPES.values())
LAYOUTS = {layout.format.name: layout for layout in (*map(signed_layout, LATTICES), iq1_s(), iq1_m())}
