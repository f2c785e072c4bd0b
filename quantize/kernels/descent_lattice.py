"""The steps of descent.py for IQ1, IQ2 and IQ3 types, whose weights are in groups: points of a lattice, with signs.

A group's four or eight weights are chosen together. What is best for them if they could be any numbers tells signs and
a vector of codes; of the lattice's points that are nearest to those codes, each is tried under the group's part of H.
Where groups share a sign, as those of IQ1 do, both are tried.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ggufsmith.quantize import grids
from ggufsmith.quantize.cache import INT, READ_F32, WRITE_F32, kernel, typeof
from ggufsmith.quantize.kernels.blocks import get, put, room
from ggufsmith.quantize.kernels.descent import (
    CODING,
    NOTHING,
    BlockFit,
    Coding,
    Place,
    State,
    Tile,
    refit,
)
from ggufsmith.quantize.kernels.tile_sums import add_product, add_products, spread
from ggufsmith.quantize.lattice_fields import LatticeLayout, ShiftedLayout, SignedLayout
from ggufsmith.quantize.simd import (
    W,
    absolute,
    any_lane,
    broadcast,
    clamp,
    f32,
    gather,
    jitable,
    multiply_add,
    nearest_small,
    select,
    to_f32,
    to_i8,
    to_i32,
)

TRIED = 32  # points for a group
REPEATS = 2
# Of a sub-block: a step of its scale, in units of its code; and whether the sign that its groups share changes.
TRIALS = ((1.0, False), (-1.0, False), (2.0, False), (-2.0, False), (0.0, True))
FAR = f32(3e38)
ANY = -1  # the number of minus signs may be even or odd


class LatticeCoding(NamedTuple):
    """A format of fields.LatticeLayout, as the kernels take it.

    dims, base: weights of a point, and values that one can have: first, first + step, and so on; `extra` more for the
    last. pairs: whether eight weights have an even number of minus signs. shared: groups that share a sign; 0: each
    weight has its own. unit: the step of a scale.
    near: int32 [base ** dims * TRIED], for a vector of codes the points nearest to it: codes of four bits each. Where
    signs are shared, those for minus follow.
    """

    dims: int
    base: int
    first: np.float32
    step: np.float32
    extra: np.float32
    pairs: bool
    shared: int
    unit: np.float32
    near: Any


@cache
def nearest_points(layout: LatticeLayout) -> Any:
    """`LatticeCoding.near` of a lattice."""
    if isinstance(layout, SignedLayout):
        return nearest_to(layout.digit[layout.points].astype(np.int64), layout.levels)
    codes = layout.points.astype(np.int64) + 1
    return np.concatenate([nearest_to(codes, layout.levels), nearest_to(2 - codes, layout.levels)])


def nearest_to(codes: Any, levels: Any) -> Any:
    """Of points with these codes, int64 [points, dims], those nearest to every vector of levels."""
    base, dims = len(levels), codes.shape[1]
    every = np.arange(base**dims)[:, None] // base ** np.arange(dims) % base
    a, b = levels[every], levels[codes]
    distance = (b * b).sum(1) - 2 * a @ b.T  # small integers, which float32 holds exactly
    order = np.argsort(distance, axis=1, kind="stable")[:, :TRIED]
    return grids.nibbles(codes)[order].reshape(-1)


def lattice_coding(layout: LatticeLayout) -> LatticeCoding:
    """The record of a format."""
    first, second, last = layout.levels[0], layout.levels[1], layout.levels[-1]
    step = f32(second - first)
    extra = f32(last - (first + step * (layout.base - 1)))
    pairs = isinstance(layout, SignedLayout) and layout.pairs
    shared = layout.shared if isinstance(layout, ShiftedLayout) else 0
    near = nearest_points(layout)
    return LatticeCoding(layout.dims, layout.base, first, step, extra, pairs, shared, f32(layout.unit), near)


LATTICE = LatticeCoding(8, 3, f32(8), f32(17), f32(1), True, 0, f32(0.25), np.empty(0, np.int32))


class PointGroup(NamedTuple):
    """Numbers of a group in lanes, f32: what it is, its gradient, what would be best, signs, and changes."""

    x: Any
    gradient: Any
    best: Any
    sign: Any
    change: Any


@jitable
def group_of(n: int) -> PointGroup:
    """Room for n weights."""
    return PointGroup(room(n, f32), room(n, f32), room(n, f32), room(n, f32), room(n, f32))


@jitable
def value_of(packed: Any, a: int, coding: LatticeCoding) -> Any:
    """The value of weight a of a point."""
    code = to_f32((packed >> (4 * a)) & 15)
    last = code == f32(coding.base - 1)
    return code * coding.step + select(last, broadcast(coding.first + coding.extra), coding.first)


@jitable
def choose(
    group: PointGroup, h: Any, row: int, stride: int, scale: Any, odd: Any, free: bool, coding: LatticeCoding
) -> Any:
    """The point for a group, as its codes, and what it adds to the loss; its signs are in `group.sign`.

    h: the group's part of H begins at `row`; its rows are `stride` apart. odd: i32, 1 where the number of minus signs
    has to be odd, 0 where even; it may be any if `free`. Where signs are shared, 1 where it is minus.
    """
    dims = coding.dims
    reciprocal = select(scale != f32(0), f32(1) / scale, f32(0))
    minus, least, where = broadcast(0), broadcast(FAR), broadcast(0)
    if coding.shared > 0:
        common = select(odd == 1, f32(-1), broadcast(f32(1)))
        for a in range(dims):
            put(group.sign, a, common)
            put(group.best, a, get(group.best, a) * reciprocal * common)
    for a in range(0 if coding.shared > 0 else dims):
        t = get(group.best, a) * reciprocal
        negative = t < f32(0)
        put(group.sign, a, select(negative, f32(-1), broadcast(f32(1))))
        put(group.best, a, absolute(t))
        minus = minus + to_i32(negative)
        cost = absolute(t) * h[row + a * stride + a]
        smaller = cost < least
        least, where = select(smaller, cost, least), select(smaller, broadcast(a), where)
    if not free:
        wrong = (minus & 1) != odd
        for a in range(dims):
            flip = wrong & (where == a)
            put(group.sign, a, select(flip, -get(group.sign, a), get(group.sign, a)))
            put(group.best, a, select(flip, f32(0), get(group.best, a)))
    vector, power = broadcast(0), 1
    for a in range(dims):
        code = (get(group.best, a) - coding.first) * (f32(1) / coding.step)
        vector = vector + to_i32(nearest_small(clamp(code, f32(0), f32(coding.base - 1)))) * power
        power *= coding.base
        put(group.best, a, get(group.sign, a) * scale)
    if coding.shared > 0:  # minus: in the second half of the table
        vector = vector + odd * power
    vector = vector * TRIED
    found, point = broadcast(FAR), broadcast(0)
    for k in range(TRIED):
        packed = gather(coding.near, vector + k)
        total = broadcast(f32(0))
        for a in range(dims):
            change = get(group.x, a) - get(group.best, a) * value_of(packed, a, coding)
            put(group.change, a, change)
            at = row + a * stride
            part = get(group.gradient, a)
            for b in range(a):
                part = add_product(get(group.change, b), h, at + b, part)
            total = multiply_add(change, add_product(change, h, at + a, part + part), total)
        better = total < found
        found, point = select(better, total, found), select(better, packed, point)
    return found, point


@jitable
def shared_sign(level: Any) -> Any:
    """i32, 1 where a level of IQ1 is one less than a multiple of eight: its sign is minus."""
    whole = to_i32(level) + 9
    return to_i32((whole & 7) == 0)


@jitable
def minus_signs(level: Any, at: int, n: int) -> Any:
    """Whether n levels have an odd number of minus signs: i32, 1 or 0."""
    count = broadcast(0)
    for a in range(n):
        count = count + to_i32(get(level, at + a) < f32(0))
    return count & 1


class LatticeRoom(NamedTuple):
    """As descent.Room, with levels where trials start."""

    old: Any
    x: Any
    level: Any
    gradient: Any
    first_x: Any
    first_level: Any
    first_gradient: Any
    best_x: Any
    best_level: Any
    spare_x: Any
    spare_level: Any
    spare_gradient: Any


@jitable
def lattice_room(n: int) -> LatticeRoom:
    """For sub-blocks of n weights."""
    return LatticeRoom(
        room(n, f32),
        room(n, f32),
        room(n, f32),
        room(n, f32),
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
def repoint_group(
    work: LatticeRoom, group: PointGroup, o: int, at: int, n: int, tile: Tile, scale: Any, odd: Any,
    coding: LatticeCoding, forced: bool,
) -> Any:  # fmt: skip
    """Choose the point of the group of a sub-block that begins at o; returns what this adds to the loss.

    x, level and gradient of `work` follow. odd: see `choose`. forced: whatever it adds.
    """
    dims, h, columns = coding.dims, tile.h, tile.columns
    row = (at + o) * columns + at + o
    inverse = (at + o) * dims  # of the group's block in tile.inverse
    for a in range(dims):
        best = get(work.x, o + a)
        for b in range(dims):
            best = add_product(get(work.gradient, o + b), tile.inverse, inverse + a * dims + b, best)
        put(group.best, a, best)
        put(group.x, a, get(work.x, o + a))
        put(group.gradient, a, get(work.gradient, o + a))
    total, point = choose(group, h, row, columns, scale, odd, not coding.pairs, coding)
    fits = scale != f32(0)
    take = fits if forced else fits & (total < f32(0))
    for a in range(dims):
        level = select(take, get(group.sign, a) * value_of(point, a, coding), get(work.level, o + a))
        put(group.change, a, get(work.x, o + a) - level * scale)
        put(work.level, o + a, level)
        put(work.x, o + a, level * scale)
    if any_lane(take):
        for i in range(n):
            lg = get(work.gradient, i)
            for a in range(dims):
                lg = add_product(get(group.change, a), h, (at + o + a) * columns + at + i, lg)
            put(work.gradient, i, lg)
    return select(take, total, f32(0))


@jitable
def repoint(
    work: LatticeRoom, group: PointGroup, at: int, n: int, tile: Tile, scale: Any, minus: Any, coding: LatticeCoding,
    forced: bool,
) -> Any:  # fmt: skip
    """Choose the points of a sub-block in turn; returns what this adds to the loss.

    minus: i32, 1 where the sign of all groups is minus, if they share it. forced: x is not of this scale or sign yet,
    so that every group has to change.
    """
    dims = coding.dims
    split = coding.pairs and dims == 4  # eight weights, of which the signs of four depend on those of the others
    added = broadcast(f32(0))
    for o in range(0, n, dims):
        odd = minus_signs(work.level, o ^ 4, 4) if split else minus
        if coding.shared == 1:
            odd = shared_sign(get(work.level, o))
        added = added + repoint_group(work, group, o, at, n, tile, scale, odd, coding, forced)
        if coding.shared == 1:
            odd = 1 - shared_sign(get(work.level, o))
            added = added + repoint_group(work, group, o, at, n, tile, scale, odd, coding, False)
    for o in range(0, n if split else 0, 8):
        for i in range(n):
            put(work.spare_x, i, get(work.x, i))
            put(work.spare_level, i, get(work.level, i))
            put(work.spare_gradient, i, get(work.gradient, i))
        odd = 1 - minus_signs(work.level, o, 4)
        change = repoint_group(work, group, o, at, n, tile, scale, odd, coding, True)
        change = change + repoint_group(work, group, o + 4, at, n, tile, scale, odd, coding, True)
        better = change < f32(0)
        added = added + select(better, change, f32(0))
        for i in range(n):
            put(work.x, i, select(better, get(work.x, i), get(work.spare_x, i)))
            put(work.level, i, select(better, get(work.level, i), get(work.spare_level, i)))
            put(work.gradient, i, select(better, get(work.gradient, i), get(work.spare_gradient, i)))
    return added


@jitable
def revisit(
    state: State,
    place: Place,
    tile: Tile,
    g: Any,
    work: LatticeRoom,
    group: PointGroup,
    coding: Coding,
    lattice: LatticeCoding,
) -> bool:
    """As descent.visit: choose the points of a sub-block, try other scales, and keep the best."""
    n = coding.sub
    d, s = get(state.d, place.block), get(state.scale, place.sub)
    for j in range(n):
        level = to_f32(get(state.level, place.column + j))
        put(work.level, j, level)
        put(work.old, j, level * (d * s))
        put(work.x, j, level * (d * s))
        put(work.gradient, j, get(g, place.to + place.at + j))
    minus = shared_sign(get(work.level, 0)) if lattice.shared > 0 else broadcast(0)
    repoint(work, group, place.at, n, tile, d * s, minus, lattice, False)
    for j in range(n):
        put(work.first_x, j, get(work.x, j))
        put(work.first_level, j, get(work.level, j))
        put(work.first_gradient, j, get(work.gradient, j))
        put(work.best_x, j, get(work.x, j))
        put(work.best_level, j, get(work.level, j))
    best, best_s = broadcast(f32(0)), s
    for c in range(len(TRIALS) if lattice.shared > 1 else len(TRIALS) - 1):
        step, other = TRIALS[c]
        s2 = clamp(s + f32(step) * lattice.unit, coding.least, coding.most)
        sign = 1 - minus if other else minus
        for j in range(n):
            put(work.x, j, get(work.first_x, j))
            put(work.level, j, get(work.first_level, j))
            put(work.gradient, j, get(work.first_gradient, j))
        change = broadcast(f32(0))
        for repeat in range(REPEATS):
            change = change + repoint(work, group, place.at, n, tile, d * s2, sign, lattice, repeat == 0)
        better = (change < best) & ((s2 != s) | (sign != minus))
        if any_lane(better):
            best, best_s = select(better, change, best), select(better, s2, best_s)
            for j in range(n):
                put(work.best_x, j, select(better, get(work.x, j), get(work.best_x, j)))
                put(work.best_level, j, select(better, get(work.level, j), get(work.best_level, j)))
    put(state.scale, place.sub, best_s)
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


@kernel(
    READ_F32, WRITE_F32, typeof(NOTHING), READ_F32, READ_F32, READ_F32, WRITE_F32, INT, INT, INT, INT, typeof(CODING),
    typeof(LATTICE),
)  # fmt: skip
def descend_lattice(
    w: Any, e: Any, state: Any, h: Any, sums: Any, inverse: Any, g: Any,
    n: int, at: int, columns: int, passes: int, coding: Any, lattice: Any,
) -> None:  # fmt: skip
    """As descent.descend. inverse: float32 [columns / dims, dims, dims], of the groups' blocks of H."""
    sub, block, tile = coding.sub, coding.block, Tile(h, sums, inverse, columns)
    work, group = lattice_room(sub), group_of(lattice.dims)
    fit = BlockFit(room(block, f32), room(block // sub, f32), room(columns, f32), room(columns, f32))
    for rows in range(g.size // (columns * W)):
        column, to = rows * n + at, rows * columns
        for _ in range(passes):
            changed = False
            for k in range(0, columns, sub):
                here = column + k
                place = Place(k, to, here, here // sub, here // block)
                changed |= revisit(state, place, tile, g, work, group, coding, lattice)
            for k in range(0, columns, block):
                here = column + k
                place = Place(k, to, here, here // sub, here // block)
                changed |= refit(state, place, tile, g, fit, coding)
            if not changed:
                break
        for j in range(columns):
            here = column + j
            scale = get(state.d, here // block) * get(state.scale, here // sub)
            put(e, here, get(w, here) - scale * to_f32(get(state.level, here)))


@kernel(
    WRITE_F32, READ_F32, WRITE_F32, typeof(NOTHING), READ_F32, READ_F32, INT, INT, INT, typeof(CODING), typeof(LATTICE)
)  # fmt: skip
def feed_lattice(
    x: Any, w: Any, e: Any, state: Any, factor: Any, metric: Any, n: int, at: int, columns: int, coding: Any,
    lattice: Any,
) -> None:  # fmt: skip
    """As descent.feed, a group at a time. metric: float32 [columns / dims, dims, dims], what errors of a group add."""
    dims, group = lattice.dims, group_of(lattice.dims)
    for rows in range(x.size // (columns * W)):
        column, to = rows * n + at, rows * columns
        odd = broadcast(0)
        for o in range(0, columns, dims):
            here = column + o
            scale = get(state.d, here // coding.block) * get(state.scale, here // coding.sub)
            for a in range(dims):
                put(group.best, a, get(x, to + o + a))
                put(group.x, a, get(x, to + o + a))
                put(group.gradient, a, broadcast(f32(0)))
            if lattice.shared > 0:  # as ggml's search has it
                odd = shared_sign(to_f32(get(state.level, here)))
            free = not lattice.pairs or (dims == 4 and o % 8 == 0)
            _, point = choose(group, metric, o * dims, dims, scale, odd, free, lattice)
            minus = broadcast(0)
            for a in range(dims):
                level = get(group.sign, a) * value_of(point, a, lattice)
                minus = minus + to_i32(level < f32(0))
                put(state.level, here + a, to_i8(to_i32(level)))
                put(e, here + a, get(w, here + a) - level * scale)
                missed = get(x, to + o + a) - level * scale
                for b in range(a):
                    missed = add_product(get(e, here + b), factor, (o + a) * columns + o + b, missed)
                put(x, to + o + a, missed)
            odd = (minus & 1) if lattice.pairs and dims == 4 and o % 8 == 0 else broadcast(0)
            for k in range(o + dims, columns, 4):
                add_products(e, column, factor, k * columns, columns, o, o + dims, x, to + k)
