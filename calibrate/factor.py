"""The triangular factor of a Hessian, for error feedback.

H + damping = (I + T)^T D (I + T) with T strictly lower triangular. If the columns of W are quantized in turn, column k
as what is nearest to w_k + sum over i < k of T[k, i] e_i, then it adds D_k times the square of its rounding error to
the loss, whatever came before. This is LDLQ of QuIP (arXiv:2307.13304), which equals GPTQ (arXiv:2210.17323) and needs
no inverse. All sums are in a fixed order.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.lanes import add_products, from_lanes, to_lanes
from ggufsmith.quantize.kernels.cholesky import factor_and_invert

# Added to the diagonal, as a part of each entry and of their median. A part of their mean would drown all columns but
# one, where one has half a million times the median; without the median, columns almost without inputs would take up
# the errors of all others.
OF_ITSELF, OF_MEDIAN = np.float32(0.2), np.float32(0.8)
LEAST = np.float32(1e-6)  # of the largest diagonal entry, where most of the others are zero
TILE, BLOCK = 256, 128  # columns and rows at a time
Map = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class TileFactor:
    """Of the columns of one tile, which add r^T D r to the loss, r = e + T e, where what earlier tiles add is in e.

    unit: float32 [columns, columns], I + T.
    s:    float32 [columns, columns], (I + T)^T D (I + T): what e adds, if the columns behind do what is best for them.
    back: float32 [columns, columns], (I + T)^T D: from r to s e, half of the gradient.
    """

    unit: NDArray[np.float32]
    s: NDArray[np.float32]
    back: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Factor:
    """t: float32 [n, n], T with anything on and above its diagonal. d: float32 [n], D. tiles: of TILE columns each."""

    t: NDArray[np.float32]
    d: NDArray[np.float32]
    tiles: tuple[TileFactor, ...]


def damping_of(diagonal: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is added to a diagonal, float32 [n]: what H says is known from a sample."""
    least = np.maximum(OF_MEDIAN * np.median(diagonal), LEAST * diagonal.max())
    return np.asarray(OF_ITSELF * diagonal + least, np.float32)


def factor_of(h: NDArray[np.float32], damping: NDArray[np.float32], spread: Map = map) -> Factor | None:
    """The factor of h, float32 [n, n], with its damping; None if it is not positive definite even so.

    spread: calls a function for each number of an iterable, on as many threads as it likes.
    """
    n = len(h)
    # From the last row and column on, the factor is that of Cholesky: H = L L^T.
    a = h[::-1, ::-1].copy()
    a[np.arange(n), np.arange(n)] += damping[::-1]
    corners: list[NDArray[np.float32]] = []
    for at in reversed(range(0, n, TILE)):
        corner = factor_tile(a, slice(n - min(at + TILE, n), n - at), spread)
        if corner is None:
            return None
        corners.append(np.ascontiguousarray(corner[::-1, ::-1]))
    root = a.diagonal().copy()
    a /= root
    t, d = np.ascontiguousarray(a[::-1, ::-1].T), np.square(root[::-1])
    return Factor(t, d, tuple(tile_factor(s, t, d, k * TILE) for k, s in enumerate(reversed(corners))))


def tile_factor(s: NDArray[np.float32], t: NDArray[np.float32], d: NDArray[np.float32], at: int) -> TileFactor:
    """The record of the tile that begins at column `at`."""
    part = slice(at, at + len(s))
    unit = np.tril(t[part, part], -1)
    np.fill_diagonal(unit, 1)
    return TileFactor(unit, s, np.ascontiguousarray(unit.T * d[part]))


def factor_tile(a: NDArray[np.float32], tile: slice, spread: Map) -> NDArray[np.float32] | None:
    """Make columns of `a` columns of its Cholesky factor; those before are it already. None if that is impossible.

    Returns the square on the diagonal without what the columns before explain, [columns, columns].
    """
    at, stop = tile.start, tile.stop
    before = a[tile, :at].copy()

    def subtract(row: int) -> None:
        part = slice(row, min(row + BLOCK, len(a)))
        g = np.zeros_like(to_lanes(a[part, tile]))
        add_products(to_lanes(a[part, :at]), before, 0, 0, at, g)
        a[part, tile] -= from_lanes(g, part.stop - row)

    list(spread(subtract, range(at, len(a), BLOCK)))
    corner = a[tile, tile].copy()
    lower = corner.astype(np.float64)
    inverted = np.zeros_like(lower)
    if not factor_and_invert(lower.reshape(-1), inverted.reshape(-1), len(lower)):
        return None
    a[tile, tile] = lower
    inverse = inverted.astype(np.float32)

    def solve(row: int) -> None:
        part = slice(row, min(row + BLOCK, len(a)))
        rows = to_lanes(a[part, tile])
        g = np.zeros_like(rows)
        add_products(rows, inverse, 0, 0, len(inverse), g)
        a[part, tile] = from_lanes(g, part.stop - row)

    list(spread(solve, range(stop, len(a), BLOCK)))
    return corner
