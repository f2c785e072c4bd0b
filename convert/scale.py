"""Ops that multiply by constants: scales that a model's config has beside its weights, folded into them."""

from dataclasses import dataclass

import numpy as np

from ggufsmith.container.layout import rows_of
from ggufsmith.convert.ops import Array, Op, Read, Shape, as_matrix


@dataclass(frozen=True)
class Multiplied(Op):
    """Every number times each of these factors in turn, rounded to float32 every time; undone, divided in turn."""

    factors: tuple[float, ...]
    undo: bool = False

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        made = read(0, start, stop)
        for factor in reversed(self.factors) if self.undo else self.factors:
            made = made / np.float32(factor) if self.undo else made * np.float32(factor)
        return made

    def inverse(self, source: int = 0) -> "Multiplied":
        return Multiplied(self.factors, not self.undo)


@dataclass(frozen=True)
class MultipliedRows(Op):
    """The rows of a matrix in parts, each times its factor, in float32. parts: (rows, factor), from the first on."""

    parts: tuple[tuple[int, float], ...]
    undo: bool = False

    @property
    def computes(self) -> bool:
        return True

    def shape(self, *sources: Shape) -> Shape:
        rows, expected = as_matrix(sources[0])[0], sum(count for count, _ in self.parts)
        if len(sources[0]) > 2 or rows != expected:
            raise ValueError(f"{list(sources[0])} does not have {expected} rows")
        return sources[0]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        counts, factors = zip(*self.parts, strict=True)
        each = np.repeat(np.array(factors, np.float32), counts)[start:stop, None]
        found = read(0, start, stop)
        made: Array = found / each if self.undo else found * each
        return made

    def inverse(self, source: int = 0) -> "MultipliedRows":
        return MultipliedRows(self.parts, not self.undo)


@dataclass(frozen=True)
class UnitRows(Op):
    """Every row divided by its length, but at least 1e-12, which comes from double precision. It cannot be undone."""

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        found = read(0, start, stop).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # the stream refuses what is not finite
            lengths = np.sqrt(np.square(found).sum(-1, keepdims=True))
            made: Array = (found / np.maximum(lengths, 1e-12)).astype(np.float32)
        return made


@dataclass(frozen=True)
class RoundedToTernary(Op):
    """-1, 0 or 1 times the mean size of the numbers of a matrix, whichever is nearest. It cannot be undone.

    The mean, of at least 1e-5, comes from double precision, and is used in float32. Source: BitNet b1.58 (arXiv
    2402.17764), and weight_quant in utils_quant.py of 1bitLLM/bitnet_b1_58-3B.
    """

    @property
    def computes(self) -> bool:
        return True

    @property
    def shares(self) -> bool:
        return True

    def granule(self, *sources: Shape) -> int:
        return rows_of(sources[0])[0]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        whole = read(0, 0, rows_of(sources[0])[0])
        inverse = np.float32(1) / np.float32(max(np.abs(whole).mean(dtype=np.float64), 1e-5))
        made: Array = np.clip(np.rint(whole[start:stop] * inverse), -1, 1) / inverse
        return made
