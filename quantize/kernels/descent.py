"""Quantized rows made better under a whole Hessian: the steps inside a tile of columns, one row per lane.

Rows W lose tr(E H E^T), where E = W - W' is the error of the quantized rows W' and H = mean x x^T over the inputs of
the layer. H ties the columns of a row to each other and no row to another, so that each lane descends for itself. A
tile is up to 256 neighbouring columns. Inside it the gradient G = E H follows every step; between tiles it is computed
anew (`tile_sums.project`), so that the cost of a step does not grow with the width of the matrix. This is coordinate
descent, as in QuantEase (arXiv:2309.01885), with the scales of ggml's formats among the coordinates. All sums are in a
fixed order.

Arrays in lanes (see blocks.py) here are of several groups of W rows, one group after the other.
"""

from typing import Any, NamedTuple

import numpy as np

from ggufsmith.quantize.cache import INT, READ_F32, WRITE_F32, kernel, typeof, write
from ggufsmith.quantize.fields import CodeLayout
from ggufsmith.quantize.kernels.blocks import get, half_bits, put, room
from ggufsmith.quantize.kernels.iq4 import VALUES, nearest_code
from ggufsmith.quantize.kernels.tables import entry
from ggufsmith.quantize.kernels.tile_sums import PANEL, add_product, add_products, spread
from ggufsmith.quantize.simd import (
    W,
    absolute,
    any_lane,
    broadcast,
    clamp,
    f32,
    half_to_f32,
    jitable,
    maximum,
    multiply_add,
    nearest_small,
    select,
    to_f32,
    to_i8,
    to_i32,
)

WRITE_I8 = write(np.int8)
LARGEST_HALF = f32(65504)
LEAST_HALF = f32(2.0**-24)
# Steps of a sub-block's scale and minimum, in units of their codes.
MOVES = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 1.0), (-1.0, -1.0))
# Where no scale is stored in codes: the same in parts of d, and for the minimum in parts of a level.
PART_OF_SCALE, PART_OF_LEVEL = f32(1 / 32), f32(1 / 4)


class Coding(NamedTuple):
    """A format of fields.CodeLayout, as the kernels take it.

    block, sub: weights per d, and per scale. lowest, highest: levels; even: whether all integers between them are.
    least, most: codes of scales; equal where scales are not stored. most_low: of minima; 0 where none is stored.
    dmin: whether there is one. positive: whether it has to be.
    """

    block: int
    sub: int
    lowest: np.float32
    highest: np.float32
    even: bool
    least: np.float32
    most: np.float32
    most_low: np.float32
    dmin: bool
    positive: bool


def coding_of(layout: CodeLayout) -> Coding:
    """The record of a format."""
    scales, minima = layout.scales, layout.minima
    least = (scales.lowest + layout.half) * layout.unit if scales else 1
    most = least + (2 ** scales.bits.shape[1] - 1) * layout.unit if scales else 1
    most_low = 2 ** minima.bits.shape[1] - 1 if minima else 0
    ends = f32(layout.levels[0]), f32(layout.levels[-1])
    has_dmin = layout.dmin is not None
    return Coding(
        layout.format.weights,
        layout.sub,
        *ends,
        layout.even,
        f32(least),
        f32(most),
        f32(most_low),
        has_dmin,
        minima is not None,
    )


class State(NamedTuple):
    """Quantized rows in lanes: x = d * scale * level - dmin * low; as many as fields.RowFields has."""

    level: Any  # int8
    scale: Any  # float32, as the others
    low: Any
    d: Any
    dmin: Any


NOTHING = State(np.empty(0, np.int8), *(np.empty(0, np.float32) for _ in range(4)))
CODING = Coding(256, 32, f32(0), f32(15), True, f32(0), f32(63), f32(63), True, True)


class Tile(NamedTuple):
    """The columns at hand.

    h: float32 [columns * columns], their part of H. sums: float32 [columns * sub-blocks], those of each of its rows
    over each sub-block. inverse: the reciprocals of its diagonal.
    """

    h: Any
    sums: Any
    inverse: Any
    columns: int


class Place(NamedTuple):
    """Where the numbers of a sub-block or block begin.

    at: in the tile. to: where those of the tile begin in its gradient. column, sub, block: in the arrays of State.
    """

    at: int
    to: int
    column: int
    sub: int
    block: int


# ---- one sub-block ----


@jitable
def as_half(x: Any) -> Any:
    """The nearest float16, as f32."""
    return half_to_f32(half_bits(x))


@jitable
def nearest_level(v: Any, coding: Coding) -> Any:
    """The level nearest to v."""
    if coding.even:
        return nearest_small(clamp(v, coding.lowest, coding.highest))
    return entry(VALUES, nearest_code(v))


class Trial(NamedTuple):
    """A scale and minimum of a sub-block, x = scale * level - low, and what levels follow from."""

    scale: Any
    low: Any
    reciprocal: Any
    fits: Any


@jitable
def trial(scale: Any, low: Any) -> Trial:
    """The record; where the scale is zero, levels stay."""
    fits = scale != f32(0)
    return Trial(scale, low, select(fits, f32(1) / scale, f32(0)), fits)


@jitable
def settle(gradient: Any, inverse: Any, j: int, x: Any, level: Any, to: Trial, coding: Coding) -> Any:
    """Give number j of x and its level the value that is best while the others stay; returns old - new."""
    old = get(x, j)
    wanted = (old + gradient * inverse + to.low) * to.reciprocal
    q = select(to.fits, nearest_level(wanted, coding), get(level, j))
    new = to.scale * q - to.low
    put(level, j, q)
    put(x, j, new)
    return old - new


class Room(NamedTuple):
    """Numbers of a sub-block in lanes, f32: what it was, what is tried, where trials start, and the best of them."""

    old: Any
    x: Any
    level: Any
    gradient: Any
    first_x: Any
    first_gradient: Any
    best_x: Any
    best_level: Any


@jitable
def room_of(n: int) -> Room:
    """For sub-blocks of n weights."""
    return Room(
        room(n, f32),
        room(n, f32),
        room(n, f32),
        room(n, f32),
        room(n, f32),
        room(n, f32),
        room(n, f32),
        room(n, f32),
    )


@jitable
def recode(work: Room, at: int, tile: Tile, to: Trial, coding: Coding, last: bool) -> Any:
    """Settle the columns of a sub-block in turn; returns what this adds to the loss.

    x, level and gradient of `work` follow, the gradient only if this is not the last time. Four columns at a time go
    into the gradient of the others.
    """
    h, inverse, lg, n = tile.h, tile.inverse, work.gradient, coding.sub
    total = broadcast(f32(0))
    for j in range(0, n, 4):
        k = at + j
        r0 = k * tile.columns + at
        r1, r2, r3 = r0 + tile.columns, r0 + 2 * tile.columns, r0 + 3 * tile.columns
        ga = get(lg, j)
        a = settle(ga, inverse[k], j, work.x, work.level, to, coding)
        gb = add_product(a, h, r1 + j, get(lg, j + 1))
        b = settle(gb, inverse[k + 1], j + 1, work.x, work.level, to, coding)
        gc = add_product(b, h, r2 + j + 1, add_product(a, h, r2 + j, get(lg, j + 2)))
        c = settle(gc, inverse[k + 2], j + 2, work.x, work.level, to, coding)
        gd = add_product(b, h, r3 + j + 1, add_product(a, h, r3 + j, get(lg, j + 3)))
        gd = add_product(c, h, r3 + j + 2, gd)
        d = settle(gd, inverse[k + 3], j + 3, work.x, work.level, to, coding)
        total = multiply_add(a, add_product(a, h, r0 + j, ga + ga), total)
        total = multiply_add(b, add_product(b, h, r1 + j + 1, gb + gb), total)
        total = multiply_add(c, add_product(c, h, r2 + j + 2, gc + gc), total)
        total = multiply_add(d, add_product(d, h, r3 + j + 3, gd + gd), total)
        if any_lane((a != f32(0)) | (b != f32(0)) | (c != f32(0)) | (d != f32(0))):
            for i in range(j + 4 if last else 0, n):
                both = add_product(b, h, r1 + i, add_product(a, h, r0 + i, get(lg, i)))
                put(lg, i, add_product(d, h, r3 + i, add_product(c, h, r2 + i, both)))
    return total


@jitable
def stepped(scale: Any, low: Any, s: Any, m: Any, d: Any, dmin: Any, move: Any, coding: Coding) -> Any:
    """The codes s, m of scale and minimum after a move, and what they stand for; what cannot be done is not."""
    if coding.least < coding.most:
        s2, m2 = s + f32(move[0]), m + f32(move[1])
        s2 = clamp(s2, coding.least, coding.most)
        m2 = clamp(m2, f32(0), coding.most_low)
        return s2, m2, d * s2, dmin * m2
    scale2 = as_half(scale + scale * (f32(move[0]) * PART_OF_SCALE))
    low2 = as_half(low + scale * (f32(move[1]) * PART_OF_LEVEL))
    fits = (absolute(scale2) <= LARGEST_HALF) & (absolute(scale2) >= LEAST_HALF) & (absolute(low2) <= LARGEST_HALF)
    return s, m, select(fits, scale2, scale), select(fits, low2, low)


@jitable
def visit(state: State, place: Place, tile: Tile, g: Any, work: Room, coding: Coding) -> bool:
    """Settle the columns of a sub-block, try the neighbours of its scale and minimum with levels chosen anew, and keep
    the best. Whether anything changed.
    """
    n = coding.sub
    d, dmin, s, m = (
        get(state.d, place.block),
        get(state.dmin, place.block),
        get(state.scale, place.sub),
        get(state.low, place.sub),
    )
    scale, low = d * s, dmin * m
    for j in range(n):
        q = to_f32(get(state.level, place.column + j))
        x = scale * q - low
        put(work.level, j, q)
        put(work.old, j, x)
        put(work.x, j, x)
        put(work.gradient, j, get(g, place.to + place.at + j))
    recode(work, place.at, tile, trial(scale, low), coding, False)
    for j in range(n):
        put(work.first_x, j, get(work.x, j))
        put(work.first_gradient, j, get(work.gradient, j))
        put(work.best_x, j, get(work.x, j))
        put(work.best_level, j, get(work.level, j))
    best = broadcast(f32(0))
    best_s, best_m, best_scale, best_low = s, m, scale, low
    for c in range(len(MOVES) if coding.dmin else 2):
        s2, m2, scale2, low2 = stepped(scale, low, s, m, d, dmin, MOVES[c], coding)
        for j in range(n):
            put(work.x, j, get(work.first_x, j))
            put(work.gradient, j, get(work.first_gradient, j))
        change = recode(work, place.at, tile, trial(scale2, low2), coding, True)
        better = change < best
        if any_lane(better):
            best = select(better, change, best)
            best_s, best_m = select(better, s2, best_s), select(better, m2, best_m)
            best_scale, best_low = select(better, scale2, best_scale), select(better, low2, best_low)
            for j in range(n):
                put(work.best_x, j, select(better, get(work.x, j), get(work.best_x, j)))
                put(work.best_level, j, select(better, get(work.level, j), get(work.best_level, j)))
    put(state.scale, place.sub, best_s)
    put(state.low, place.sub, best_m)
    if coding.least == coding.most:
        put(state.d, place.block, best_scale)
        if coding.dmin:
            put(state.dmin, place.block, -best_low)
    moved = best < f32(0)
    for j in range(n):
        change = get(work.old, j) - get(work.best_x, j)
        moved = moved | (change != f32(0))
        put(work.old, j, change)
        put(state.level, place.column + j, to_i8(to_i32(get(work.best_level, j))))
    if any_lane(moved):
        spread(work.old, place.at, n, tile.h, tile.columns, tile.columns, g, place.to)
        return True
    return False


@kernel(WRITE_F32, READ_F32, WRITE_F32, typeof(NOTHING), READ_F32, INT, INT, INT, typeof(CODING))
def feed(x: Any, w: Any, e: Any, state: Any, factor: Any, n: int, at: int, columns: int, coding: Any) -> None:
    """Give the columns of a tile levels in turn, each nearest to its weight and what the errors before it make of it.

    x: in lanes, `columns` numbers of each row: the weights with what the errors of earlier tiles add to them. In the
    end, by how much each level misses what was wanted of it.
    w, e: as in `descend`. factor: float32 [columns * columns]; row k has what the errors add to column k.
    """
    groups, sub = x.size // (columns * W), coding.sub
    for group in range(groups):
        column, to = group * n + at, group * columns
        for o in range(0, columns, sub):
            sub_at, block_at = (column + o) // sub, (column + o) // coding.block
            scale = get(state.d, block_at) * get(state.scale, sub_at)
            low = get(state.dmin, block_at) * get(state.low, sub_at)
            fits = scale != f32(0)
            reciprocal = select(fits, f32(1) / scale, f32(0))
            for j in range(o, o + sub):
                wanted = (get(x, to + j) + low) * reciprocal
                q = nearest_level(select(fits, wanted, f32(0)), coding)
                put(state.level, column + j, to_i8(to_i32(q)))
                value = scale * q - low
                error = get(w, column + j) - value
                put(e, column + j, error)
                put(x, to + j, get(x, to + j) - value)
                for k in range(j + 1, o + sub):
                    put(x, to + k, add_product(error, factor, k * columns + j, get(x, to + k)))
            for k in range(o + sub, columns, PANEL):
                add_products(e, column, factor, k * columns, columns, o, o + sub, x, to + k)


# ---- d and dmin of a block ----


class BlockFit(NamedTuple):
    """Numbers of a block in lanes, f32: a and b, of which x is d * a + dmin * b, and their products with H."""

    a: Any
    b: Any
    ha: Any
    hb: Any


@jitable
def step_of_d(d: Any, x: Any) -> Any:
    """From d to the float16 nearest to d + x; none if that changes the sign or overflows."""
    d2 = as_half(d + x)
    return select((absolute(d2) <= LARGEST_HALF) & (d2 * d > f32(0)), d2, d) - d


@jitable
def step_of_dmin(dmin: Any, y: Any, coding: Coding) -> Any:
    """The same from dmin, which may be zero, and below it in some formats."""
    dmin2 = as_half(dmin + y)
    if coding.positive:
        dmin2 = maximum(dmin2, f32(0))
    return select(absolute(dmin2) <= LARGEST_HALF, dmin2, dmin) - dmin


@jitable
def refit(state: State, place: Place, tile: Tile, g: Any, fit: BlockFit, coding: Coding) -> bool:
    """The d and dmin that are best for the levels, by least squares, if as float16 they are better than the old.

    b is the same in all of a sub-block, so that its products are with sums of H. Whether anything changed.
    """
    n, sub = coding.block, coding.sub
    zero = broadcast(f32(0))
    for j in range(n):
        put(fit.a, j, get(state.scale, place.sub + j // sub) * to_f32(get(state.level, place.column + j)))
    for k in range(n // sub):
        put(fit.b, k, -get(state.low, place.sub + k))
    for k in range(tile.columns):
        put(fit.ha, k, zero)
        put(fit.hb, k, zero)
    spread(fit.a, place.at, n, tile.h, tile.columns, tile.columns, fit.ha, 0)
    if coding.dmin:
        subs = tile.columns // sub
        spread(fit.b, place.at // sub, n // sub, tile.sums, subs, tile.columns, fit.hb, 0)
    aa, ab, bb, ga, gb = zero, zero, zero, zero, zero
    for j in range(n):
        a, b, grad = get(fit.a, j), get(fit.b, j // sub), get(g, place.to + place.at + j)
        aa = multiply_add(a, get(fit.ha, place.at + j), aa)
        ab = multiply_add(b, get(fit.ha, place.at + j), ab)
        bb = multiply_add(b, get(fit.hb, place.at + j), bb)
        ga = multiply_add(a, grad, ga)
        gb = multiply_add(b, grad, gb)
    d, dmin = get(state.d, place.block), get(state.dmin, place.block)
    det = aa * bb - ab * ab
    both = det > f32(1e-5) * aa * bb
    x = select(both, (ga * bb - gb * ab) / select(both, det, f32(1)), select(aa > zero, ga / aa, zero))
    x = step_of_d(d, x)
    y = step_of_dmin(dmin, select(bb > zero, (gb - x * ab) / bb, zero), coding)
    change = x * (x * aa - (ga + ga)) + y * (y * bb - (gb + gb)) + (x * y) * (ab + ab)
    # Rounded, one step alone may be better than both.
    alone = step_of_d(d, select(aa > zero, ga / aa, zero))
    change_alone = alone * (alone * aa - (ga + ga))
    better = change_alone < change
    x, y, change = select(better, alone, x), select(better, zero, y), select(better, change_alone, change)
    better = change < zero
    if not any_lane(better):
        return False
    x, y = select(better, x, zero), select(better, y, zero)
    put(state.d, place.block, d + x)
    put(state.dmin, place.block, dmin + y)
    for k in range(tile.columns):
        put(g, place.to + k, get(g, place.to + k) - (x * get(fit.ha, k) + y * get(fit.hb, k)))
    return True


# ---- one tile ----


@kernel(
    READ_F32, WRITE_F32, typeof(NOTHING), READ_F32, READ_F32, READ_F32, WRITE_F32, INT, INT, INT, INT, typeof(CODING)
)  # fmt: skip
def descend(
    w: Any, e: Any, state: Any, h: Any, sums: Any, inverse: Any, g: Any,
    n: int, at: int, columns: int, passes: int, coding: Any,
) -> None:  # fmt: skip
    """Refine columns `at` to `at + columns - 1` of all groups of rows, `passes` times or until nothing changes.

    w, e: in lanes, n numbers of each row: the weights and the errors, which follow. h, sums, inverse: see Tile. g: in
    lanes, the gradient of the tile, which is used up.
    """
    sub, block, tile = coding.sub, coding.block, Tile(h, sums, inverse, columns)
    work, fit = (
        room_of(sub),
        BlockFit(room(block, f32), room(block // sub, f32), room(columns, f32), room(columns, f32)),
    )
    for group in range(g.size // (columns * W)):
        column, to = group * n + at, group * columns
        for _ in range(passes):
            changed = False
            for k in range(0, columns, sub):
                here = column + k
                place = Place(k, to, here, here // sub, here // block)
                changed |= visit(state, place, tile, g, work, coding)
            for k in range(0, columns, block):
                here = column + k
                place = Place(k, to, here, here // sub, here // block)
                changed |= refit(state, place, tile, g, fit, coding)
            if not changed:
                break
        for j in range(columns):
            here = column + j
            scale = get(state.d, here // block) * get(state.scale, here // sub)
            low = get(state.dmin, here // block) * get(state.low, here // sub)
            put(e, here, get(w, here) - (scale * to_f32(get(state.level, here)) - low))
