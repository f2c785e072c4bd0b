"""IQ1_S and IQ1_M: eight weights are a point of a ternary lattice of 2048 points, shifted by an eighth up or down.

For the codes -1, 0 and 1 the best scale is found exactly: sorted weights are split in three in every way, and sums over
the sorted weights judge a split. The points nearest to the best codes follow. The order of float32 operations is that
of quantize_row_iq1_s_impl and quantize_row_iq1_m_impl in ggml-quants.c, whose sort keeps equal weights in order.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import typeof
from numpy.typing import NDArray

from ggufsmith.quantize import grids
from ggufsmith.quantize.cache import INT, READ_F32, READ_U8, WRITE_F32, WRITE_U8, Kernel, kernel
from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, store_half, to_lanes
from ggufsmith.quantize.kernels.iq_common import load_scales, nearest_integer
from ggufsmith.quantize.kernels.iq_lattice import SLACK, mean_square
from ggufsmith.quantize.kernels.iq_nearest import nearest_point
from ggufsmith.quantize.kernels.iq_rows import fill, look_up, row
from ggufsmith.quantize.kernels.iq_types import EMPTY_GRID, TABLE, Grid, grid_of
from ggufsmith.quantize.simd import (
    TILE,
    W,
    absolute,
    any_lane,
    broadcast,
    clamp,
    f32,
    f32_to_half,
    gather,
    half_to_f32,
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

BLOCK = 256
GROUP = 8  # weights per grid point
EIGHTH = f32(0.125)  # IQ1S_DELTA, IQ1M_DELTA
LEAST_S, LEAST_M = f32(1e-12), f32(1e-7)  # GROUP_MAX_EPS_IQ1_S, _M: sub-blocks below are zero
LOWEST = f32(-3.4028234663852886e38)
S_SIZE, M_SIZE = 50, 56

nearest = nearest_point(GROUP, 3)


@jitable
def weigh(x: Any, at: int, n: int, importance: Any, mean: Any, weight: Any) -> Any:
    """weight[0 : n * W] of n weights at `at` in lanes; returns the largest magnitude."""
    top = broadcast(f32(0))
    for i in range(n):
        v = load(x, at + i * W)
        w = load(importance, at + i * W) * sqrt(mean + v * v) if importance.size > 0 else v * v
        store(weight, i * W, w)
        top = maximum(top, absolute(v))
    return top


@jitable
def ranks(x: Any, at: int, n: int, rank: Any) -> None:
    """rank[0 : n * W]: the place of each of n weights in a stable ascending sort."""
    for i in range(n):
        v, place = load(x, at + i * W), broadcast(0)
        for j in range(i):
            place = place + to_i32(load(x, at + j * W) <= v)
        for j in range(i + 1, n):
            place = place + to_i32(load(x, at + j * W) < v)
        store(rank, i * W, place)


@jitable
def sorted_sums(x: Any, at: int, n: int, first: int, stop: int, weight: Any, rank: Any, sum_x: Any, sum_w: Any) -> None:
    """Sums of w * x and of w over the weights of least rank; those that are not first .. stop - 1 of the n count as 0.

    sum_x, sum_w: in lanes, [n + 1]; entry k is the sum over ranks below k.
    """
    for k in range(n + 1):
        store(sum_x, k * W, broadcast(f32(0)))
        store(sum_w, k * W, broadcast(f32(0)))
    for i in range(first, stop):
        for lane in range(W):
            to = (rank[i * W + lane] + 1) * W + lane
            w = weight[i * W + lane]
            sum_x[to] = w * x[at + i * W + lane]
            sum_w[to] = w
    for k in range(1, n + 1):
        store(sum_x, k * W, load(sum_x, (k - 1) * W) + load(sum_x, k * W))
        store(sum_w, k * W, load(sum_w, (k - 1) * W) + load(sum_w, k * W))


@jitable
def improve(qx: Any, q2: Any, scale: Any, best: Any, choice: Any, this: int) -> Any:
    """(scale, best score, choice), replaced where the split `this` fits better."""
    better = (q2 > f32(0)) & (qx * qx > best * q2)
    scale = select(better, qx / q2, scale)
    return scale, select(better, scale * qx, best), select(better, broadcast(this), choice)


@jitable
def best_split_s(n: int, sum_x: Any, sum_w: Any, ends: Any, scale: Any) -> Any:
    """(scale, choice) of the best split of n sorted weights: choice = (first * 64 + second) * 4 + k, or -1.

    The first weights are -1, those from `second` on 1, and the others 0; all are shifted by an eighth, up for k = 0.
    """
    low_up, high_up, low_down, high_down = EIGHTH - f32(1), EIGHTH + f32(1), -EIGHTH - f32(1), f32(1) - EIGHTH
    all_x, all_w = load(sum_x, n * W), load(sum_w, n * W)
    for j in range(n + 1):
        rest_x, rest_w = all_x - load(sum_x, j * W), all_w - load(sum_w, j * W)
        store(ends, j * W, rest_x * high_up)
        store(ends, (n + 1 + j) * W, rest_x * high_down)
        store(ends, (2 * n + 2 + j) * W, rest_w * high_up * high_up)
        store(ends, (3 * n + 3 + j) * W, rest_w * high_down * high_down)
    best, choice = broadcast(LOWEST), broadcast(-1)
    for i in range(n + 1):
        x1, w1 = load(sum_x, i * W), load(sum_w, i * W)
        x_up, x_down = x1 * low_up, x1 * low_down
        w_up, w_down = w1 * low_up * low_up, w1 * low_down * low_down
        for j in range(i, n + 1):
            middle_x = (load(sum_x, j * W) - x1) * EIGHTH  # and, exactly, its negative times -EIGHTH
            middle_w = (load(sum_w, j * W) - w1) * EIGHTH * EIGHTH
            qx_up = x_up + middle_x + load(ends, j * W)
            qx_down = x_down - middle_x + load(ends, (n + 1 + j) * W)
            q2_up = w_up + middle_w + load(ends, (2 * n + 2 + j) * W)
            q2_down = w_down + middle_w + load(ends, (3 * n + 3 + j) * W)
            if any_lane((qx_up * qx_up > best * q2_up) | (qx_down * qx_down > best * q2_down)):
                this = (i * 64 + j) * 4
                scale, best, choice = improve(qx_up, q2_up, scale, best, choice, this)
                scale, best, choice = improve(qx_down, q2_down, scale, best, choice, this + 1)
    return scale, choice


@jitable
def best_split_m(n: int, x0: Any, w0: Any, x1: Any, w1: Any, scale: Any) -> Any:
    """The same for two halves with sums of their own, each shifted up or down: k = 2 * (first is down) + (second is
    down).

    The sum for a split is total * (1 +- eighth) - sum[first] - sum[second]: the three values are 1 apart.
    """
    up, down = EIGHTH + f32(1), f32(1) - EIGHTH
    up_1, up_2 = f32(0.75), f32(-1.25)  # differences of the squares of the three values
    down_1, down_2 = f32(1.25), f32(-0.75)
    all_x0, all_x1, all_w0, all_w1 = load(x0, n * W), load(x1, n * W), load(w0, n * W), load(w1, n * W)
    x0_up, x0_down, x1_up, x1_down = all_x0 * up, all_x0 * down, all_x1 * up, all_x1 * down
    w0_up, w0_down, w1_up, w1_down = all_w0 * up * up, all_w0 * down * down, all_w1 * up * up, all_w1 * down * down
    best, choice = broadcast(LOWEST), broadcast(-1)
    for i in range(n + 1):
        p0, p1, v0, v1 = load(x0, i * W), load(x1, i * W), load(w0, i * W), load(w1, i * W)
        i0_up, i0_down = w0_up + v0 * up_1, w0_down + v0 * down_1
        i1_up, i1_down = w1_up + v1 * up_1, w1_down + v1 * down_1
        for j in range(i, n + 1):
            s0, s1 = p0 + load(x0, j * W), p1 + load(x1, j * W)
            u0, u1 = load(w0, j * W), load(w1, j * W)
            qx0_up, qx0_down, qx1_up, qx1_down = x0_up - s0, x0_down - s0, x1_up - s1, x1_down - s1
            q20_up, q20_down = i0_up + u0 * up_2, i0_down + u0 * down_2
            q21_up, q21_down = i1_up + u1 * up_2, i1_down + u1 * down_2
            qx_uu, qx_ud, qx_du, qx_dd = qx0_up + qx1_up, qx0_up + qx1_down, qx0_down + qx1_up, qx0_down + qx1_down
            q2_uu, q2_ud, q2_du, q2_dd = q20_up + q21_up, q20_up + q21_down, q20_down + q21_up, q20_down + q21_down
            if any_lane(
                (qx_uu * qx_uu > best * q2_uu)
                | (qx_ud * qx_ud > best * q2_ud)
                | (qx_du * qx_du > best * q2_du)
                | (qx_dd * qx_dd > best * q2_dd)
            ):
                this = (i * 64 + j) * 4
                scale, best, choice = improve(qx_uu, q2_uu, scale, best, choice, this)
                scale, best, choice = improve(qx_ud, q2_ud, scale, best, choice, this + 1)
                scale, best, choice = improve(qx_du, q2_du, scale, best, choice, this + 2)
                scale, best, choice = improve(qx_dd, q2_dd, scale, best, choice, this + 3)
    return scale, choice


@jitable
def vectors(n: int, rank: Any, choice: Any, mirrored: Any, vector: Any) -> None:
    """The number of the vector of codes of each eight weights, as the split `choice` of ranks has them."""
    first, second = choice >> 8, (choice >> 2) & 63
    for g in range(n // GROUP):
        u = broadcast(0)
        for i in range(GROUP - 1, -1, -1):
            place = load(rank, (g * GROUP + i) * W)
            code = to_i32(place >= first) + to_i32(place >= second)
            u = u * 3 + select(mirrored, 2 - code, code)
        store(vector, g * W, u)


@jitable
def find_points(n: int, grid: Grid, piece: Any, piece_w: Any, scales: Any, down: Any, vector: Any, odd: Any) -> None:
    """vector -> slot of the nearest grid point, and its codes. down: per group, 1 where it is shifted down."""
    near_i, far_i = row(grid.position, 0), row(grid.position, 16)
    half, one = fill(f32(0.5)), fill(f32(1.5))
    near_q, far_q = row(grid.level, 0) * half - one, row(grid.level, 16) * half - one  # -1, 0 and 1
    for lane in range(W):
        scale = fill(scales[lane])
        for g in range(n // GROUP):
            cell = g * W + lane
            u = vector[cell]
            slot = grid.starts[u] * 16
            if slot >= 16 * grid.size:
                x, w = row(piece, lane * n + g * GROUP), row(piece_w, lane * n + g * GROUP)
                shift = fill(-EIGHTH if down[cell] != 0 else EIGHTH)
                near, far = scale * (near_q + shift) - look_up(x, near_i), scale * (far_q + shift) - look_up(x, far_i)
                near, far = look_up(w, near_i) * near * near, look_up(w, far_i) * far * far
                slot = nearest(grid.packed, grid.starts[u], grid.stops[u], near, far)
            vector[cell] = slot
            odd[cell] = grid.odd[slot]


@jitable
def value(odd: Any, i: int, down: Any) -> Any:
    """The number that code i of a point stands for: -1, 0 or 1, plus or minus an eighth."""
    return to_f32((odd >> (4 * i)) & 15) * f32(0.5) - select(down != 0, f32(1.5) + EIGHTH, broadcast(f32(1.5) - EIGHTH))


@jitable
def add_sums(x: Any, at: int, n: int, weight: Any, odd: Any, down: Any, factor: Any, qx: Any, q2: Any) -> Any:
    """qx + sum(w * q * x) and q2 + sum(w * q * q), where q is `factor` times the point whose codes are in `odd`."""
    for g in range(n // GROUP):
        codes, shift = load(odd, g * W), load(down, g * W)
        for i in range(GROUP):
            q = value(codes, i, shift) * factor
            wq = load(weight, (g * GROUP + i) * W) * q
            qx = qx + wq * load(x, at + (g * GROUP + i) * W)
            q2 = q2 + wq * q
    return qx, q2


@jitable
def part_from_lanes(x: Any, at: int, n: int, piece: Any) -> None:
    """n numbers per lane from x[at:], those of a lane together."""
    for lane in range(0, W, TILE):
        for i in range(0, n, TILE):
            transpose(x, at + i * W + lane, W, piece, lane * n + i, n)


@jitable
def fit_points(
    x: Any,
    at: int,
    n: int,
    weight: Any,
    rank: Any,
    scale: Any,
    choice: Any,
    grid: Grid,
    down: Any,
    vector: Any,
    odd: Any,
) -> Any:
    """The points for the best split, and the scale that fits them; down: per group, as the split has it."""
    piece, piece_w, scales = (
        scratch(n * W + SLACK, np.float32),
        scratch(n * W + SLACK, np.float32),
        scratch(W, np.float32),
    )
    mirrored = scale < f32(0)
    scale = select(mirrored, -scale, scale)
    vectors(n, rank, choice, mirrored, vector)
    for g in range(n // GROUP):
        store(down, g * W, load(down, g * W) ^ to_i32(mirrored))
    part_from_lanes(x, at, n, piece)
    part_from_lanes(weight, 0, n, piece_w)
    store(scales, 0, scale)
    find_points(n, grid, piece, piece_w, scales, down, vector, odd)
    moved = scale < scale
    for g in range(n // GROUP):
        moved = moved | (load(vector, g * W) >= 16 * grid.size)
    zero = broadcast(f32(0))
    qx, q2 = add_sums(x, at, n, weight, odd, down, broadcast(f32(1)), zero, zero)
    return select(moved & (qx > f32(0)) & (q2 > f32(0)), qx / q2, scale)


@jitable
def encode_s(x: Any, out: Any, importance: Any, first: int, grid: Grid) -> None:
    n = 32
    v, steer, block = scratch(BLOCK * W, np.float32), scratch(BLOCK * W, np.float32), scratch(S_SIZE * W, np.uint8)
    weight, rank, ends = scratch(n * W, np.float32), scratch(n * W, np.int32), scratch(4 * (n + 1) * W, np.float32)
    sum_x, sum_w = scratch((n + 1) * W, np.float32), scratch((n + 1) * W, np.float32)
    down, vector, odd = scratch(4 * W, np.int32), scratch(4 * W, np.int32), scratch(4 * W, np.int32)
    scales, high = scratch(8 * W, np.float32), scratch(8 * W, np.int32)
    per_row = importance.size // BLOCK - W
    for k in range(0, x.size // BLOCK, W):
        to_lanes(x, k * BLOCK, BLOCK, v, 0)
        to_lanes(importance, (first + k) % per_row * BLOCK, BLOCK, steer, 0)
        mean = mean_square(v, f32(2))
        highest = broadcast(f32(0))
        for sub in range(8):
            at = sub * n * W
            top = weigh(v, at, n, steer, mean, weight)
            ranks(v, at, n, rank)
            sorted_sums(v, at, n, 0, n, weight, rank, sum_x, sum_w)
            scale, choice = best_split_s(n, sum_x, sum_w, ends, top)
            for g in range(4):
                store(down, g * W, choice & 1)
            scale = fit_points(v, at, n, weight, rank, scale, choice, grid, down, vector, odd)
            alive = (top >= LEAST_S) & (choice >= 0)
            bits_above = load(down, 0) << 15
            for g in range(4):
                point = gather(grid.points, load(vector, g * W))
                store(block, (2 + 4 * sub + g) * W, to_u8(select(alive, point, 0)))
                bits_above = bits_above | ((point >> 8) << (3 * g))
            scale = select(alive, scale, f32(0))
            store(high, sub * W, select(alive, bits_above, 0))
            store(scales, sub * W, scale)
            highest = maximum(highest, scale)
        unit, alive = highest / f32(15), highest != f32(0)
        inverse = f32(1) / unit
        store_half(block, 0, f32_to_half(select(alive, unit * f32(1.125), f32(0))))
        for sub in range(8):
            code = clamp(nearest_integer(f32(0.5) * (inverse * load(scales, sub * W) - f32(1))), 0, 7)
            word = load(high, sub * W)
            word = select(alive, word | (code << 12), word & 0xFFF)
            store(block, (34 + 2 * sub) * W, to_u8(word))
            store(block, (35 + 2 * sub) * W, to_u8(word >> 8))
        from_lanes(block, S_SIZE, out, k * S_SIZE)


@jitable
def encode_m(x: Any, out: Any, importance: Any, first: int, grid: Grid) -> None:
    n = 16
    weighted = importance.size > 0
    v, block = scratch(BLOCK * W, np.float32), scratch(M_SIZE * W, np.uint8)
    steer = scratch(BLOCK * W if weighted else 0, np.float32)
    weight, rank = scratch(n * W, np.float32), scratch(n * W, np.int32)
    x0, w0 = scratch((n + 1) * W, np.float32), scratch((n + 1) * W, np.float32)
    x1, w1 = scratch((n + 1) * W, np.float32), scratch((n + 1) * W, np.float32)
    vector, scales = scratch(2 * W, np.int32), scratch(16 * W, np.float32)
    above, codes = scratch(16 * W, np.int32), scratch(4 * W, np.int32)
    down, odd = scratch(32 * W, np.int32), scratch(32 * W, np.int32)
    per_row = max(importance.size // BLOCK - W, 1)
    for k in range(0, x.size // BLOCK, W):
        to_lanes(x, k * BLOCK, BLOCK, v, 0)
        if weighted:
            to_lanes(importance, (first + k) % per_row * BLOCK, BLOCK, steer, 0)
        mean = mean_square(v, f32(2))
        highest = broadcast(f32(0))
        for sub in range(16):
            at = sub * n * W
            downs, odds = down[2 * sub * W : (2 * sub + 2) * W], odd[2 * sub * W : (2 * sub + 2) * W]
            top = weigh(v, at, n, steer, mean, weight)
            ranks(v, at, n, rank)
            sorted_sums(v, at, n, 0, n // 2, weight, rank, x0, w0)
            sorted_sums(v, at, n, n // 2, n, weight, rank, x1, w1)
            scale, choice = best_split_m(n, x0, w0, x1, w1, top)
            store(downs, 0, (choice >> 1) & 1)
            store(downs, W, choice & 1)
            scale = fit_points(v, at, n, weight, rank, scale, choice, grid, downs, vector, odds)
            alive = (top >= LEAST_M) & (choice >= 0)
            scale = select(alive, scale, f32(0))
            high = broadcast(0)
            for g in range(2):
                point = select(alive, gather(grid.points, load(vector, g * W)), 0)
                store(block, (2 * sub + g) * W, to_u8(point))
                high = high | ((point >> 8) << (4 * g))
                store(downs, g * W, select(alive, load(downs, g * W), 0))
                store(odds, g * W, select(alive, load(odds, g * W), grid.odd[0]))
            store(above, sub * W, high)
            store(scales, sub * W, scale)
            highest = maximum(highest, scale)

        unit, alive = highest / f32(15), highest != f32(0)
        inverse = f32(1) / unit
        qx, q2 = broadcast(f32(0)), broadcast(f32(0))
        for sub in range(16):
            at = sub * n * W
            downs, odds = down[2 * sub * W : (2 * sub + 2) * W], odd[2 * sub * W : (2 * sub + 2) * W]
            code = clamp(nearest_integer(f32(0.5) * (inverse * load(scales, sub * W) - f32(1))), 0, 7)
            weigh(v, at, n, steer, mean, weight)
            qx, q2 = add_sums(v, at, n, weight, odds, downs, to_f32(2 * code + 1), qx, q2)
            shifts = (load(downs, 0) << 3) | (load(downs, W) << 7)
            store(block, (32 + sub) * W, to_u8(load(above, sub * W) | select(alive, shifts, 0)))
            word = (code << (3 * (sub % 4))) | (load(codes, sub // 4 * W) if sub % 4 else broadcast(0))
            store(codes, sub // 4 * W, word)
        half = to_i32(f32_to_half(select(q2 > f32(0), qx / q2, unit) * f32(1.1125)))
        for i in range(4):
            word = load(codes, i * W) | (((half >> (4 * i)) & 15) << 12)
            word = select(alive, word, 0)
            store(block, (48 + 2 * i) * W, to_u8(word))
            store(block, (49 + 2 * i) * W, to_u8(word >> 8))
        from_lanes(block, M_SIZE, out, k * M_SIZE)


@kernel(READ_F32, WRITE_U8, READ_F32, INT, typeof(EMPTY_GRID))
def iq1_s(x: Any, out: Any, importance: Any, first: int, grid: Any) -> None:
    encode_s(x, out, importance, first, grid)


@kernel(READ_F32, WRITE_U8, READ_F32, INT, typeof(EMPTY_GRID))
def iq1_m(x: Any, out: Any, importance: Any, first: int, grid: Any) -> None:
    encode_m(x, out, importance, first, grid)


@jitable
def decode_point(values: Any, point: int, scale: Any, down: int, out: Any, to: int) -> None:
    shift = -EIGHTH if down else EIGHTH
    for i in range(GROUP):
        out[to + i] = scale * (values[point, i] + shift)


@kernel(READ_U8, WRITE_F32, TABLE)
def iq1_s_decode(blocks: Any, out: Any, values: Any) -> None:
    scales = scratch(W, np.float32)
    for k in range(out.size // BLOCK):
        at = k * S_SIZE
        if k % W == 0:
            load_scales(blocks, at, S_SIZE, scales)
        for sub in range(8):
            word = blocks[at + 34 + 2 * sub] | (blocks[at + 35 + 2 * sub] << 8)
            scale = scales[k % W] * f32(2 * ((word >> 12) & 7) + 1)
            for g in range(4):
                point = blocks[at + 2 + 4 * sub + g] | (((word >> (3 * g)) & 7) << 8)
                decode_point(values, point, scale, word >> 15, out, k * BLOCK + sub * 32 + g * GROUP)


@kernel(READ_U8, WRITE_F32, TABLE)
def iq1_m_decode(blocks: Any, out: Any, values: Any) -> None:
    halves, scales = scratch(W, np.uint16), scratch(W, np.float32)
    for k in range(0, out.size // BLOCK, W):
        for lane in range(W):
            half = 0
            for i in range(4):
                half |= (blocks[(k + lane) * M_SIZE + 49 + 2 * i] >> 4) << (4 * i)
            halves[lane] = half
        store(scales, 0, half_to_f32(load(halves, 0)))
        for lane in range(W):
            at = (k + lane) * M_SIZE
            for sub in range(16):
                word = blocks[at + 48 + sub // 4 * 2] | (blocks[at + 49 + sub // 4 * 2] << 8)
                scale = scales[lane] * f32(2 * ((word >> (3 * (sub % 4))) & 7) + 1)
                for g in range(2):
                    above = blocks[at + 32 + sub] >> (4 * g)
                    point = blocks[at + 2 * sub + g] | ((above & 7) << 8)
                    decode_point(values, point, scale, above & 8, out, (k + lane) * BLOCK + sub * 16 + g * GROUP)


@cache
def grid() -> Grid:
    return grid_of("IQ1_S")


@cache
def values() -> NDArray[np.float32]:
    return grids.values("IQ1_S").astype(np.float32)


def codec(encoder: Kernel, decoder: Kernel, size: int, needs_importance: bool) -> Codec:
    return Codec(
        encode=None if needs_importance else lambda x, out: encoder(x, out, np.empty(0, np.float32), 0, grid()),
        weighted=lambda x, out, importance, first, power: encoder(x, out, importance, first, grid()),
        decode=lambda blocks, out: decoder(blocks, out, values()),
        alive=size,
    )


KERNELS = {"IQ1_S": codec(iq1_s, iq1_s_decode, 32, True), "IQ1_M": codec(iq1_m, iq1_m_decode, 16, False)}
