"""One matrix quantized under a whole Hessian: ggml's bytes first, then a descent that keeps their format and size.

ggml's quantizer looks at one weight at a time, with an importance of its column. What a layer's outputs lose is
tr((W - W') H (W - W')^T), in which errors of different columns make up for each other or add up; this module lowers it.
The result is read by any llama.cpp, and no row of it loses more than the row of ggml's bytes under the same H.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.hessian import Hessian
from ggufsmith.container.formats import Format
from ggufsmith.quantize import fields, rows
from ggufsmith.quantize.kernels import descent
from ggufsmith.quantize.simd import W

Effort = Literal["fast", "normal", "best"]
# How often a row is gone through, and how often a tile each time.
SWEEPS: Mapping[Effort, tuple[int, int]] = {"fast": (1, 2), "normal": (2, 2), "best": (6, 2)}
TILE = 256  # columns
BLOCK = 128  # rows that one thread works on at a time
Lanes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Refined:
    """Quantized rows.

    data:       uint8 [n, bytes per row].
    start, end: float64 [n], the loss of each row with ggml's bytes and with these: (w - w') H (w - w')^T.
    trouble:    why `data` is ggml's; see Hessian.trouble.
    """

    data: NDArray[np.uint8]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    trouble: str | None = None


def refine(
    target: Format, w: NDArray[np.float32], hessian: Hessian, *, effort: Effort = "normal", threads: int = 1
) -> Refined:
    """Quantize w, float32 [n, width], as `target`. The result does not depend on `threads`.

    ValueError if the shapes do not fit each other or the format.
    """
    if w.ndim != 2 or w.shape[1] != len(hessian.h):
        raise ValueError(f"weights of shape {w.shape} and H of {hessian.h.shape}")
    data = np.empty((len(w), target.nbytes((w.shape[1],))), np.uint8)
    start, end = np.empty(len(w)), np.empty(len(w))

    def work(at: int) -> None:
        part = slice(at, at + BLOCK)
        data[part], start[part], end[part] = refine_block(target, np.ascontiguousarray(w[part]), hessian, effort)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, len(w), BLOCK)))
    return Refined(data, start, end)


def refine_block(
    target: Format, w: NDArray[np.float32], hessian: Hessian, effort: Effort
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """Data, start and end of a few rows."""
    n = w.shape[1]
    layout = fields.layout_of(target.name)
    plain = np.empty((len(w), target.nbytes((n,))), np.uint8)
    rows.encode(target, w, plain, importance=hessian.diagonal)
    first = fields.unpack(layout, plain)
    state = to_state(first)
    x = to_lanes(w)
    e = x - to_lanes(fields.values(layout, first))
    start = losses(e, hessian)
    coding = descent.coding_of(layout)
    sweeps, passes = SWEEPS[effort]
    for _ in range(sweeps):
        if not sweep(x, e, state, hessian, coding, passes):
            break
    end = losses(e, hessian)
    data = fields.pack(layout, to_fields(state, len(w)))
    start, end = (loss.reshape(-1)[: len(w)] for loss in (start, end))
    worse = ~(end < start)
    data[worse], end[worse] = plain[worse], start[worse]
    return data, start, end


def sweep(x: Lanes, e: Lanes, state: descent.State, hessian: Hessian, coding: descent.Coding, passes: int) -> int:
    """Go through all tiles once; returns how many steps were of use."""
    n, steps = len(hessian.h), 0
    for at in range(0, n, TILE):
        tile = slice(at, min(at + TILE, n))
        g = hessian.damping[tile][:, None] * e[:, tile]
        columns = g.shape[1]
        descent.project(e.reshape(-1), hessian.h.reshape(-1), n, at, columns, 0, n, g.reshape(-1))
        h = hessian.h[tile, tile].copy()
        h[np.arange(columns), np.arange(columns)] += hessian.damping[tile]
        steps += descent.descend(
            x.reshape(-1),
            e.reshape(-1),
            state,
            h.reshape(-1),
            1 / h.diagonal(),
            g.reshape(-1),
            n,
            at,
            columns,
            passes,
            coding,
        )
    return steps


def losses(e: Lanes, hessian: Hessian) -> NDArray[np.float64]:
    """e H e^T of each row, [groups, W]; the half of H below the tiles on its diagonal stands for the other half."""
    n = len(hessian.h)
    total = np.zeros((len(e), W))
    for at in range(0, n, TILE):
        tile = slice(at, min(at + TILE, n))
        g = np.zeros_like(e[:, tile])
        descent.project(e.reshape(-1), hessian.h.reshape(-1), n, at, g.shape[1], 0, at, g.reshape(-1))
        g *= 2
        descent.project(e.reshape(-1), hessian.h.reshape(-1), n, at, g.shape[1], at, tile.stop, g.reshape(-1))
        total += np.einsum("gnw,gnw->gw", e[:, tile], g, dtype=np.float64)
    return total


# ---- rows and lanes ----


def to_lanes(a: NDArray[np.generic]) -> NDArray[np.generic]:
    """[rows, n] as [groups, n, W], filled up with rows of zeros."""
    groups = -(-len(a) // W)
    room = np.zeros((groups * W, a.shape[1]), a.dtype)
    room[: len(a)] = a
    return np.ascontiguousarray(room.reshape(groups, W, -1).transpose(0, 2, 1))


def from_lanes(a: NDArray[np.generic], n: int, rows: int) -> NDArray[np.generic]:
    """The inverse of `to_lanes`, from one dimension: n numbers of each row."""
    return a.reshape(-1, n, W).transpose(0, 2, 1).reshape(-1, n)[:rows]


def to_state(found: fields.Fields) -> descent.State:
    """Fields in lanes."""
    numbers = (found.levels, *(a.astype(np.float32) for a in (found.scales, found.minima, found.d, found.dmin)))
    return descent.State(*(to_lanes(a).reshape(-1) for a in numbers))


def to_fields(state: descent.State, count: int) -> fields.Fields:
    """The inverse for `count` rows."""
    groups = -(-count // W)
    levels, scales, minima, d, dmin = (from_lanes(a, len(a) // (groups * W), count) for a in state)
    return fields.Fields(levels, scales.astype(np.int16), minima.astype(np.int16), d, dmin)
