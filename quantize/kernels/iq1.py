"""IQ1_S and IQ1_M: eight weights are a point of a ternary lattice of 2048 points, shifted by an eighth up or down.

For the codes -1, 0 and 1 the best scale is found exactly: sorted weights are split in three in every way, and sums over
the sorted weights judge a split. The points nearest to the best codes follow. The order of float32 operations is that
of quantize_row_iq1_s_impl and quantize_row_iq1_m_impl in ggml-quants.c, whose sort keeps equal weights in order.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufsmith.quantize import grids
from ggufsmith.quantize.cache import Kernel, kernel, read, typeof
from ggufsmith.quantize.kernels import UNSTEERED, Call, Codec, Steering
from ggufsmith.quantize.kernels.blocks import (
    QK_K,
    byte_at,
    cell,
    from_lanes,
    get,
    half_bits,
    load_halves,
    offsets,
    part_from_lanes,
    put,
    put_half,
    put_u16,
    room,
    to_lanes,
)
from ggufsmith.quantize.kernels.common import DECODE, SEARCH, largest, nearest_integer, place_of, square_sum, weigh
from ggufsmith.quantize.kernels.iq_lattice import SLACK
from ggufsmith.quantize.kernels.iq_nearest import nearest_point
from ggufsmith.quantize.kernels.iq_rows import choose_lanes, fill, look_up, put_row, row
from ggufsmith.quantize.kernels.iq_types import EMPTY_GRID, Grid, grid_of
from ggufsmith.quantize.simd import (
    W,
    any_lane,
    broadcast,
    clamp,
    f32,
    gather,
    half_to_f32,
    jitable,
    maximum,
    scratch,
    select,
    to_f32,
    to_i32,
    to_u8,
)

GROUP = 8  # weights per grid point
EIGHTH = f32(0.125)  # IQ1S_DELTA, IQ1M_DELTA
LEAST_S, LEAST_M = f32(1e-12), f32(1e-7)  # GROUP_MAX_EPS_IQ1_S, _M: sub-blocks below are zero
LOWEST = f32(-3.4028234663852886e38)
S_D, S_POINTS, S_WORDS, S_SIZE = offsets("IQ1_S")
M_POINTS, M_SHIFTS, M_WORDS, M_SIZE = offsets("IQ1_M")

LOWER, UPPER = 0xFF, 0xFF00  # lanes of a row that are those of its first and of its second point
VALUES = read(np.float32, 1)

nearest = nearest_point(GROUP, 3)


@jitable
def ranks(x: Any, at: int, n: int, rank: Any) -> None:
    """rank[i]: the place of weight i of n in a stable ascending sort."""
    for i in range(n):
        v, place = get(x, at + i), broadcast(0)
        for j in range(i):
            place = place + to_i32(get(x, at + j) <= v)
        for j in range(i + 1, n):
            place = place + to_i32(get(x, at + j) < v)
        put(rank, i, place)


@jitable
def sorted_sums(x: Any, at: int, n: int, first: int, stop: int, weight: Any, rank: Any, sum_x: Any, sum_w: Any) -> None:
    """Sums of w * x and of w over the weights of least rank; those that are not first .. stop - 1 of the n count as 0.

    sum_x, sum_w: n + 1 numbers of each block; number k is the sum over ranks below k.
    """
    for k in range(n + 1):
        put(sum_x, k, broadcast(f32(0)))
        put(sum_w, k, broadcast(f32(0)))
    for i in range(first, stop):
        for lane in range(W):
            to = cell(rank[cell(i, lane)] + 1, lane)
            w = weight[cell(i, lane)]
            sum_x[to] = w * x[cell(at + i, lane)]
            sum_w[to] = w
    for k in range(1, n + 1):
        put(sum_x, k, get(sum_x, k - 1) + get(sum_x, k))
        put(sum_w, k, get(sum_w, k - 1) + get(sum_w, k))


@jitable
def improve(qx: Any, q2: Any, scale: Any, best: Any, choice: Any, this: int) -> Any:
    """(scale, best score, choice), replaced where the split `this` fits better."""
    better = (q2 > f32(0)) & (qx * qx > best * q2)
    scale = select(better, qx / q2, scale)
    return scale, select(better, scale * qx, best), select(better, broadcast(this), choice)


class Ends(NamedTuple):
    """What the weights from a rank on add to the sums of a split, shifted up or down: n + 1 numbers of each block."""

    x_up: Any
    x_down: Any
    w_up: Any
    w_down: Any


@jitable
def best_split_s(n: int, sum_x: Any, sum_w: Any, ends: Ends, scale: Any) -> Any:
    """(scale, choice) of the best split of n sorted weights: choice = (first * 64 + second) * 4 + k, or -1.

    The first weights are -1, those from `second` on 1, and the others 0; all are shifted by an eighth, up for k = 0.
    """
    low_up, high_up, low_down, high_down = EIGHTH - f32(1), EIGHTH + f32(1), -EIGHTH - f32(1), f32(1) - EIGHTH
    all_x, all_w = get(sum_x, n), get(sum_w, n)
    for j in range(n + 1):
        rest_x, rest_w = all_x - get(sum_x, j), all_w - get(sum_w, j)
        put(ends.x_up, j, rest_x * high_up)
        put(ends.x_down, j, rest_x * high_down)
        put(ends.w_up, j, rest_w * high_up * high_up)
        put(ends.w_down, j, rest_w * high_down * high_down)
    best, choice = broadcast(LOWEST), broadcast(-1)
    for i in range(n + 1):
        x1, w1 = get(sum_x, i), get(sum_w, i)
        x_up, x_down = x1 * low_up, x1 * low_down
        w_up, w_down = w1 * low_up * low_up, w1 * low_down * low_down
        for j in range(i, n + 1):
            middle_x = (get(sum_x, j) - x1) * EIGHTH  # and, exactly, its negative times -EIGHTH
            middle_w = (get(sum_w, j) - w1) * EIGHTH * EIGHTH
            qx_up = x_up + middle_x + get(ends.x_up, j)
            qx_down = x_down - middle_x + get(ends.x_down, j)
            q2_up = w_up + middle_w + get(ends.w_up, j)
            q2_down = w_down + middle_w + get(ends.w_down, j)
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
    all_x0, all_x1, all_w0, all_w1 = get(x0, n), get(x1, n), get(w0, n), get(w1, n)
    x0_up, x0_down, x1_up, x1_down = all_x0 * up, all_x0 * down, all_x1 * up, all_x1 * down
    w0_up, w0_down, w1_up, w1_down = all_w0 * up * up, all_w0 * down * down, all_w1 * up * up, all_w1 * down * down
    best, choice = broadcast(LOWEST), broadcast(-1)
    for i in range(n + 1):
        p0, p1, v0, v1 = get(x0, i), get(x1, i), get(w0, i), get(w1, i)
        i0_up, i0_down = w0_up + v0 * up_1, w0_down + v0 * down_1
        i1_up, i1_down = w1_up + v1 * up_1, w1_down + v1 * down_1
        for j in range(i, n + 1):
            s0, s1 = p0 + get(x0, j), p1 + get(x1, j)
            u0, u1 = get(w0, j), get(w1, j)
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


class Points(NamedTuple):
    """Of each group of eight weights of a block: whether its point is shifted down (1, else 0), the number of the
    vector of codes, later the slot of its grid point, and that point's codes (see grids.Candidates.odd).
    """

    down: Any
    vector: Any
    odd: Any


@jitable
def room_for(groups: int) -> Points:
    """Points of so many groups."""
    return Points(room(groups, np.int32), room(groups, np.int32), room(groups, np.int32))


@jitable
def number_vectors(n: int, rank: Any, choice: Any, mirrored: Any, points: Points, first: int) -> None:
    """The number of the vector of codes of each eight of n weights, as the split `choice` of ranks has them."""
    one, two = choice >> 8, (choice >> 2) & 63
    for g in range(n // GROUP):
        u = broadcast(0)
        for i in range(GROUP - 1, -1, -1):
            place = get(rank, g * GROUP + i)
            code = to_i32(place >= one) + to_i32(place >= two)
            u = u * 3 + select(mirrored, 2 - code, code)
        put(points.vector, first + g, u)


@jitable
def find_points(n: int, grid: Grid, piece: Any, piece_w: Any, scales: Any, points: Points, first: int) -> None:
    """Numbers of vectors -> slots of the nearest grid points, and their codes, for n weights from group `first` on.

    piece, piece_w: the weights and their importance, those of a lane together; scales: one of each block.
    """
    near_i, far_i = row(grid.position, 0), row(grid.position, 16)
    half, one = fill(f32(0.5)), fill(f32(1.5))
    near_q, far_q = row(grid.level, 0) * half - one, row(grid.level, 16) * half - one  # -1, 0 and 1
    for lane in range(W):
        scale = fill(scales[lane])
        for g in range(n // GROUP):
            here = cell(first + g, lane)
            u = points.vector[here]
            slot = grid.starts[u] * 16
            if slot >= 16 * grid.size:
                x, w = row(piece, lane * n + g * GROUP), row(piece_w, lane * n + g * GROUP)
                shift = fill(-EIGHTH if points.down[here] != 0 else EIGHTH)
                near, far = scale * (near_q + shift) - look_up(x, near_i), scale * (far_q + shift) - look_up(x, far_i)
                near, far = look_up(w, near_i) * near * near, look_up(w, far_i) * far * far
                slot = nearest(grid.packed, grid.starts[u], grid.stops[u], near, far)
            points.vector[here] = slot
            points.odd[here] = grid.odd[slot]


@jitable
def value(odd: Any, i: int, down: Any) -> Any:
    """The number that code i of a point stands for: -1, 0 or 1, plus or minus an eighth."""
    return to_f32((odd >> (4 * i)) & 15) * f32(0.5) - select(down != 0, f32(1.5) + EIGHTH, broadcast(f32(1.5) - EIGHTH))


@jitable
def add_sums(x: Any, at: int, n: int, weight: Any, points: Points, first: int, factor: Any, qx: Any, q2: Any) -> Any:
    """qx + sum(w * q * x) and q2 + sum(w * q * q), where q is `factor` times the points from group `first` on."""
    for g in range(n // GROUP):
        codes, shift = get(points.odd, first + g), get(points.down, first + g)
        for i in range(GROUP):
            q = value(codes, i, shift) * factor
            wq = get(weight, g * GROUP + i) * q
            qx = qx + wq * get(x, at + g * GROUP + i)
            q2 = q2 + wq * q
    return qx, q2


@jitable
def fit_points(
    x: Any, at: int, n: int, weight: Any, rank: Any, scale: Any, choice: Any, grid: Grid, points: Points, first: int
) -> Any:
    """The points for the best split, from group `first` on, and the scale that fits them.

    points.down: as the split has it; turned over where the scale is negative.
    """
    piece, piece_w = scratch(n * W + SLACK, np.float32), scratch(n * W + SLACK, np.float32)
    scales = room(1, f32)
    mirrored = scale < f32(0)
    scale = select(mirrored, -scale, scale)
    number_vectors(n, rank, choice, mirrored, points, first)
    for g in range(first, first + n // GROUP):
        put(points.down, g, get(points.down, g) ^ to_i32(mirrored))
    part_from_lanes(x, at, n, piece, 0)
    part_from_lanes(weight, 0, n, piece_w, 0)
    put(scales, 0, scale)
    find_points(n, grid, piece, piece_w, scales, points, first)
    moved = scale < scale
    for g in range(first, first + n // GROUP):
        moved = moved | (get(points.vector, g) >= 16 * grid.size)
    zero = broadcast(f32(0))
    qx, q2 = add_sums(x, at, n, weight, points, first, broadcast(f32(1)), zero, zero)
    return select(moved & (qx > f32(0)) & (q2 > f32(0)), qx / q2, scale)


# ---- IQ1_S: sub-blocks of 32, shifted as a whole ----

SUB, SUBS = 32, 8


@kernel(*SEARCH, typeof(EMPTY_GRID))
def encode_iq1_s(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any, grid: Any) -> None:
    """quantize_row_iq1_s_impl, which needs importance."""
    steer = Steering(weights, first, blocks_per_row, row_squares)
    s, importance, block = room(QK_K, f32), room(QK_K, f32), room(S_SIZE, np.uint8)
    weight, rank, points = room(SUB, f32), room(SUB, np.int32), room_for(SUB // GROUP)
    sum_x, sum_w = room(SUB + 1, f32), room(SUB + 1, f32)
    ends = Ends(room(SUB + 1, f32), room(SUB + 1, f32), room(SUB + 1, f32), room(SUB + 1, f32))
    scales, words = room(SUBS, f32), room(SUBS, np.int32)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        to_lanes(weights, place_of(steer, k, QK_K), QK_K, importance)
        mean = f32(2) * square_sum(s, 0, QK_K) / f32(QK_K)
        highest = broadcast(f32(0))
        for sub in range(SUBS):
            at = sub * SUB
            weigh(s, at, SUB, importance, mean, weight)
            top = largest(s, at, SUB)
            ranks(s, at, SUB, rank)
            sorted_sums(s, at, SUB, 0, SUB, weight, rank, sum_x, sum_w)
            scale, choice = best_split_s(SUB, sum_x, sum_w, ends, top)
            for g in range(SUB // GROUP):
                put(points.down, g, choice & 1)
            scale = fit_points(s, at, SUB, weight, rank, scale, choice, grid, points, 0)
            alive = (top >= LEAST_S) & (choice >= 0)
            word = get(points.down, 0) << 15
            for g in range(SUB // GROUP):
                point = gather(grid.points, get(points.vector, g))
                put(block, S_POINTS + sub * (SUB // GROUP) + g, to_u8(select(alive, point, 0)))
                word = word | ((point >> 8) << (3 * g))
            scale = select(alive, scale, f32(0))
            put(words, sub, select(alive, word, 0))
            put(scales, sub, scale)
            highest = maximum(highest, scale)
        unit, alive = highest / f32(15), highest != f32(0)
        inverse = f32(1) / unit
        put_half(block, S_D, select(alive, unit * f32(1.125), f32(0)))
        for sub in range(SUBS):
            code = clamp(nearest_integer(f32(0.5) * (inverse * get(scales, sub) - f32(1))), 0, 7)
            word = get(words, sub)
            put_u16(block, S_WORDS + 2 * sub, select(alive, word | (code << 12), word & 0xFFF))
        from_lanes(block, S_SIZE, out, k * S_SIZE)


@jitable
def decode_points(values: Any, one: int, two: int, down: int, scale: Any, out: Any, to: int) -> None:
    """Sixteen weights, from out[to] on, of two points. down: bits 0 to 15, of weights that are shifted down."""
    both = choose_lanes(UPPER, row(values, two * GROUP), row(values, (one + 1) * GROUP))
    put_row(out, to, fill(scale) * (both + choose_lanes(down, fill(-EIGHTH), fill(EIGHTH))))


@kernel(*DECODE, VALUES)
def decode_iq1_s(blocks: Any, out: Any, values: Any) -> None:
    """dequantize_row_iq1_s. The scale is a float16, the word of a sub-block holds its code, shift and upper bits."""
    bits, scales = room(1, np.uint16), room(1, f32)
    for k in range(0, out.size // QK_K, W):
        load_halves(blocks, k * S_SIZE + S_D, S_SIZE, bits, scales)
        for lane in range(W):
            at, to = (k + lane) * S_SIZE, (k + lane) * QK_K
            for sub in range(SUBS):
                word = byte_at(blocks, at + S_WORDS + 2 * sub) | byte_at(blocks, at + S_WORDS + 2 * sub + 1) << 8
                scale = scales[lane] * f32(2 * ((word >> 12) & 7) + 1)
                down = -(word >> 15)
                for g in range(0, SUB // GROUP, 2):
                    first = at + S_POINTS + sub * (SUB // GROUP) + g
                    one = byte_at(blocks, first) | (word >> (3 * g) & 7) << 8
                    two = byte_at(blocks, first + 1) | (word >> (3 * g + 3) & 7) << 8
                    decode_points(values, one, two, down, scale, out, to + sub * SUB + g * GROUP)


# ---- IQ1_M: sub-blocks of 16, whose halves are shifted each ----

SUB_M, SUBS_M = 16, 16


@kernel(*SEARCH, typeof(EMPTY_GRID))
def encode_iq1_m(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any, grid: Any) -> None:
    """With importance or without. The block's scale is fitted once more to all points."""
    n, weighted = SUB_M, weights.size > 0
    steer = Steering(weights, first, blocks_per_row, row_squares)
    s, importance, block = room(QK_K, f32), room(QK_K if weighted else 0, f32), room(M_SIZE, np.uint8)
    weight, rank, points = room(n, f32), room(n, np.int32), room_for(QK_K // GROUP)
    x0, w0, x1, w1 = room(n + 1, f32), room(n + 1, f32), room(n + 1, f32), room(n + 1, f32)
    scales, above, codes = room(SUBS_M, f32), room(SUBS_M, np.int32), room(4, np.int32)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        if weighted:
            to_lanes(weights, place_of(steer, k, QK_K), QK_K, importance)
        mean = f32(2) * square_sum(s, 0, QK_K) / f32(QK_K)
        highest = broadcast(f32(0))
        for sub in range(SUBS_M):
            at, group = sub * n, 2 * sub
            weigh(s, at, n, importance, mean, weight)
            top = largest(s, at, n)
            ranks(s, at, n, rank)
            sorted_sums(s, at, n, 0, n // 2, weight, rank, x0, w0)
            sorted_sums(s, at, n, n // 2, n, weight, rank, x1, w1)
            scale, choice = best_split_m(n, x0, w0, x1, w1, top)
            put(points.down, group, (choice >> 1) & 1)
            put(points.down, group + 1, choice & 1)
            scale = fit_points(s, at, n, weight, rank, scale, choice, grid, points, group)
            alive = (top >= LEAST_M) & (choice >= 0)
            scale = select(alive, scale, f32(0))
            high = broadcast(0)
            for g in range(2):
                point = select(alive, gather(grid.points, get(points.vector, group + g)), 0)
                put(block, M_POINTS + group + g, to_u8(point))
                high = high | ((point >> 8) << (4 * g))
                put(points.down, group + g, select(alive, get(points.down, group + g), 0))
                put(points.odd, group + g, select(alive, get(points.odd, group + g), grid.odd[0]))
            put(above, sub, high)
            put(scales, sub, scale)
            highest = maximum(highest, scale)

        unit, alive = highest / f32(15), highest != f32(0)
        inverse = f32(1) / unit
        qx, q2 = broadcast(f32(0)), broadcast(f32(0))
        for sub in range(SUBS_M):
            at, group = sub * n, 2 * sub
            code = clamp(nearest_integer(f32(0.5) * (inverse * get(scales, sub) - f32(1))), 0, 7)
            weigh(s, at, n, importance, mean, weight)
            qx, q2 = add_sums(s, at, n, weight, points, group, to_f32(2 * code + 1), qx, q2)
            shifts = (get(points.down, group) << 3) | (get(points.down, group + 1) << 7)
            put(block, M_SHIFTS + sub, to_u8(get(above, sub) | select(alive, shifts, 0)))
            word = (code << (3 * (sub % 4))) | (get(codes, sub // 4) if sub % 4 else broadcast(0))
            put(codes, sub // 4, word)
        half = to_i32(half_bits(select(q2 > f32(0), qx / q2, unit) * f32(1.1125)))
        for i in range(4):
            word = get(codes, i) | (((half >> (4 * i)) & 15) << 12)
            put_u16(block, M_WORDS + 2 * i, select(alive, word, 0))
        from_lanes(block, M_SIZE, out, k * M_SIZE)


@kernel(*DECODE, VALUES)
def decode_iq1_m(blocks: Any, out: Any, values: Any) -> None:
    """The float16 scale lies in the upper four bits of four words, whose other bits are scales of sub-blocks."""
    bits, scales = room(1, np.uint16), room(1, f32)
    for k in range(0, out.size // QK_K, W):
        for lane in range(W):
            half = 0
            for i in range(4):
                half |= byte_at(blocks, (k + lane) * M_SIZE + M_WORDS + 2 * i + 1) >> 4 << 4 * i
            bits[lane] = half
        put(scales, 0, half_to_f32(get(bits, 0)))
        for lane in range(W):
            at = (k + lane) * M_SIZE
            for sub in range(SUBS_M):
                first = at + M_WORDS + sub // 4 * 2
                word = byte_at(blocks, first) | byte_at(blocks, first + 1) << 8
                scale = scales[lane] * f32(2 * ((word >> (3 * (sub % 4))) & 7) + 1)
                above, points = byte_at(blocks, at + M_SHIFTS + sub), at + M_POINTS + 2 * sub
                one = byte_at(blocks, points) | (above & 7) << 8
                two = byte_at(blocks, points + 1) | (above >> 4 & 7) << 8
                down = -(above >> 3 & 1) & LOWER | -(above >> 7) & UPPER
                decode_points(values, one, two, down, scale, out, (k + lane) * QK_K + sub * SUB_M)


@cache
def search_table() -> Grid:
    """Both types have the points of IQ1_S."""
    return grid_of("IQ1_S")


@cache
def point_values() -> NDArray[np.float32]:
    """float32 [8 * 2050]: the points without their shift, behind eight numbers and before eight that do not count."""
    return np.pad(grids.values("IQ1_S").astype(np.float32), ((1, 1), (0, 0))).reshape(-1)


def codec(encoder: Kernel, decoder: Kernel, size: int, needs_importance: bool) -> Codec:
    """The kernels with the tables of the lattice."""
    return Codec(
        encode=None if needs_importance else Call(encoder, lambda: (*UNSTEERED, search_table())),
        weighted=Call(encoder, lambda: (search_table(),)),
        decode=Call(decoder, lambda: (point_values(),)),
        alive=size,
    )


KERNELS = {
    "IQ1_S": codec(encode_iq1_s, decode_iq1_s, SUB, True),
    "IQ1_M": codec(encode_iq1_m, decode_iq1_m, SUB_M, False),
}
