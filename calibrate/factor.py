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

# Added to the diagonal, as a part of each entry and of their median. A part of their mean would drown all columns but
# one, where one has half a million times the median; without the median, columns almost without inputs would take up
# the errors of all others.
OF_ITSELF, OF_MEDIAN = np.float32(0.05), np.float32(0.2)
LEAST = np.float32(1e-6)  # of the largest diagonal entry, where most of the others are zero
TILE, BLOCK = 256, 128  # columns and rows at a time
Map = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Factor:
    """t: float32 [n, n], T with anything on and above its diagonal. d: float32 [n], D."""

    t: NDArray[np.float32]
    d: NDArray[np.float32]


def factor_of(h: NDArray[np.float32], spread: Map = map) -> Factor | None:
    """The factor of h, float32 [n, n]; None if it is not positive definite even with its damping.

    spread: calls a function for each number of an iterable, on as many threads as it likes.
    """
    diagonal = h.diagonal()
    n, median = len(diagonal), np.median(diagonal)
    damping = OF_ITSELF * diagonal + np.maximum(OF_MEDIAN * median, LEAST * diagonal.max())
    # From the last row and column on, the factor is that of Cholesky: H = L L^T.
    a = h[::-1, ::-1].copy()
    a[np.arange(n), np.arange(n)] += damping[::-1]
    for at in range(0, n, TILE):
        if not factor_tile(a, slice(at, min(at + TILE, n)), spread):
            return None
    root = a.diagonal().copy()
    a /= root
    return Factor(np.ascontiguousarray(a[::-1, ::-1].T), np.square(root[::-1]))


def factor_tile(a: NDArray[np.float32], tile: slice, spread: Map) -> bool:
    """Make columns of `a` columns of its Cholesky factor; those before are it already. False if that is impossible."""
    at, stop = tile.start, tile.stop
    before = a[tile, :at].copy()

    def subtract(row: int) -> None:
        part = slice(row, min(row + BLOCK, len(a)))
        g = np.zeros_like(to_lanes(a[part, tile]))
        add_products(to_lanes(a[part, :at]), before, 0, 0, at, g)
        a[part, tile] -= from_lanes(g, part.stop - row)

    list(spread(subtract, range(at, len(a), BLOCK)))
    corner = cholesky(a[tile, tile].astype(np.float64))
    if corner is None:
        return False
    a[tile, tile] = corner
    inverse = inverted(corner).astype(np.float32)

    def solve(row: int) -> None:
        part = slice(row, min(row + BLOCK, len(a)))
        rows = to_lanes(a[part, tile])
        g = np.zeros_like(rows)
        add_products(rows, inverse, 0, 0, len(inverse), g)
        a[part, tile] = from_lanes(g, part.stop - row)

    list(spread(solve, range(stop, len(a), BLOCK)))
    return True


def cholesky(a: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """L with L L^T = a; None if a is not positive definite. LAPACK's depends on its threads."""
    for j in range(len(a)):
        if not a[j, j] > 0:
            return None
        a[j:, j] /= np.sqrt(a[j, j])
        a[j + 1 :, j + 1 :] -= a[j + 1 :, j, None] * a[j + 1 :, j]
    return np.tril(a)


def inverted(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a lower triangular matrix."""
    inverse = np.zeros_like(lower)
    for j in range(len(lower)):
        inverse[j] = -(lower[j, :j, None] * inverse[:j]).sum(0)
        inverse[j, j] += 1
        inverse[j] /= lower[j, j]
    return inverse
