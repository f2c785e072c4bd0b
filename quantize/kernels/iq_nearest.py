"""Which grid point is nearest.

The searches of IQ1, IQ2 and IQ3 compare candidates by sum(w[i] * (scale * q[i] - x[i])**2), added in the order of i. As
q[i] is one of few levels, all terms are computed first, and a candidate only adds some of them, in ggml's order. Rows
(iq_rows.py) hold sixteen candidates for one scale, or sixteen scales for one candidate. The first serves where scales
come one by one. The second serves where many scales are tried: as the scale moves, the rounded vector, and with it the
list of candidates, changes only now and then. Both are exact, and of equal candidates the first wins, as in ggml.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.quantize.grids import CHUNK
from ggufsmith.quantize.kernels.iq_rows import (
    choose_lanes,
    fill,
    lanes_equal,
    lanes_less,
    least,
    lowest_bit,
    pick,
    put_row,
    row,
)
from ggufsmith.quantize.simd import f32, jitable

WORST = (1 << 63) - 1


def nearest_point(dims: int, levels: int) -> Callable[..., int]:
    """The search for grids of this shape, to be called as

    nearest(packed, start, stop, near, far) -> slot

    packed: the grid's Candidates.packed; start, stop: the chunks to compare. near, far: rows with the terms of the
    first 16 // levels positions, and of the others, in the order of packed's nibbles.
    """
    split = CHUNK // levels

    def nearest(packed: Any, start: int, stop: int, near: Any, far: Any) -> int:
        best = WORST
        for chunk in range(start, stop):
            codes = row(packed, chunk * CHUNK)
            distance = pick(near, codes, 0)
            for i in range(1, split):
                distance = distance + pick(near, codes, i)
            for i in range(split, dims):
                distance = distance + pick(far, codes, i)
            best = min(best, least(distance, chunk * CHUNK))
        return best & 0xFFFFFFFF

    return jitable(nearest)


def table_entries(dims: int, levels: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Of the 32 entries of the two tables: which position each is for (int32), and its level 2 * code + 1 (float32)."""
    split = CHUNK // levels
    entry = np.arange(2 * CHUNK)
    position = entry // CHUNK * split + np.minimum(entry % CHUNK // levels, split - 1)
    return np.minimum(position, dims - 1).astype(np.int32), (2 * (entry % CHUNK % levels) + 1).astype(np.float32)


def nearest_points(dims: int, levels: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """The search with sixteen scales at once.

    fill_terms(x, w, at, scales, to, terms): the terms of the group x[at : at + dims] with weights w, for the 16 scales
    from scales[to]; float32 [dims * levels * 16].
    nearest(terms, grid, vectors, to, tries): vectors[to : to + tries], the numbers of rounded vectors for as many of
    these scales -> the slots of the nearest points.
    """

    @jitable
    def fill_terms(x: Any, w: Any, at: int, scales: Any, to: int, terms: Any) -> None:
        scale = row(scales, to)
        for level in range(levels):
            q = scale * fill(f32(2 * level + 1))
            for i in range(dims):
                difference = q - fill(x[at + i])
                put_row(terms, (i * levels + level) * CHUNK, fill(w[at + i]) * difference * difference)

    @jitable
    def distance(terms: Any, grid: Any, slot: int) -> Any:
        total = row(terms, 2 * int(grid.terms[slot * dims]))
        for i in range(1, dims):
            total = total + row(terms, 2 * int(grid.terms[slot * dims + i]))
        return total

    @jitable
    def nearest(terms: Any, grid: Any, vectors: Any, to: int, tries: int) -> None:
        all_vectors = row(vectors, to)
        slots, left = all_vectors, (1 << tries) - 1
        while left != 0:
            u = vectors[to + lowest_bit(left)]
            lanes = lanes_equal(all_vectors, u)
            first = grid.starts[u] * CHUNK
            best_slot = fill(first)
            if grid.counts[u] > 1:
                best = distance(terms, grid, first)
                for slot in range(first + 1, first + grid.counts[u]):
                    this = distance(terms, grid, slot)
                    closer = lanes_less(this, best)
                    best_slot = choose_lanes(closer, fill(slot), best_slot)
                    best = choose_lanes(closer, this, best)
            slots = choose_lanes(lanes, best_slot, slots)
            left &= ~lanes
        put_row(vectors, to, slots)

    return fill_terms, nearest
