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
from ggufsmith.calibrate.lanes import Lanes, add_products, from_lanes, inner, to_lanes
from ggufsmith.calibrate.tiles import descend, feed
from ggufsmith.container.formats import Format
from ggufsmith.pipeline.findings import Report
from ggufsmith.quantize import fields, rows
from ggufsmith.quantize.kernels import descent
from ggufsmith.quantize.simd import W

Effort = Literal["fast", "normal", "best"]
TILE, BLOCK = 256, 128  # columns, and rows that one thread works on at a time
# Of each effort: how often a tile is gone through when it is first quantized; how often the whole row is gone through
# after that, and how often each tile of it then. A row is gone through again only if the last time took more than WORTH
# off the loss.
SWEEPS: Mapping[Effort, tuple[int, int, int]] = {"fast": (1, 0, 0), "normal": (2, 0, 0), "best": (3, 8, 3)}
WORTH = 0.002
# Formats of fewer bits, which lose most, have one more time at normal effort: (times, times for each tile).
COARSE, COARSE_SWEEPS = 3.5, (1, 2)


@dataclass(frozen=True, eq=False)
class Refined:
    """Quantized rows.

    data:       uint8 [n, bytes per row].
    start, end: float64 [n], the loss of each row with ggml's bytes and with these: (w - w') H (w - w')^T.
    report:     what rows.encode says of ggml's bytes.
    trouble:    why `data` is ggml's, and the losses NaN; see Hessian.trouble.
    """

    data: NDArray[np.uint8]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    report: Report
    trouble: str | None = None


def refine(
    target: Format,
    w: NDArray[np.float32],
    hessian: Hessian,
    *,
    effort: Effort = "normal",
    threads: int = 1,
) -> Refined:
    """Quantize w, float32 [n, width], as `target`. The result does not depend on `threads`.

    ValueError if the shapes do not fit each other or the format.
    """
    if w.ndim != 2 or w.shape[1] != len(hessian.h):
        raise ValueError(f"weights of shape {w.shape} and H of {hessian.h.shape}")
    data = np.empty((len(w), target.nbytes((w.shape[1],))), np.uint8)
    start, end = np.full(len(w), np.nan), np.full(len(w), np.nan)

    def work(at: int) -> tuple[int, Report]:
        part = slice(at, at + BLOCK)
        block = np.ascontiguousarray(w[part], np.float32)
        report = rows.encode(target, block, data[part], importance=hessian.diagonal)
        if hessian.trouble is None:
            data[part], start[part], end[part] = refine_block(target, block, data[part], hessian, effort)
        return at, report

    with ThreadPoolExecutor(threads) as pool:
        report = Report.merge(pool.map(work, range(0, len(w), BLOCK)))
    return Refined(data, start, end, report, hessian.trouble)


def refine_block(
    target: Format, w: NDArray[np.float32], plain: NDArray[np.uint8], hessian: Hessian, effort: Effort
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """Data, start and end of a few rows; `plain` is what ggml makes of them."""
    layout = fields.layout_of(target.name)
    x = to_lanes(w)
    decoded = np.empty_like(w)
    rows.decode(target, plain, decoded)
    start = losses(x - to_lanes(decoded), hessian)
    first, sweeps, passes = SWEEPS[effort]
    if effort == "normal" and 8 * target.size < COARSE * target.weights:
        sweeps, passes = COARSE_SWEEPS
    state, e, end = feed_back(layout, x, hessian, first)
    for _ in range(sweeps):
        before, end = sweep(layout, x, e, state, hessian, passes)
        if not before.sum() - end.sum() > WORTH * before.sum():
            break
    data = fields.pack(layout, to_fields(layout, state, len(w)))
    start, end = start[: len(w)], end[: len(w)]
    worse = ~(end < start)
    data[worse], end[worse] = plain[worse], start[worse]
    return data, start, end


def sweep(
    layout: fields.CodeLayout, x: Lanes, e: Lanes, state: descent.State, hessian: Hessian, passes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Go through all tiles once. Returns the losses of the rows before and after it, [groups * W].

    A tile's share of the loss before is what it has in common with itself and with the tiles behind, which have not
    changed yet; of that after, with the tiles in front, which will not change any more.
    """
    n = len(hessian.h)
    before, after = np.zeros(len(x) * W), np.zeros(len(x) * W)
    for at in range(0, n, TILE):
        stop = min(at + TILE, n)
        tile = slice(at, stop)
        front, g = np.zeros_like(e[:, tile]), np.zeros_like(e[:, tile])
        add_products(e, hessian.h, at, 0, at, front)
        add_products(e, hessian.h, at, stop, n, g)
        before += inner(e, at, g)
        add_products(e, hessian.h, at, at, stop, g)
        before += inner(e, at, g)
        g += front
        g += hessian.damping[tile, None] * e[:, tile]
        h = hessian.h[tile, tile].copy()
        h[np.arange(len(h)), np.arange(len(h))] += hessian.damping[tile]
        descend(layout, x, e, state, h, g, at, passes)
        front *= 2
        add_products(e, hessian.h, at, at, stop, front)
        after += inner(e, at, front)
    return before, after


def feed_back(
    layout: fields.CodeLayout, x: Lanes, hessian: Hessian, passes: int
) -> tuple[descent.State, Lanes, NDArray[np.float64]]:
    """Rows quantized with error feedback, their errors, and their losses, [groups * W].

    Scales begin as those of ggml's search for a tile. Each tile is gone through `passes` times before the next comes,
    under the loss that is left if the columns behind do what is best for its errors. The losses are sums of r^T D r,
    less what the damping adds to them (see `factor.TileFactor`), which is far less work than e H e^T.
    """
    factor, damping = hessian.factor, hessian.damping[:, None]
    assert factor is not None, "there is no trouble"
    form = layout.format
    groups, n, _ = x.shape
    state = empty_state(layout, groups, n)
    e = np.zeros_like(x)
    lost = np.zeros(groups * W)
    for at, tile_factor in zip(range(0, n, TILE), factor.tiles, strict=True):
        tile = slice(at, min(at + TILE, n))
        fed = x[:, tile].copy()
        add_products(e, factor.t, at, 0, at, fed)
        wanted = from_lanes(fed, groups * W)
        data = np.empty((len(wanted), form.nbytes((wanted.shape[1],))), np.uint8)
        rows.encode(form, wanted, data, importance=factor.d[tile])
        for part, whole in zip(to_state(layout, fields.unpack(layout, data)), state, strict=True):
            share, wide = part.reshape(groups, -1, W), whole.reshape(groups, -1, W)
            first = at * wide.shape[1] // n
            wide[:, first : first + share.shape[1]] = share
        before = fed - x[:, tile]
        feed(layout, fed, x, e, state, factor.t[tile, tile], factor.d[tile], at)
        if passes:
            g = np.zeros_like(fed)
            add_products(fed, tile_factor.back, 0, 0, len(tile_factor.back), g)
            descend(layout, x, e, state, tile_factor.s, g, at, passes)
            fed = before
            add_products(np.ascontiguousarray(e[:, tile]), tile_factor.unit, 0, 0, len(tile_factor.unit), fed)
        lost += inner(fed, 0, factor.d[tile, None] * fed) - inner(e, at, damping[tile] * e[:, tile])
    return state, e, lost


def losses(e: Lanes, hessian: Hessian) -> NDArray[np.float64]:
    """e H e^T of each row, [groups * W]; one half of H stands for both."""
    n = len(hessian.h)
    total = np.zeros(len(e) * W)
    for at in range(0, n, TILE):
        stop = min(at + TILE, n)
        g = np.zeros_like(e[:, at:stop])
        add_products(e, hessian.h, at, 0, at, g)
        g *= 2
        add_products(e, hessian.h, at, at, stop, g)
        total += inner(e, at, g)
    return total


# ---- fields in lanes ----


def empty_state(layout: fields.CodeLayout, groups: int, n: int) -> descent.State:
    """Room for rows of n weights."""
    blocks, subs = n // layout.format.weights, n // layout.sub
    sizes = (subs, subs, blocks, blocks)
    return descent.State(np.zeros(groups * n * W, np.int8), *(np.zeros(groups * s * W, np.float32) for s in sizes))


def to_state(layout: fields.CodeLayout, found: fields.RowFields) -> descent.State:
    """RowFields in lanes."""
    scales = fields.scales_of(layout, found.scales)
    wide = (scales, found.minima.astype(np.float32), found.d, found.dmin)
    return descent.State(to_lanes(found.levels).reshape(-1), *(to_lanes(a).reshape(-1) for a in wide))


def to_fields(layout: fields.CodeLayout, state: descent.State, count: int) -> fields.RowFields:
    """The inverse for `count` rows."""
    groups = -(-count // W)
    levels, scales, minima, d, dmin = (from_lanes(a.reshape(groups, -1, W), count) for a in state)
    return fields.RowFields(levels, fields.codes_of(layout, scales), minima.astype(np.int16), d, dmin)
