"""Rows of numbers side by side, as the kernels of quantize/kernels/tile_sums.py take them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.quantize.kernels import tile_sums
from ggufsmith.quantize.simd import W

Lanes = NDArray[np.float32]  # [groups, n, W]: number i of row W g + l is [g, i, l]


def to_lanes(a: NDArray[Any]) -> NDArray[Any]:
    """[rows, n] as [groups, n, W], filled up with rows of zeros."""
    groups = -(-len(a) // W)
    if len(a) != groups * W:
        a = np.concatenate([a, np.zeros((groups * W - len(a), a.shape[1]), a.dtype)])
    return np.ascontiguousarray(a.reshape(groups, W, -1).transpose(0, 2, 1))


def from_lanes(a: NDArray[Any], rows: int) -> NDArray[Any]:
    """The inverse of `to_lanes`."""
    return np.ascontiguousarray(a.transpose(0, 2, 1)).reshape(-1, a.shape[1])[:rows]


def add_products(e: Lanes, h: NDArray[np.float32], at: int, first: int, last: int, g: Lanes) -> None:
    """Add e[:, first:last] h[first:last, tile] to g, the tile of as many columns as g has from column `at` on.

    h: symmetric, of which only rows `at` to the end of the tile are read, from column `first` to `last`.
    """
    if first < last:
        n, columns = h.shape[1], g.shape[1]
        tile_sums.project(e.reshape(-1), h.reshape(-1), n, at, columns, first, last, g.reshape(-1))


def inner(e: Lanes, at: int, g: Lanes) -> NDArray[np.float64]:
    """The sum of products of each row, [groups * W], of g and the columns of e from `at` on."""
    out = np.empty(len(e) * W, np.float32)
    tile_sums.inner(e.reshape(-1), g.reshape(-1), e.shape[1], at, g.shape[1], out)
    return out.astype(np.float64)
