"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: groups of weights as signs times points of a lattice.

One search serves the five types; what differs is data (iq_types.py). A super-block of 256 weights is one lane.
Its sub-blocks are searched one after the other: for every scale tried, the magnitudes are rounded to odd multiples of
the scale, moved to the best of the nearest grid points, and judged by sum(w * x * q)**2 / sum(w * q * q); then the best
scale is refined. The order of float32 operations is that of quantize_row_iq2_*_impl and quantize_row_iq3_*_impl in
ggml-quants.c.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ggufsmith.quantize.grids import CHUNK
from ggufsmith.quantize.kernels.blocks import from_lanes, store_half, to_lanes
from ggufsmith.quantize.kernels.iq_common import nearest_integer
from ggufsmith.quantize.kernels.iq_nearest import nearest_point, nearest_points
from ggufsmith.quantize.kernels.iq_rows import fill, look_up, row
from ggufsmith.quantize.kernels.iq_types import ALL_IF_ANY, ALWAYS, BLOCK, OFF_GRID, Grid, Lattice, Layout
from ggufsmith.quantize.kernels.search import positive_scale
from ggufsmith.quantize.simd import (
    TILE,
    W,
    broadcast,
    clamp,
    f32,
    f32_to_half,
    gather,
    jitable,
    load,
    maximum,
    scratch,
    select,
    sqrt,
    store,
    to_f32,
    to_i32,
    to_u8,
    transpose,
)

SLACK = 16  # a row of 16 is read at each group of 4 or 8


class Room(NamedTuple):
    """Scratch of one call; W numbers, one per lane, of each thing counted here.

    x, importance: of 256 weights. weight, root, magnitude, product: of the weights of a sub-block: the weight w,
    sqrt(w), |x| and w * |x|. scales: of each try. vector: of each try and group, the number of the rounded vector,
    later the slot of its grid point. best: of each group, the slot in the best try. point, sign, scale, alive: of each
    group, eight weights, sub-block and sub-block. words, block: the block's bits and bytes. piece, piece_root,
    piece_scales, piece_vector: |x|, sqrt(w), scales and vector again, but all numbers of a lane together. terms: see
    iq_nearest.
    """

    x: Any
    importance: Any
    weight: Any
    root: Any
    magnitude: Any
    product: Any
    scales: Any
    vector: Any
    best: Any
    point: Any
    sign: Any
    scale: Any
    alive: Any
    words: Any
    block: Any
    piece: Any
    piece_root: Any
    piece_scales: Any
    piece_vector: Any
    terms: Any


@jitable
def rounded_up(tries: int) -> int:
    """Tries in whole rows of 16."""
    return -(-tries // CHUNK) * CHUNK


@jitable
def make_room(spec: Lattice, layout: Layout, weighted: bool, dims: int, levels: int) -> Room:
    groups, tries = spec.size // dims, rounded_up(spec.tries)
    return Room(
        scratch(BLOCK * W, np.float32),
        scratch(BLOCK * W if weighted else 0, np.float32),
        scratch(spec.size * W, np.float32),
        scratch(spec.size * W, np.float32),
        scratch(spec.size * W, np.float32),
        scratch(2 * spec.size * W, np.float32),
        scratch(tries * W, np.float32),
        scratch(tries * groups * W, np.int32),
        scratch(groups * W, np.int32),
        scratch(BLOCK // dims * W, np.int32),
        scratch(BLOCK // 8 * W, np.int32),
        scratch(BLOCK // spec.size * W, np.float32),
        scratch(BLOCK // spec.size * W, np.int32),
        scratch(layout.words * W, np.int32),
        scratch((2 + 4 * layout.words) * W, np.uint8),
        scratch(spec.size * W + SLACK, np.float32),
        scratch(spec.size * W + SLACK, np.float32),
        scratch(tries * W, np.float32),
        scratch(tries * groups * W, np.int32),
        scratch(dims * levels * CHUNK, np.float32),
    )


@jitable
def mean_square(x: Any, spread: Any) -> Any:
    total = broadcast(f32(0))
    for i in range(BLOCK):
        v = load(x, i * W)
        total = total + v * v
    return spread * total / f32(BLOCK)


@jitable
def prepare(spec: Lattice, room: Room, start: int, mean: Any) -> Any:
    """Weights, magnitudes and signs of the sub-block at `start`; returns the largest magnitude of each lane.

    With `even`, where eight weights have an odd number of minus signs, the one that matters least gets the wrong sign,
    and so a negative magnitude.
    """
    largest = broadcast(f32(0))
    for k in range(0, spec.size, 8):
        signs, odd, victim = broadcast(0), broadcast(0), broadcast(0)
        lowest = broadcast(f32(0))
        for i in range(8):
            v = load(room.x, (start + k + i) * W)
            if room.importance.size > 0:
                w = load(room.importance, (start + k + i) * W) * sqrt(mean + v * v)
            elif spec.floor > f32(0):
                w = spec.floor * mean + v * v
            else:
                w = v * v
            negative = v < f32(0)
            signs = signs | select(negative, broadcast(1 << i), 0)
            odd = odd ^ to_i32(negative)
            price = w * v * v
            if i == 0:
                lowest = price
            victim = select(price < lowest, broadcast(i), victim)
            lowest = select(price < lowest, price, lowest)
            store(room.weight, (k + i) * W, w)
            store(room.root, (k + i) * W, sqrt(w))
            store(room.magnitude, (k + i) * W, select(negative, -v, v))
        if spec.even:
            signs = (signs ^ select(odd != 0, broadcast(1) << victim, 0)) & 127
        store(room.sign, (start + k) // 8 * W, signs)
        for i in range(8):
            v = load(room.magnitude, (k + i) * W)
            if spec.even:
                v = select((odd != 0) & (victim == i), -v, v)
            store(room.magnitude, (k + i) * W, v)
            store(room.product, (k + i) * W, load(room.weight, (k + i) * W) * v)
            largest = v if k + i == 0 else maximum(largest, v)
    from_lanes(room.magnitude, spec.size, room.piece, 0)
    from_lanes(room.root, spec.size, room.piece_root, 0)
    return largest


@jitable
def put(words: Any, bit: int, value: Any) -> None:
    """Write a value of each lane at a bit of its block; it lies within one word of 32 bits."""
    at = bit // 32 * W
    store(words, at, load(words, at) | (value << (bit % 32)))


@jitable
def write_blocks(room: Room, half: Any, count: int, out: Any, at: int) -> None:
    """Blocks of a float16 scale and `count` words."""
    store_half(room.block, 0, half)
    for i in range(count):
        word = load(room.words, i * W)
        for byte in range(4):
            store(room.block, (2 + 4 * i + byte) * W, to_u8(word >> (8 * byte)))
    from_lanes(room.block, 2 + 4 * count, out, at)


def encoder(dims: int, levels: int) -> Callable[..., None]:
    """The search for lattices of this shape, as Codec.weighted; its tables come after `first`."""
    top = f32(2 * levels - 1)
    nearest = nearest_point(dims, levels)
    fill_terms, nearest_of_tries = nearest_points(dims, levels)

    @jitable
    def rounded(magnitude: Any, at: int, inverse: Any) -> Any:
        """The number of the vector of codes for which (2 * code + 1) * scale is nearest to the group at `at`."""
        u = broadcast(0)
        for i in range(dims - 1, -1, -1):
            code = nearest_integer(f32(0.5) * (inverse * load(magnitude, (at + i) * W) - f32(1)))
            u = u * levels + clamp(code, 0, levels - 1)
        return u

    @jitable
    def points_of_rows(spec: Lattice, grid: Grid, room: Room, tries: int, alive: Any) -> None:
        """room.vector -> slots of the nearest grid points, for `tries` scales, all groups, and the lanes alive."""
        groups, length = spec.size // dims, rounded_up(tries)
        x, w, scales, vectors, terms = room.piece, room.piece_root, room.piece_scales, room.piece_vector, room.terms
        for lane in range(0, W, TILE):
            for t in range(0, length, TILE):
                transpose(room.scales, t * W + lane, W, scales, lane * length + t, length)
                for g in range(groups):
                    here, there = (t * groups + g) * W + lane, (lane * groups + g) * length + t
                    transpose(room.vector, here, groups * W, vectors, there, groups * length)
        for lane in range(W):
            if alive[lane] == 0:
                continue
            for t in range(0, tries, CHUNK):
                for g in range(groups):
                    fill_terms(x, w, lane * spec.size + g * dims, scales, lane * length + t, terms)
                    to = (lane * groups + g) * length + t
                    nearest_of_tries(terms, grid, vectors, to, min(CHUNK, tries - t))
        for lane in range(0, W, TILE):
            for t in range(0, length, TILE):
                for g in range(groups):
                    here, there = (t * groups + g) * W + lane, (lane * groups + g) * length + t
                    transpose(vectors, there, groups * length, room.vector, here, groups * W)

    @jitable
    def points_one_by_one(spec: Lattice, grid: Grid, room: Room, first: int, stop: int, wanted: Any) -> None:
        """The same for tries first .. stop - 1, of the groups and lanes that are wanted."""
        groups = spec.size // dims
        near_i, far_i = row(grid.position, 0), row(grid.position, 16)
        near_q, far_q = row(grid.level, 0), row(grid.level, 16)
        for lane in range(W):
            for g in range(groups):
                if wanted[g * W + lane] == 0:
                    continue
                at = lane * spec.size + g * dims
                x, w = row(room.piece, at), row(room.piece_root, at)
                near_x, far_x, near_w, far_w = (
                    look_up(x, near_i),
                    look_up(x, far_i),
                    look_up(w, near_i),
                    look_up(w, far_i),
                )
                for t in range(first, stop):
                    scale = fill(room.scales[t * W + lane])
                    near, far = scale * near_q - near_x, scale * far_q - far_x
                    cell = (t * groups + g) * W + lane
                    u = room.vector[cell]
                    slot = nearest(grid.packed, grid.starts[u], grid.stops[u], near_w * near * near, far_w * far * far)
                    room.vector[cell] = slot

    @jitable
    def judge(spec: Lattice, grid: Grid, room: Room, at: int) -> Any:
        """sum(w * x * q) and sum(w * q * q) for the points whose slots are at room.vector[at:]."""
        sum_qx, sum_q2 = broadcast(f32(0)), broadcast(f32(0))
        for g in range(spec.size // dims):
            odd = gather(grid.odd, load(room.vector, at + g * W))
            for i in range(dims):
                q = to_f32((odd >> (4 * i)) & 15)
                sum_qx = sum_qx + load(room.product, (g * dims + i) * W) * q
                sum_q2 = sum_q2 + load(room.weight, (g * dims + i) * W) * q * q
        return sum_qx, sum_q2

    @jitable
    def search(spec: Lattice, grid: Grid, room: Room, start: int, mean: Any, wanted: Any) -> Any:
        """The scale of the sub-block at `start`, which may be zero; its points and signs go to room.point and
        room.sign.
        """
        groups = spec.size // dims
        largest = prepare(spec, room, start, mean)
        alive = largest >= spec.least
        if spec.fit:
            scale = positive_scale(
                room.magnitude, 0, room.weight, 0, room.product, spec.size * W, spec.size, f32(levels + 1)
            )
            reference = scale * f32(levels)
            alive = alive & (reference > f32(0))
        else:
            scale = largest / top
            reference = largest
        for t in range(rounded_up(spec.tries)):  # what is beyond fills a row, with ordinary numbers
            inverse = (top + f32(t - spec.tries // 2) * spec.step) / reference
            store(room.scales, t * W, f32(1) / inverse)
            for g in range(groups):
                store(room.vector, (t * groups + g) * W, rounded(room.magnitude, g * dims, inverse))
        in_rows = spec.tries if spec.tries % CHUNK >= CHUNK // 2 else spec.tries // CHUNK * CHUNK
        for g in range(groups):
            store(wanted, g * W, to_i32(alive))
            store(room.best, g * W, broadcast(grid.starts[0] * CHUNK))
        points_of_rows(spec, grid, room, in_rows, wanted)
        points_one_by_one(spec, grid, room, in_rows, spec.tries, wanted)
        best, improved = broadcast(f32(0)), largest < largest
        for t in range(spec.tries):
            sum_qx, sum_q2 = judge(spec, grid, room, t * groups * W)
            better = (sum_q2 > f32(0)) & (sum_qx * sum_qx > best * sum_q2)
            scale = select(better, sum_qx / sum_q2, scale)
            best = select(better, scale * sum_qx, best)
            improved = improved | better
            for g in range(groups):
                slot = load(room.vector, (t * groups + g) * W)
                store(room.best, g * W, select(better, slot, load(room.best, g * W)))

        # Once more with the best scale.
        inverse = f32(1) / scale
        on_grid = CHUNK * grid.size  # slots below belong to vectors on the grid
        again = largest < largest
        for g in range(groups):
            again = again | (load(room.best, g * W) >= on_grid)
        if spec.again == ALL_IF_ANY:
            again = again | ~improved
        if spec.again == ALWAYS:
            again = again | ~again
        again = again & alive & (scale > f32(0))
        store(room.alive, start // spec.size * W, to_i32(alive))
        store(room.scales, 0, scale)
        for g in range(groups):
            slot = load(room.best, g * W)
            here = again & (slot >= on_grid) if spec.again == OFF_GRID else again
            store(wanted, g * W, to_i32(here))
            store(room.vector, g * W, select(here, rounded(room.magnitude, g * dims, inverse), slot))
        points_one_by_one(spec, grid, room, 0, 1, wanted)
        sum_qx, sum_q2 = judge(spec, grid, room, 0)
        scale = select(again & (sum_q2 > f32(0)), sum_qx / sum_q2, scale)

        mirrored = alive & (scale < f32(0))
        for k in range(start // 8, (start + spec.size) // 8):
            signs = load(room.sign, k * W)
            signs = select(mirrored, ~signs & (127 if spec.even else 255), signs)
            store(room.sign, k * W, select(alive, signs, 0))
        for g in range(groups):
            point = gather(grid.points, load(room.vector, g * W))
            store(room.point, (start // dims + g) * W, select(alive, point, 0))
        return select(alive, select(mirrored, -scale, scale), f32(0))

    @jitable
    def encode(x: Any, out: Any, importance: Any, first: int, spec: Lattice, layout: Layout, grid: Grid) -> None:
        weighted = importance.size > 0
        room = make_room(spec, layout, weighted, dims, levels)
        wanted = scratch(spec.size // dims * W, np.int32)
        per_row = importance.size // BLOCK - W if weighted else 1
        for block in range(0, x.size // BLOCK, W):
            to_lanes(x, block * BLOCK, BLOCK, room.x, 0)
            if weighted:
                to_lanes(importance, (first + block) % per_row * BLOCK, BLOCK, room.importance, 0)
            mean = mean_square(room.x, spec.spread)
            highest = broadcast(f32(0))
            for sub in range(BLOCK // spec.size):
                scale = search(spec, grid, room, sub * spec.size, mean, wanted)
                store(room.scale, sub * W, scale)
                highest = maximum(highest, scale)

            for i in range(layout.words):
                store(room.words, i * W, broadcast(0))
            for g in range(BLOCK // dims):
                point = load(room.point, g * W)
                put(room.words, layout.low[g], point & ((1 << layout.width) - 1))
                put(room.words, layout.high[g], point >> layout.width)
            for k in range(BLOCK // 8):
                put(room.words, layout.sign[k], load(room.sign, k * W))
            unit = highest / f32(31)
            inverse, alive = f32(1) / unit, highest != f32(0)
            for sub in range(BLOCK // spec.size):
                code = clamp(nearest_integer(f32(0.5) * (inverse * load(room.scale, sub * W) - f32(1))), 0, 15)
                put(room.words, layout.scale[sub], select(alive, code, 0))
            if spec.clear:
                for i in range(layout.words):
                    store(room.words, i * W, select(alive, load(room.words, i * W), 0))
            half = f32_to_half(select(alive, unit * spec.nudge, f32(0)))
            write_blocks(room, half, layout.words, out, block * (2 + 4 * layout.words))

    return encode
