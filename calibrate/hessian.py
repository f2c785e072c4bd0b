"""What a layer's inputs say of the errors of its weights: H = mean x x^T, checked once and shared by all matrices that
have these inputs.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.factor import Factor, Map, damping_of, factor_of

# What rounding may do to |h_ij| <= sqrt(h_ii h_jj), which holds for every H that is a mean of x x^T.
SLACK = 1e-3
ROWS = 256  # rows of H that are checked at once


@dataclass(frozen=True, eq=False)
class Hessian:
    """H of one layer.

    h:        float32 [n, n], symmetric, C-contiguous.
    diagonal: float32 [n]: the importance of the columns.
    damping:  float32 [n], what is added to the diagonal.
    factor:   of H and its damping, for error feedback; None if there is trouble.
    trouble:  why H cannot be used, as the end of a sentence; None if it can.
    """

    h: NDArray[np.float32]
    diagonal: NDArray[np.float32]
    damping: NDArray[np.float32]
    factor: Factor | None = None
    trouble: str | None = None


def prepare(h: NDArray[np.float32], spread: Map = map, *, tokens: float = math.inf) -> Hessian:
    """Check and factor H, float32 [n, n], and say what is wrong with it in `Hessian.trouble`.

    tokens: that it is the mean of. Fewer than columns cannot tell all directions from one another: the damping is
    raised, by the root of how many times fewer they are.

    An H is refused if a number is not finite, if it is not symmetric, if a diagonal entry is negative or all are zero,
    or if it is not positive definite after damping. Columns of zeros are fine. `spread`: see factor.factor_of.
    ValueError if it is not a square matrix.
    """
    if h.ndim != 2 or h.shape[0] != h.shape[1]:
        raise ValueError(f"H of shape {h.shape}; wanted a square matrix")
    h = np.ascontiguousarray(h, np.float32)
    diagonal = h.diagonal().copy()
    trouble = trouble_with(h, diagonal)
    damping, factor = np.zeros_like(diagonal), None
    if trouble is None:
        exponent = int(np.frexp(diagonal.max())[1])
        if abs(exponent) > 40:  # squares and products of sums stay in the range of float32
            h = np.ldexp(h, -exponent)
            diagonal = h.diagonal().copy()
        damping = damping_of(diagonal) * np.float32(math.sqrt(max(1, len(h) / max(tokens, 1))))
        factor = factor_of(h, damping, spread)
        trouble = None if factor else "H is not positive definite, even with damping"
    return Hessian(h, diagonal, damping, factor, trouble)


def trouble_with(h: NDArray[np.float32], diagonal: NDArray[np.float32]) -> str | None:
    """Why H is no mean of x x^T; None if it can be one."""
    if not np.isfinite(diagonal).all():
        return "the inputs of the layer are not all finite"
    if diagonal.min() < 0:
        return f"the mean square of input {int(diagonal.argmin())} is negative"
    if diagonal.max() == 0:
        return "the layer had no inputs, or they were all zero"
    root = np.sqrt(diagonal, dtype=np.float64)
    for at in range(0, len(h), ROWS):
        part = h[at : at + ROWS]
        limit = np.outer(root[at : at + ROWS], root)
        if not np.isfinite(part).all():
            return "the inputs of the layer are not all finite"
        if (np.abs(part - h[:, at : at + ROWS].T) > SLACK * limit).any():
            return "H is not symmetric"
        if (np.abs(part) > (1 + SLACK) * limit).any():
            return "H is not positive semidefinite"
    return None
