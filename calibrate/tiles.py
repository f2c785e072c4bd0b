"""The kernels of one tile of columns, chosen by the kind of format."""

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.lanes import Lanes
from ggufsmith.quantize.fields import CodeLayout
from ggufsmith.quantize.kernels import descent, descent_lattice
from ggufsmith.quantize.lattice_fields import LatticeLayout


def descend(
    layout: CodeLayout,
    w: Lanes,
    e: Lanes,
    state: descent.State,
    h: NDArray[np.float32],
    g: Lanes,
    at: int,
    passes: int,
) -> None:
    """Refine the columns of w from `at` on whose part of H is h; e and state follow, and g is used up."""
    coding, columns = descent.coding_of(layout), len(h)
    sums = h.reshape(-1, layout.sub).sum(1)
    first = w.reshape(-1), e.reshape(-1), state, h.reshape(-1), sums
    last = g.reshape(-1), w.shape[1], at, columns, passes, coding
    if isinstance(layout, LatticeLayout):
        inverse = np.linalg.inv(blocks_of(h, layout.dims).astype(np.float64)).astype(np.float32)
        descent_lattice.descend_lattice(*first, inverse.reshape(-1), *last, descent_lattice.lattice_coding(layout))
    else:
        descent.descend(*first, 1 / h.diagonal(), *last)


def feed(
    layout: CodeLayout,
    fed: Lanes,
    w: Lanes,
    e: Lanes,
    state: descent.State,
    t: NDArray[np.float32],
    d: NDArray[np.float32],
    at: int,
) -> None:
    """Quantize the columns of w from `at` on in turn, each with what the errors of those before add to it.

    fed: the columns with what earlier tiles add; used up. t, d: the tile's part of factor.Factor.
    """
    first = fed.reshape(-1), w.reshape(-1), e.reshape(-1), state, np.ascontiguousarray(t).reshape(-1)
    last = w.shape[1], at, len(t), descent.coding_of(layout)
    if isinstance(layout, LatticeLayout):
        unit = np.tril(blocks_of(t, layout.dims), -1) + np.eye(layout.dims, dtype=np.float32)
        metric = (unit.swapaxes(1, 2) * d.reshape(-1, 1, layout.dims)) @ unit
        descent_lattice.feed_lattice(*first, metric.reshape(-1), *last, descent_lattice.lattice_coding(layout))
    else:
        descent.feed(*first, *last)


def blocks_of(a: NDArray[np.float32], dims: int) -> NDArray[np.float32]:
    """The blocks on the diagonal, [n / dims, dims, dims]."""
    n = len(a) // dims
    return a.reshape(n, dims, n, dims)[np.arange(n), :, np.arange(n)]
