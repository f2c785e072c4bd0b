"""What the blocks of IQ2 and IQ3 types say, as numbers: see fields.py. The level of a weight is its sign times the
value that its point of the lattice has there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import grids
from ggufsmith.quantize.fields import CodeLayout, Numbers, read_numbers, write_numbers
from ggufsmith.quantize.kernels import iq2, iq3
from ggufsmith.quantize.kernels.iq_types import LatticeType

D_BITS = 16  # of the scale, in front of all else


@dataclass(frozen=True, eq=False, kw_only=True)
class LatticeLayout(CodeLayout):
    """A format whose codes are of points: groups of weights, each a point of a lattice with signs.

    points: int8 [points, dims]. place: int16, the number of the point whose codes are the digits of an index, or -1.
    digit:  uint8, the code of each value of a point. signs: of eight weights each; `pairs`, bool: only an even number
            of minus signs, of which seven are stored.
    """

    points: NDArray[np.int8]
    place: NDArray[np.int16]
    digit: NDArray[np.uint8]
    signs: Numbers
    pairs: bool

    @property
    def dims(self) -> int:
        """Weights per point."""
        return int(self.points.shape[1])

    @property
    def base(self) -> int:
        """Values that a weight of a point can have."""
        return len(self.levels)

    def read_levels(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        """See CodeLayout."""
        size = self.points[read_numbers(data, self.codes)].reshape(len(data), -1)
        stored = read_numbers(data, self.signs)
        eight = grids.EVEN_SIGNS[stored] if self.pairs else stored.astype(np.uint8)
        minus = np.unpackbits(eight, axis=1, bitorder="little").view(bool)
        return np.where(minus, -size, size)

    def write_levels(self, bits: NDArray[np.uint8], levels: NDArray[np.int8]) -> None:
        """See CodeLayout. Levels of points that are not on the lattice come from nowhere."""
        digits = self.digit[np.abs(levels)].reshape(len(levels), -1, self.dims)
        write_numbers(bits, self.codes, self.place[digits @ self.base ** np.arange(self.dims)])
        eight = np.packbits(levels < 0, axis=1, bitorder="little")
        write_numbers(bits, self.signs, eight & 127 if self.pairs else eight)


def lattice_layout(kind: LatticeType) -> LatticeLayout:
    """From what the kernels of the type know."""
    at, form = kind.layout, BY_NAME[kind.name]
    points, levels = grids.values(kind.name), np.array(grids.levels(kind.name), np.float32)
    digit = np.zeros(128, np.uint8)
    digit[levels.astype(int)] = np.arange(len(levels))
    place = np.full(len(levels) ** points.shape[1], -1, np.int16)
    place[grids.codes(kind.name) @ len(levels) ** np.arange(points.shape[1])] = np.arange(len(points))
    codes = np.hstack([at.low[:, None] + np.arange(at.width), at.high[:, None] + np.arange(at.above)])
    signs = at.sign[:, None] + np.arange(7 if kind.spec.even else 8)
    return LatticeLayout(
        form,
        kind.spec.size,
        Numbers(D_BITS + codes.astype(np.intp)),
        levels,
        Numbers(D_BITS + (at.scale[:, None] + np.arange(4)).astype(np.intp)),
        unit=float(at.factor),
        half=0.5,
        points=points,
        place=place,
        digit=digit,
        signs=Numbers(D_BITS + signs.astype(np.intp)),
        pairs=kind.spec.even,
    )


LAYOUTS = {kind.name: lattice_layout(kind) for kind in (*iq2.TYPES.values(), *iq3.TYPES.values())}
