"""Ops that reorder: rows gathered, matrices turned, axes left out, and ops one after the other.

See `convert/ops.py` for what an op is. A gather reads runs of neighbouring rows, so that it costs what its runs cost.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.layout import rows_of
from ggufsmith.convert.ops import Array, Op, Part, Read, Shape, as_matrix, with_rows

TURNED = 64  # rows of a matrix that are turned at a time, so that what is written fills whole lines of the cache
STRIP = 1 << 22  # weights of it that are read at a time


@dataclass(frozen=True)
class Chain(Op):
    """Two ops, one after the other, on one source."""

    first: Op
    second: Op

    @property
    def shares(self) -> bool:
        return self.first.shares or self.second.shares

    @property
    def computes(self) -> bool:
        return self.first.computes or self.second.computes

    @property
    def whole_rows(self) -> bool:
        return self.first.whole_rows and self.second.whole_rows

    def shape(self, *sources: Shape) -> Shape:
        return self.second.shape(self.first.shape(*sources))

    def granule(self, *sources: Shape) -> int:
        return self.second.granule(self.first.shape(*sources))

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        def middle(k: int, first: int, last: int) -> Array:
            return self.first.rows(read, sources, first, last)

        return self.second.rows(middle, (self.first.shape(*sources),), start, stop)

    def inverse(self, source: int = 0) -> "Chain | None":
        first, second = self.first.inverse(), self.second.inverse()
        return Chain(second, first) if first and second else None

    @property
    def selects(self) -> bool:
        return self.first.selects and self.second.selects

    def view(self, source: Array) -> Array:
        return self.second.view(self.first.view(source))

    def put(self, output: Array, source: Array) -> None:
        self.second.put(output, self.first.view(source))


@dataclass(frozen=True)
class Squeeze(Op):
    """Axes of one, but for the first, left out: (channels, 1, width) becomes (channels, width)."""

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return (*source[:1], *(size for size in source[1:] if size != 1))

    def inverse(self, source: int = 0) -> "Unsqueeze":
        return Unsqueeze()


@dataclass(frozen=True)
class Unsqueeze(Op):
    """An axis of one put behind the first: (channels, width) becomes (channels, 1, width)."""

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return (source[0], 1, *source[1:])

    def inverse(self, source: int = 0) -> Squeeze:
        return Squeeze()


@dataclass(frozen=True)
class Split(Op):
    """Matrices that lie one behind the other, seen as a stack: (parts * r, c) becomes (parts, r, c)."""

    parts: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if self.parts < 1 or source[0] % self.parts:
            raise ValueError(f"{source[0]} rows cannot be divided into {self.parts} matrices")
        return (self.parts, source[0] // self.parts, *source[1:])

    def inverse(self, source: int = 0) -> "StackJoined":
        return StackJoined()


@dataclass(frozen=True)
class StackJoined(Op):
    """A stack seen as one matrix: (parts, r, c) becomes (parts * r, c)."""

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return (source[0] * source[1], *source[2:])


@dataclass(frozen=True)
class Fold(Op):
    """A vector as so many rows of equal length, one after the other: (rows * width,) becomes (rows, width)."""

    count: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) != 1 or self.count < 1 or source[0] % self.count:
            raise ValueError(f"{list(source)} cannot be divided into {self.count} rows")
        return (self.count, source[0] // self.count)

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        width = self.shape(*sources)[1]
        return read(0, start * width, stop * width).reshape(stop - start, width)

    @property
    def whole_rows(self) -> bool:
        return False

    def inverse(self, source: int = 0) -> "Unfold":
        return Unfold()


@dataclass(frozen=True)
class Unfold(Op):
    """The rows of a matrix as one vector."""

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return (math.prod(source),)

    def granule(self, *sources: Shape) -> int:
        return sources[0][-1]

    @property
    def whole_rows(self) -> bool:
        return False

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        width = sources[0][-1]
        first, last = start // width, -(-stop // width)
        return read(0, first, last).reshape(-1, 1)[start - first * width : stop - first * width]

    def inverse(self, source: int = 0) -> None:
        return None


@dataclass(frozen=True)
class PaddedRows(Op):
    """A matrix of `own` rows, and rows of zeros behind them up to `total`."""

    own: int
    total: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return (self.total, *source[1:])

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        first = read(0, min(start, self.own - 1), max(min(stop, self.own), min(start, self.own - 1) + 1))
        made = np.zeros((stop - start, first.shape[1]), first.dtype)
        count = max(min(stop, self.own) - start, 0)
        made[:count] = first[:count]
        return made

    def inverse(self, source: int = 0) -> Op:
        return Part(0, self.own)


@dataclass(frozen=True)
class NegativeExp(Op):
    """-exp(x) in float32: state space models store the logarithm of their decay, ggml wants the decay itself.

    Undoing it gives back x to a few units in the last place, and NaN for a decay that is not below zero.
    """

    undo: bool = False

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        x = read(0, start, stop).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the stream refuses what is not finite
            made: Array = (np.log(-x) if self.undo else -np.exp(x)).astype(np.float32)
        return made

    def inverse(self, source: int = 0) -> "NegativeExp":
        return NegativeExp(not self.undo)


@dataclass(frozen=True)
class Gather(Op):
    """Each matrix's rows in another order, or only some of them, as `order` says. A vector's rows are its numbers."""

    def order(self, rows: int) -> NDArray[np.int64]:
        """The source row of every output row, for a matrix of so many rows. ValueError if they do not fit."""
        raise NotImplementedError

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return with_rows(source, len(self.order(as_matrix(source)[-2])))

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        each = as_matrix(sources[0])[-2]
        order = self.order(each)
        wanted = np.arange(start, stop)
        found = wanted // len(order) * each + order[wanted % len(order)]
        runs = np.split(found, np.flatnonzero(np.diff(found) != 1) + 1)
        parts = [read(0, int(run[0]), int(run[-1]) + 1).copy() for run in runs if len(run)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def selects(self) -> bool:
        return True

    def put(self, output: Array, source: Array) -> None:
        if source.ndim == 1:
            source[self.order(len(source))] = output.ravel()
            return
        order = self.order(source.shape[-2])
        source[..., order, :] = output.reshape(*source.shape[:-2], len(order), source.shape[-1])


@dataclass(frozen=True)
class Strided(Gather):
    """Every so many rows: begin, begin + step, ... of each matrix."""

    begin: int
    step: int

    @property
    def shares(self) -> bool:
        return True

    def order(self, rows: int) -> NDArray[np.int64]:
        return np.arange(self.begin, rows, self.step)

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        each = as_matrix(sources[0])[-2]
        wanted, chosen = np.arange(start, stop), self.order(each)
        found = wanted // len(chosen) * each + chosen[wanted % len(chosen)]
        # One read, not one for each row, and the same one for every `begin`.
        first = int(found[0]) - self.begin
        last = min(int(found[-1]) - self.begin + self.step, rows_of(sources[0])[0])
        taken: Array = read(0, first, last)[found - first]
        return taken


@dataclass(frozen=True)
class StridedColumns(Op):
    """Every so many columns: begin, begin + step, ... of each row."""

    begin: int
    step: int

    @property
    def whole_rows(self) -> bool:
        return False

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        return (*source[:-1], len(range(self.begin, source[-1], self.step)))

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        return np.ascontiguousarray(read(0, start, stop)[:, self.begin :: self.step])

    @property
    def selects(self) -> bool:
        return True

    def view(self, source: Array) -> Array:
        return source[..., self.begin :: self.step]


@dataclass(frozen=True)
class Regroup(Gather):
    """Rows from `first` on, seen as (groups, per, size), become (per, groups, size); those before it stay.

    Qwen3.5 stores the value heads that share a key head beside each other, ggml repeats the key heads as a whole.
    """

    groups: int
    per: int
    size: int
    first: int = 0

    def order(self, rows: int) -> NDArray[np.int64]:
        if rows != self.first + self.groups * self.per * self.size:
            raise ValueError(f"{rows} rows are not {self.first} and {self.groups} * {self.per} * {self.size}")
        moved = np.arange(self.first, rows).reshape(self.groups, self.per, self.size).swapaxes(0, 1)
        return np.concatenate([np.arange(self.first), moved.ravel()])

    def inverse(self, source: int = 0) -> "Regroup":
        return Regroup(self.per, self.groups, self.size, self.first)


@dataclass(frozen=True)
class PartGroups(Gather):
    """Groups of `queries` query heads, a key head and a value head become all queries, all keys, all values.

    GPT-NeoX, BLOOM and Falcon compute the three in one matrix, with the heads that belong together beside each other;
    ggml wants three matrices behind each other. size: of a head.
    """

    groups: int
    queries: int
    size: int
    undo: bool = False

    def order(self, rows: int) -> NDArray[np.int64]:
        if rows != self.groups * (self.queries + 2) * self.size:
            raise ValueError(f"{rows} rows are not {self.groups} groups of {self.queries} + 2 heads of {self.size}")
        heads = np.arange(rows).reshape(self.groups, self.queries + 2, self.size)
        parted = np.concatenate([heads[:, :-2].ravel(), heads[:, -2].ravel(), heads[:, -1].ravel()])
        return np.argsort(parted) if self.undo else parted

    def inverse(self, source: int = 0) -> "PartGroups":
        return PartGroups(self.groups, self.queries, self.size, not self.undo)


@dataclass(frozen=True)
class RegroupColumns(Op):
    """The same for columns: (groups, per, size) become (per, groups, size)."""

    groups: int
    per: int
    size: int

    @property
    def whole_rows(self) -> bool:
        return False

    def shape(self, *sources: Shape) -> Shape:
        if sources[0][-1] != self.groups * self.per * self.size:
            raise ValueError(f"{sources[0][-1]} columns are not {self.groups} * {self.per} * {self.size}")
        return sources[0]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        rows = read(0, start, stop)
        moved = rows.reshape(len(rows), self.groups, self.per, self.size).swapaxes(1, 2)
        return np.ascontiguousarray(moved).reshape(rows.shape)

    def columns(self, width: int) -> NDArray[np.int64]:
        return np.arange(width).reshape(self.groups, self.per, self.size).swapaxes(0, 1).ravel()

    def inverse(self, source: int = 0) -> "RegroupColumns":
        return RegroupColumns(self.per, self.groups, self.size)


@dataclass(frozen=True)
class Turn(Op):
    """The last two axes changed, of every matrix: (experts, r, c) becomes (experts, c, r).

    begin, step: only every so many of the columns become rows: begin, begin + step, ...
    """

    begin: int = 0
    step: int = 1

    @property
    def whole_rows(self) -> bool:
        return False

    @property
    def shares(self) -> bool:
        return True

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) < 2:
            raise ValueError("a vector cannot be turned")
        return (*source[:-2], len(range(self.begin, source[-1], self.step)), source[-2])

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        height, width = sources[0][-2:]
        each = self.shape(*sources)[-2]
        strip = max(STRIP // width // TURNED, 1) * TURNED
        strips = range(0, height, strip)
        skipped = start // max(stop - start, 1) % len(strips)  # neighbours begin with others, and wait less
        order = (*strips[skipped:], *strips[:skipped])

        def turned(matrix: int) -> Array:
            low, high = max(start - matrix * each, 0), min(stop - matrix * each, each)
            made: Array | None = None
            for first in order:
                begin, end = matrix * height + first, matrix * height + min(first + strip, height)
                chosen = self.view(read(0, begin, end))[low:high]
                made = np.empty((high - low, height), chosen.dtype) if made is None else made
                place = made[:, first : first + end - begin]
                for at in range(0, end - begin, TURNED):
                    place[:, at : at + TURNED] = chosen[:, at : at + TURNED]
            assert made is not None
            return made

        parts = [turned(matrix) for matrix in range(start // each, -(-stop // each))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def inverse(self, source: int = 0) -> "Turn | None":
        return self if self.step == 1 else None

    @property
    def selects(self) -> bool:
        return True

    def view(self, source: Array) -> Array:
        return source.swapaxes(-1, -2)[..., self.begin :: self.step, :]
