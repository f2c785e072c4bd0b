"""Ops that only projectors need; see `convert/ops.py` for what an op is."""

import math
from dataclasses import dataclass

import numpy as np

from ggufsmith.convert.ops import Array, Op, Read, Shape


@dataclass(frozen=True)
class Bound(Op):
    """A bound of activations, a single number, as a vector of one; an infinite one is the largest finite number.

    ggml has no tensors without axes, and llama.cpp takes FLT_MAX where there is no bound. Of 16 bits the number below
    an infinity is taken for either type: what is an infinity of float16 is above 10**36 as a bfloat16.
    """

    def shape(self, *sources: Shape) -> Shape:
        if math.prod(sources[0]) != 1:
            raise ValueError(f"{list(sources[0])} is more than one number")
        return (1,)

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        found = read(0, start, stop)
        if found.dtype == np.float32:
            limit = np.finfo(np.float32).max
            return np.where(np.isinf(found), np.copysign(limit, found), found)
        infinite = np.isin(found & np.uint16(0x7FFF), (0x7C00, 0x7F80))
        return np.where(infinite, found - np.uint16(1), found)


@dataclass(frozen=True)
class Slice(Op):
    """One index of an axis before the last two: (rows, channels, times, height, width) without its third axis.

    Qwen-VL convolves over pairs of frames; ggml adds two convolutions of one frame each.
    """

    axis: int
    index: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if not self.axis < len(source) - 2 or not 0 <= self.index < source[self.axis]:
            raise ValueError(f"{list(source)} has no index {self.index} in axis {self.axis}")
        return (*source[: self.axis], *source[self.axis + 1 :])

    def granule(self, *sources: Shape) -> int:
        return math.prod(sources[0][self.axis + 1 : -1])

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        each, count = self.granule(*sources), sources[0][self.axis]
        block, row = np.divmod(np.arange(start, stop), each)
        found = (block * count + self.index) * each + row
        taken: Array = read(0, int(found[0]), int(found[-1]) + 1)[found - found[0]]
        return taken


@dataclass(frozen=True)
class PixelsToPlanes(Op):
    """A matrix over pixels of three colours as a convolution: (n, size * size * 3) becomes (n, 3, size, size)."""

    size: int

    @property
    def whole_rows(self) -> bool:
        return False

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) != 2 or source[1] != 3 * self.size**2:
            raise ValueError(f"{list(source)} is not a matrix over {self.size} x {self.size} pixels of three colours")
        return (source[0], 3, self.size, self.size)

    def granule(self, *sources: Shape) -> int:
        return 3 * self.size

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        each = 3 * self.size
        first, last = start // each, -(-stop // each)
        pixels = read(0, first, last).reshape(-1, self.size, self.size, 3)
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(-1, self.size)
        return planes[start - first * each : stop - first * each]


@dataclass(frozen=True)
class RowAsVector(Op):
    """One row of a matrix: (rows, n) becomes (n,)."""

    row: int

    @property
    def whole_rows(self) -> bool:
        return False

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) != 2 or not 0 <= self.row < source[0]:
            raise ValueError(f"{list(source)} has no row {self.row}")
        return source[1:]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        return np.ascontiguousarray(read(0, self.row, self.row + 1)[0, start:stop, None])


@dataclass(frozen=True)
class AsColumn(Op):
    """A vector as a matrix of one column, or with further axes of one: (n,) becomes (n, 1). No number moves."""

    axes: int = 1

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return (*source, *(1,) * self.axes)


@dataclass(frozen=True)
class Softplus(Op):
    """log(1 + exp(x)), computed in float64 and rounded to float32; x itself above 20, as torch does."""

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        x = read(0, start, stop)
        soft: Array = np.where(x > 20, x, np.logaddexp(0, x.astype(np.float64))).astype(np.float32)
        return soft


@dataclass(frozen=True)
class Sinusoids(Op):
    """A sine and a cosine of every position at each of width / 2 frequencies, from 1 down to 1 / 10000. No source.

    Whisper's positions, which some checkpoints leave out. In float32 as transformers' SinusoidsPositionEmbedding; its
    torch rounds exponentials, sines and cosines otherwise from processor to processor.
    """

    positions: int
    width: int

    @property
    def computes(self) -> bool:
        return True

    def shape(self, *sources: Shape) -> Shape:
        if self.width % 2 or self.width < 4:
            raise ValueError(f"{self.width} numbers are not sines and cosines of at least two frequencies")
        return (self.positions, self.width)

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        half = self.width // 2
        exponents = np.float32(-math.log(10000) / (half - 1)) * np.arange(half, dtype=np.float32)
        frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
        angles = (np.arange(start, stop, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
        waves: Array = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
        return waves


@dataclass(frozen=True)
class NormScale(Op):
    """The factors of a batch norm that has been trained: weight / sqrt(variance + epsilon), in float32.

    Sources: weight, variance; (n,) each.
    """

    epsilon: float = 1e-5

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        weight, variance = (np.array(read(k, start, stop)) for k in range(2))
        scale: Array = weight / np.sqrt(variance + np.float32(self.epsilon))
        return scale


@dataclass(frozen=True)
class NormShift(Op):
    """What a trained batch norm adds: bias - mean * weight / sqrt(variance + epsilon), in float32.

    Sources: bias, mean, weight, variance; (n,) each.
    """

    epsilon: float = 1e-5

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        bias, mean, weight, variance = (np.array(read(k, start, stop)) for k in range(4))
        shift: Array = bias - mean * (weight / np.sqrt(variance + np.float32(self.epsilon)))
        return shift


@dataclass(frozen=True)
class Pointwise(Op):
    """A convolution over one place as a matrix: (outputs, inputs, 1) becomes (outputs, inputs)."""

    @property
    def whole_rows(self) -> bool:
        return False

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) != 3 or source[2] != 1:
            raise ValueError(f"{list(source)} is not a convolution over one place")
        return source[:2]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        inputs = sources[0][1]
        return read(0, start * inputs, stop * inputs).reshape(stop - start, inputs)


@dataclass(frozen=True)
class ColoursApart(Op):
    """Columns, or the numbers of a vector, of pixels with three colours each, as three planes of pixels.

    (n, pixels * 3) becomes (n, 3 * pixels), (pixels * 3,) becomes (3 * pixels,): ggml takes pictures apart by colour.
    """

    @property
    def whole_rows(self) -> bool:
        return False

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if source[-1] % 3:
            raise ValueError(f"{source[-1]} numbers are not pixels of three colours")
        return source

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        width = sources[0][-1]
        order = np.arange(width).reshape(-1, 3).T.ravel()
        if len(sources[0]) > 1:
            return np.ascontiguousarray(read(0, start, stop)[:, order])
        return np.ascontiguousarray(read(0, 0, width)[order[start:stop]])


@dataclass(frozen=True)
class AxesChanged(Op):
    """The first two axes changed: (positions, 2, n) becomes (2, positions, n)."""

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) != 3:
            raise ValueError(f"{list(source)} does not have three axes")
        return (source[1], source[0], source[2])

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        outer, inner = sources[0][:2]
        block, row = np.divmod(np.arange(start, stop), outer)
        found = row * inner + block
        whole: Array = read(0, int(found.min()), int(found.max()) + 1)[found - found.min()]
        return whole
