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
from ggufsmith.quantize.kernels import Steering
from ggufsmith.quantize.kernels.blocks import (
    QK_K,
    cell,
    from_lanes,
    get,
    put,
    put_half,
    room,
    to_lanes,
)
from ggufsmith.quantize.kernels.common import nearest_integer, place_of, square_sum
from ggufsmith.quantize.kernels.iq_nearest import nearest_point, nearest_points
from ggufsmith.quantize.kernels.iq_rows import fill, look_up, row
from ggufsmith.quantize.kernels.iq_types import ALL_IF_ANY, ALWAYS, D_SIZE, OFF_GRID, BitLayout, Grid, Lattice
from ggufsmith.quantize.kernels.search import positive_scale
from ggufsmith.quantize.simd import (
    TILE,
    W,
    broadcast,
    clamp,
    f32,
    gather,
    jitable,
    maximum,
    scratch,
    select,
    sqrt,
    to_f32,
    to_i32,
    to_u8,
    transpose,
)

SLACK = 16  # a row of 16 is read at each group of 4 or 8


class Workspace(NamedTuple):
    """Scratch of one call. In lanes, so that each counts what one block has of it:

    x, importance: of 256 weights. weight, root, magnitude, product: of the weights of a sub-block: the weight w,
    sqrt(w), |x| and w * |x|. scales: of each try. vector: of each try and group, the number of the rounded vector,
    later the slot of its grid point. best: of each group, the slot in the best try. wanted: of each group, whether its
    point is looked for. point, sign, scale: of each group, eight weights and sub-block. words, block: the block's bits
    and bytes.

    Not in lanes: piece, piece_root, piece_scales, piece_vector: |x|, sqrt(w), scales and vector again, but all numbers
    of a lane together. terms: see iq_nearest.
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
    wanted: Any
    point: Any
    sign: Any
    scale: Any
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
def workspace(spec: Lattice, layout: BitLayout, weighted: bool, dims: int, levels: int) -> Workspace:
    """Room for a type whose groups have `dims` weights of `levels` levels."""
    groups, tries = spec.size // dims, rounded_up(spec.tries)
    return Workspace(
        room(QK_K, f32),
        room(QK_K if weighted else 0, f32),
        room(spec.size, f32),
        room(spec.size, f32),
        room(spec.size, f32),
        room(2 * spec.size, f32),
        room(tries, f32),
        room(tries * groups, np.int32),
        room(groups, np.int32),
        room(groups, np.int32),
        room(QK_K // dims, np.int32),
        room(QK_K // 8, np.int32),
        room(QK_K // spec.size, f32),
        room(layout.words, np.int32),
        room(D_SIZE + 4 * layout.words, np.uint8),
        scratch(spec.size * W + SLACK, np.float32),
        scratch(spec.size * W + SLACK, np.float32),
        scratch(tries * W, np.float32),
        scratch(tries * groups * W, np.int32),
        scratch(dims * levels * CHUNK, np.float32),
    )


@jitable
def prepare(spec: Lattice, space: Workspace, start: int, mean: Any) -> Any:
    """Weights, magnitudes and signs of the sub-block that begins at weight `start`; returns the largest magnitude.

    With `even`, where eight weights have an odd number of minus signs, the one that matters least gets the wrong sign,
    and so a negative magnitude.
    """
    largest = broadcast(f32(0))
    for k in range(0, spec.size, 8):
        signs, odd, victim = broadcast(0), broadcast(0), broadcast(0)
        lowest = broadcast(f32(0))
        for i in range(8):
            v = get(space.x, start + k + i)
            if space.importance.size > 0:
                w = get(space.importance, start + k + i) * sqrt(mean + v * v)
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
            put(space.weight, k + i, w)
            put(space.root, k + i, sqrt(w))
            put(space.magnitude, k + i, select(negative, -v, v))
        if spec.even:
            signs = (signs ^ select(odd != 0, broadcast(1) << victim, 0)) & 127
        put(space.sign, (start + k) // 8, signs)
        for i in range(8):
            v = get(space.magnitude, k + i)
            if spec.even:
                v = select((odd != 0) & (victim == i), -v, v)
            put(space.magnitude, k + i, v)
            put(space.product, k + i, get(space.weight, k + i) * v)
            largest = v if k + i == 0 else maximum(largest, v)
    from_lanes(space.magnitude, spec.size, space.piece, 0)
    from_lanes(space.root, spec.size, space.piece_root, 0)
    return largest


@jitable
def put_bits(words: Any, bit: int, value: Any) -> None:
    """Write a value at a bit of each block; it lies within one word of 32 bits."""
    put(words, bit // 32, get(words, bit // 32) | (value << (bit % 32)))


@jitable
def write_blocks(space: Workspace, scale: Any, count: int, out: Any, at: int) -> None:
    """Blocks of a float16 scale and `count` words."""
    put_half(space.block, 0, scale)
    for i in range(count):
        word = get(space.words, i)
        for byte in range(4):
            put(space.block, D_SIZE + 4 * i + byte, to_u8(word >> (8 * byte)))
    from_lanes(space.block, D_SIZE + 4 * count, out, at)


def encoder(dims: int, levels: int) -> Callable[..., None]:
    """The search for lattices of this shape: encode(x, out, steer, spec, layout, grid)."""
    top = f32(2 * levels - 1)
    nearest = nearest_point(dims, levels)
    fill_terms, nearest_of_tries = nearest_points(dims, levels)

    @jitable
    def rounded(magnitude: Any, at: int, inverse: Any) -> Any:
        """The number of the vector of codes for which (2 * code + 1) * scale is nearest to the group at `at`."""
        u = broadcast(0)
        for i in range(dims - 1, -1, -1):
            code = nearest_integer(f32(0.5) * (inverse * get(magnitude, at + i) - f32(1)))
            u = u * levels + clamp(code, 0, levels - 1)
        return u

    @jitable
    def points_of_rows(spec: Lattice, grid: Grid, space: Workspace, tries: int) -> None:
        """space.vector -> slots of the nearest grid points, for `tries` scales, all groups, and the lanes wanted."""
        groups, length = spec.size // dims, rounded_up(tries)
        x, w, scales, vectors, terms = (
            space.piece,
            space.piece_root,
            space.piece_scales,
            space.piece_vector,
            space.terms,
        )
        for lane in range(0, W, TILE):
            for t in range(0, length, TILE):
                transpose(space.scales, cell(t, lane), W, scales, lane * length + t, length)
                for g in range(groups):
                    here, there = cell(t * groups + g, lane), (lane * groups + g) * length + t
                    transpose(space.vector, here, groups * W, vectors, there, groups * length)
        for lane in range(W):
            if space.wanted[cell(0, lane)] == 0:
                continue
            for t in range(0, tries, CHUNK):
                for g in range(groups):
                    fill_terms(x, w, lane * spec.size + g * dims, scales, lane * length + t, terms)
                    to = (lane * groups + g) * length + t
                    nearest_of_tries(terms, grid, vectors, to, min(CHUNK, tries - t))
        for lane in range(0, W, TILE):
            for t in range(0, length, TILE):
                for g in range(groups):
                    here, there = cell(t * groups + g, lane), (lane * groups + g) * length + t
                    transpose(vectors, there, groups * length, space.vector, here, groups * W)

    @jitable
    def points_one_by_one(spec: Lattice, grid: Grid, space: Workspace, first: int, stop: int) -> None:
        """The same for tries first .. stop - 1, of the groups that are wanted."""
        groups = spec.size // dims
        near_i, far_i = row(grid.position, 0), row(grid.position, 16)
        near_q, far_q = row(grid.level, 0), row(grid.level, 16)
        for lane in range(W):
            for g in range(groups):
                if space.wanted[cell(g, lane)] == 0:
                    continue
                at = lane * spec.size + g * dims
                x, w = row(space.piece, at), row(space.piece_root, at)
                near_x, far_x, near_w, far_w = (
                    look_up(x, near_i),
                    look_up(x, far_i),
                    look_up(w, near_i),
                    look_up(w, far_i),
                )
                for t in range(first, stop):
                    scale = fill(space.scales[cell(t, lane)])
                    near, far = scale * near_q - near_x, scale * far_q - far_x
                    here = cell(t * groups + g, lane)
                    u = space.vector[here]
                    slot = nearest(grid.packed, grid.starts[u], grid.stops[u], near_w * near * near, far_w * far * far)
                    space.vector[here] = slot

    @jitable
    def judge(spec: Lattice, grid: Grid, space: Workspace, t: int) -> Any:
        """sum(w * x * q) and sum(w * q * q) for the points of try t."""
        groups = spec.size // dims
        sum_qx, sum_q2 = broadcast(f32(0)), broadcast(f32(0))
        for g in range(groups):
            odd = gather(grid.odd, get(space.vector, t * groups + g))
            for i in range(dims):
                q = to_f32((odd >> (4 * i)) & 15)
                sum_qx = sum_qx + get(space.product, g * dims + i) * q
                sum_q2 = sum_q2 + get(space.weight, g * dims + i) * q * q
        return sum_qx, sum_q2

    @jitable
    def search(spec: Lattice, grid: Grid, space: Workspace, start: int, mean: Any) -> Any:
        """The scale of the sub-block that begins at weight `start`, which may be zero; its points and signs go to
        space.point and space.sign.
        """
        groups = spec.size // dims
        largest = prepare(spec, space, start, mean)
        alive = largest >= spec.least
        if spec.fit:
            scale = positive_scale(
                space.magnitude, 0, space.weight, 0, space.product, spec.size, spec.size, f32(levels + 1)
            )
            reference = scale * f32(levels)
            alive = alive & (reference > f32(0))
        else:
            scale = largest / top
            reference = largest
        for t in range(rounded_up(spec.tries)):  # what is beyond fills a row, with ordinary numbers
            inverse = (top + f32(t - spec.tries // 2) * spec.step) / reference
            put(space.scales, t, f32(1) / inverse)
            for g in range(groups):
                put(space.vector, t * groups + g, rounded(space.magnitude, g * dims, inverse))
        in_rows = spec.tries if spec.tries % CHUNK >= CHUNK // 2 else spec.tries // CHUNK * CHUNK
        for g in range(groups):
            put(space.wanted, g, to_i32(alive))
            put(space.best, g, broadcast(grid.starts[0] * CHUNK))
        points_of_rows(spec, grid, space, in_rows)
        points_one_by_one(spec, grid, space, in_rows, spec.tries)
        best, improved = broadcast(f32(0)), largest < largest
        for t in range(spec.tries):
            sum_qx, sum_q2 = judge(spec, grid, space, t)
            better = (sum_q2 > f32(0)) & (sum_qx * sum_qx > best * sum_q2)
            scale = select(better, sum_qx / sum_q2, scale)
            best = select(better, scale * sum_qx, best)
            improved = improved | better
            for g in range(groups):
                put(space.best, g, select(better, get(space.vector, t * groups + g), get(space.best, g)))

        # Once more with the best scale.
        inverse = f32(1) / scale
        on_grid = CHUNK * grid.size  # slots below belong to vectors on the grid
        again = largest < largest
        for g in range(groups):
            again = again | (get(space.best, g) >= on_grid)
        if spec.again == ALL_IF_ANY:
            again = again | ~improved
        if spec.again == ALWAYS:
            again = again | ~again
        again = again & alive & (scale > f32(0))
        put(space.scales, 0, scale)
        for g in range(groups):
            slot = get(space.best, g)
            here = again & (slot >= on_grid) if spec.again == OFF_GRID else again
            put(space.wanted, g, to_i32(here))
            put(space.vector, g, select(here, rounded(space.magnitude, g * dims, inverse), slot))
        points_one_by_one(spec, grid, space, 0, 1)
        sum_qx, sum_q2 = judge(spec, grid, space, 0)
        scale = select(again & (sum_q2 > f32(0)), sum_qx / sum_q2, scale)

        mirrored = alive & (scale < f32(0))
        for k in range(start // 8, (start + spec.size) // 8):
            signs = get(space.sign, k)
            signs = select(mirrored, ~signs & (127 if spec.even else 255), signs)
            put(space.sign, k, select(alive, signs, 0))
        for g in range(groups):
            point = gather(grid.points, get(space.vector, g))
            put(space.point, start // dims + g, select(alive, point, 0))
        return select(alive, select(mirrored, -scale, scale), f32(0))

    @jitable
    def encode(x: Any, out: Any, steer: Steering, spec: Lattice, layout: BitLayout, grid: Grid) -> None:
        weighted = steer.weights.size > 0
        space = workspace(spec, layout, weighted, dims, levels)
        for block in range(0, x.size // QK_K, W):
            to_lanes(x, block * QK_K, QK_K, space.x)
            if weighted:
                to_lanes(steer.weights, place_of(steer, block, QK_K), QK_K, space.importance)
            mean = spec.spread * square_sum(space.x, 0, QK_K) / f32(QK_K)
            highest = broadcast(f32(0))
            for sub in range(QK_K // spec.size):
                scale = search(spec, grid, space, sub * spec.size, mean)
                put(space.scale, sub, scale)
                highest = maximum(highest, scale)

            for i in range(layout.words):
                put(space.words, i, broadcast(0))
            for g in range(QK_K // dims):
                point = get(space.point, g)
                put_bits(space.words, layout.low[g], point & ((1 << layout.width) - 1))
                put_bits(space.words, layout.high[g], point >> layout.width)
            for k in range(QK_K // 8):
                put_bits(space.words, layout.sign[k], get(space.sign, k))
            unit = highest / f32(31)
            inverse, alive = f32(1) / unit, highest != f32(0)
            for sub in range(QK_K // spec.size):
                code = clamp(nearest_integer(f32(0.5) * (inverse * get(space.scale, sub) - f32(1))), 0, 15)
                put_bits(space.words, layout.scale[sub], select(alive, code, 0))
            if spec.clear:
                for i in range(layout.words):
                    put(space.words, i, select(alive, get(space.words, i), 0))
            scale = select(alive, unit * spec.nudge, f32(0))
            write_blocks(space, scale, layout.words, out, block * (D_SIZE + 4 * layout.words))

    return encode
