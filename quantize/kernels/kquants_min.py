"""Q2_K, Q4_K, Q5_K: super-blocks whose sub-blocks have a scale and a minimum, x = scale * code - minimum.

Encodings: quantize_row_q*_K_ref (unweighted) and quantize_row_q*_K_impl (weighted) of ggml-quants.c.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, load_half, load_halves, offsets, store_half, to_lanes
from ggufsmith.quantize.kernels.search import as_byte, positive_scale
from ggufsmith.quantize.kernels.search_min import store_min_codes, two_scales_and_mins
from ggufsmith.quantize.kernels.superblocks import (
    DECODE,
    ENCODE,
    WEIGHTED,
    N,
    importance_of,
    load_crumb,
    recode,
    square_sum,
    store_crumbs,
)
from ggufsmith.quantize.simd import (
    W,
    absolute,
    any_lane,
    broadcast,
    f32,
    f32_to_half,
    jitable,
    load,
    maximum,
    minimum,
    nearest,
    scratch,
    select,
    sqrt,
    store,
    to_f32,
    to_i32,
    to_u8,
    to_u32,
)


@jitable
def largest(x: Any, at: int, n: int) -> Any:
    """The largest of n values and zero."""
    top = broadcast(f32(0))
    for i in range(n):
        top = maximum(load(x, at + i * W), top)
    return top


@jitable
def search_pairs(s: Any, importance: Any, column: int, square: Any, n: int, top: Any, found: Any, sums: Any) -> None:
    """The weighted searches of all sub-blocks of n weights, and the sums of their weights; see `importance_of`."""
    w, tried = scratch(2 * n * W, np.float32), scratch(2 * n * W, np.float32)
    for j in range(0, N // n, 2):
        at = j * n * W
        for i in range(2):
            here = column + (j + i) * n
            store(sums, (j + i) * W, importance_of(s, at + i * n * W, n, importance, here, square, w, i * n * W))
        two_scales_and_mins(s, j, w, tried, n, top, f32(-0.9), f32(0.05), 36, False, found)


@jitable
def recode_sub_block(s: Any, j: int, n: int, d: Any, low: Any, top: Any, found: Any, codes: Any) -> None:
    """From the stored scale and minimum of sub-block j the codes of its weights; see `recode`."""
    if any_lane(d == 0):
        part = found.size // 4
        inverse, offset = load(found, 2 * part + j * W), load(found, 3 * part + j * W)
        store_min_codes(s, j * n * W, n, inverse, offset, top, codes, j * n * W)
    recode(s, j * n * W, n, d, low, f32(0), top, codes)


# ---- Q4_K and Q5_K: 8 sub-blocks of 32, scales and minima of 6 bits ----

SUB, SUBS = 32, 8
D, DMIN, SCALES, Q4_CODES, Q4_SIZE = offsets("Q4_K")
_, _, _, Q5_FIFTH, Q5_CODES, Q5_SIZE = offsets("Q5_K")


@jitable
def pack_scales(scales: Any, mins: Any, block: Any) -> None:
    """8 scales and 8 minima (f32) as 6-bit numbers in 12 bytes; the last four of each go in two parts."""
    for j in range(4):
        scale, low = to_i32(load(scales, j * W)), to_i32(load(mins, j * W))
        late_scale, late_low = to_i32(load(scales, (j + 4) * W)), to_i32(load(mins, (j + 4) * W))
        store(block, (SCALES + j) * W, to_u8(scale | ((late_scale >> 4) << 6)))
        store(block, (SCALES + 4 + j) * W, to_u8(low | ((late_low >> 4) << 6)))
        store(block, (SCALES + 8 + j) * W, to_u8((late_scale & 15) | ((late_low & 15) << 4)))


@jitable
def unpack_scales(block: Any, j: int) -> Any:
    """Scale and minimum j of 8, as f32."""
    scale, low = load(block, (SCALES + j % 4) * W), load(block, (SCALES + 4 + j % 4) * W)
    if j < 4:
        return to_f32(scale & 63), to_f32(low & 63)
    pair = load(block, (SCALES + 4 + j) * W)
    return to_f32((pair & 15) | ((scale >> 6) << 4)), to_f32((pair >> 4) | ((low >> 6) << 4))


@jitable
def finish(s: Any, found: Any, codes: Any, five_bits: bool, block: Any) -> None:
    """From the stored scales the codes of the weights, and their bytes: nibbles, and fifth bits."""
    d, dmin, top = load_half(block, D), load_half(block, DMIN), f32(31 if five_bits else 15)
    for j in range(SUBS):
        scale, low = unpack_scales(block, j)
        recode_sub_block(s, j, SUB, d * scale, dmin * low, top, found, codes)
    nibbles = Q5_CODES if five_bits else Q4_CODES
    for i in range(SUB):
        fifth = broadcast(np.uint32(0))
        for pair in range(4):
            low_code, high_code = load(codes, (pair * 64 + i) * W), load(codes, (pair * 64 + 32 + i) * W)
            store(block, (nibbles + pair * 32 + i) * W, (low_code & 15) | (high_code << 4))
            two = to_u32((low_code >> 4) | ((high_code >> 4) << 1))
            fifth = fifth | (two << np.uint32(2 * pair))
        if five_bits:
            store(block, (Q5_FIFTH + i) * W, to_u8(fifth))


@jitable
def own_weights(s: Any, at: int, w: Any, to: int) -> None:
    """w = |x| + the root of the sub-block's mean square."""
    mean = sqrt(square_sum(s, at, SUB) / f32(SUB))
    for i in range(SUB):
        store(w, to + i * W, mean + absolute(load(s, at + i * W)))


@jitable
def encode_sixes(x: Any, out: Any, five_bits: bool, size: int, start: Any, steps: int) -> None:
    """The unweighted Q4_K and Q5_K: the largest scale (and minimum) of a super-block gets code 63."""
    top = f32(31 if five_bits else 15)
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(size * W, np.uint8)
    w, tried = scratch(2 * SUB * W, np.float32), scratch(2 * SUB * W, np.float32)
    found = scratch(4 * SUBS * W, np.float32)
    scales, mins = scratch(SUBS * W, np.float32), scratch(SUBS * W, np.float32)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        for j in range(0, SUBS, 2):
            at = j * SUB * W
            own_weights(s, at, w, 0)
            own_weights(s, at + SUB * W, w, SUB * W)
            two_scales_and_mins(s, j, w, tried, SUB, top, start, f32(0.1), steps, False, found)
        max_scale, max_min = largest(found, 0, SUBS), largest(found, SUBS * W, SUBS)
        scale_inverse = select(max_scale > 0, f32(63) / max_scale, f32(0))
        min_inverse = select(max_min > 0, f32(63) / max_min, f32(0))
        for j in range(SUBS):
            scale, low = load(found, j * W), load(found, (SUBS + j) * W)
            store(scales, j * W, minimum(as_byte(nearest(scale_inverse * scale)), f32(63)))
            store(mins, j * W, minimum(as_byte(nearest(min_inverse * low)), f32(63)))
        store_half(block, D, f32_to_half(max_scale / f32(63)))
        store_half(block, DMIN, f32_to_half(max_min / f32(63)))
        pack_scales(scales, mins, block)
        finish(s, found, codes, five_bits, block)
        from_lanes(block, size, out, k * size)


@jitable
def search_sixes(x: Any, out: Any, importance: Any, first: int, five_bits: bool, size: int) -> None:
    """The weighted Q4_K and Q5_K: the codes of the scales are searched too."""
    top = f32(31 if five_bits else 15)
    per_row = importance.size // N - W
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(size * W, np.uint8)
    found, sums = scratch(4 * SUBS * W, np.float32), scratch(SUBS * W, np.float32)
    scales, mins = scratch(SUBS * W, np.float32), scratch(SUBS * W, np.float32)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        square = f32(2) * square_sum(s, 0, N) / f32(N)
        column = (first + k) % per_row * N
        search_pairs(s, importance, column, square, SUB, top, found, sums)
        d = positive_scale(found, 0, sums, 0, scales, 0, SUBS, f32(63))
        dmin = positive_scale(found, SUBS * W, sums, 0, mins, 0, SUBS, f32(63))
        if five_bits:  # Q4_K lets a code that wrapped below zero spill into its neighbours' bits
            for j in range(SUBS):
                store(scales, j * W, minimum(load(scales, j * W), f32(63)))
                store(mins, j * W, minimum(load(mins, j * W), f32(63)))
        store_half(block, D, f32_to_half(d))
        store_half(block, DMIN, f32_to_half(dmin))
        pack_scales(scales, mins, block)
        finish(s, found, codes, five_bits, block)
        from_lanes(block, size, out, k * size)


@jitable
def decode_sixes(blocks: Any, out: Any, five_bits: bool, size: int) -> None:
    """One weight per lane: a sub-block's codes lie in the order of its weights."""
    nibbles = Q5_CODES if five_bits else Q4_CODES
    room, d, dmin = scratch(W, np.uint16), scratch(W, np.float32), scratch(W, np.float32)
    for k in range(0, blocks.size // size, W):
        load_halves(blocks, k * size + D, size, room, d)
        load_halves(blocks, k * size + DMIN, size, room, dmin)
        for lane in range(W):
            at = (k + lane) * size
            for j in range(SUBS):
                early, scale, low = at + SCALES + j % 4, blocks[at + SCALES + j], blocks[at + SCALES + 4 + j]
                if j >= 4:
                    scale, low = (low & 15) | blocks[early] >> 6 << 4, low >> 4 | blocks[early + 4] >> 6 << 4
                factor, offset = d[lane] * f32(scale & 63), dmin[lane] * f32(low & 63)
                for i in range(0, SUB, W):
                    codes = (load(blocks, at + nibbles + j // 2 * SUB + i) >> np.uint8(j % 2 * 4)) & 15
                    if five_bits:
                        fifth = (load(blocks, at + Q5_FIFTH + i) >> np.uint8(j)) & 1
                        codes = codes | (fifth << 4)
                    store(out, (k + lane) * N + j * SUB + i, to_f32(codes) * factor - offset)


@ENCODE
def encode_q4_k(x: Any, out: Any) -> None:
    encode_sixes(x, out, False, Q4_SIZE, f32(-1), 20)


@ENCODE
def encode_q5_k(x: Any, out: Any) -> None:
    encode_sixes(x, out, True, Q5_SIZE, f32(-0.5), 15)


@WEIGHTED
def search_q4_k(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    search_sixes(x, out, importance, first, False, Q4_SIZE)


@WEIGHTED
def search_q5_k(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    search_sixes(x, out, importance, first, True, Q5_SIZE)


@DECODE
def decode_q4_k(blocks: Any, out: Any) -> None:
    decode_sixes(blocks, out, False, Q4_SIZE)


@DECODE
def decode_q5_k(blocks: Any, out: Any) -> None:
    decode_sixes(blocks, out, True, Q5_SIZE)


# ---- Q2_K: 16 sub-blocks of 16, scales and minima of 4 bits ----

SUB2, SUBS2 = 16, 16
Q2_SCALES, Q2_CODES, Q2_D, Q2_DMIN, Q2_SIZE = offsets("Q2_K")


@jitable
def finish_q2_k(s: Any, found: Any, codes: Any, block: Any) -> None:
    """From the stored scales the codes of the weights; four to a byte, 32 weights apart."""
    d, dmin = load_half(block, Q2_D), load_half(block, Q2_DMIN)
    for j in range(SUBS2):
        pair = load(block, (Q2_SCALES + j) * W)
        recode_sub_block(s, j, SUB2, d * to_f32(pair & 15), dmin * to_f32(pair >> 4), f32(3), found, codes)
    store_crumbs(codes, block, Q2_CODES)


@ENCODE
def encode_q2_k(x: Any, out: Any) -> None:
    """The largest scale (and minimum) of a super-block gets code 15; errors are measured as absolute differences."""
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(Q2_SIZE * W, np.uint8)
    w, tried = scratch(2 * SUB2 * W, np.float32), scratch(2 * SUB2 * W, np.float32)
    found = scratch(4 * SUBS2 * W, np.float32)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        for j in range(0, SUBS2, 2):
            at = j * SUB2 * W
            for i in range(2 * SUB2):
                store(w, i * W, absolute(load(s, at + i * W)))
            two_scales_and_mins(s, j, w, tried, SUB2, f32(3), f32(-0.5), f32(0.1), 15, True, found)
        max_scale, max_min = largest(found, 0, SUBS2), largest(found, SUBS2 * W, SUBS2)
        scaled, lowered = max_scale > 0, max_min > 0
        for j in range(SUBS2):
            scale = to_i32(nearest(f32(15) / max_scale * load(found, j * W)))
            low = to_i32(nearest(f32(15) / max_min * load(found, (SUBS2 + j) * W)))
            store(block, (Q2_SCALES + j) * W, to_u8(select(scaled, scale, 0) | (select(lowered, low, 0) << 4)))
        store_half(block, Q2_D, f32_to_half(select(scaled, max_scale / f32(15), f32(0))))
        store_half(block, Q2_DMIN, f32_to_half(select(lowered, max_min / f32(15), f32(0))))
        finish_q2_k(s, found, codes, block)
        from_lanes(block, Q2_SIZE, out, k * Q2_SIZE)


@WEIGHTED
def search_q2_k(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    per_row = importance.size // N - W
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(Q2_SIZE * W, np.uint8)
    found, sums = scratch(4 * SUBS2 * W, np.float32), scratch(SUBS2 * W, np.float32)
    scales, mins = scratch(SUBS2 * W, np.float32), scratch(SUBS2 * W, np.float32)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        square = square_sum(s, 0, N) / f32(N)
        column = (first + k) % per_row * N
        search_pairs(s, importance, column, square, SUB2, f32(3), found, sums)
        d = positive_scale(found, 0, sums, 0, scales, 0, SUBS2, f32(15))
        dmin = positive_scale(found, SUBS2 * W, sums, 0, mins, 0, SUBS2, f32(15))
        for j in range(SUBS2):
            scale, low = to_i32(load(scales, j * W)), to_i32(load(mins, j * W))
            store(block, (Q2_SCALES + j) * W, to_u8(scale | (low << 4)))
        store_half(block, Q2_D, f32_to_half(d))
        store_half(block, Q2_DMIN, f32_to_half(dmin))
        finish_q2_k(s, found, codes, block)
        from_lanes(block, Q2_SIZE, out, k * Q2_SIZE)


@DECODE
def decode_q2_k(blocks: Any, out: Any) -> None:
    s, block = scratch(N * W, np.float32), scratch(Q2_SIZE * W, np.uint8)
    for k in range(0, blocks.size // Q2_SIZE, W):
        to_lanes(blocks, k * Q2_SIZE, Q2_SIZE, block, 0)
        d, dmin = load_half(block, Q2_D), load_half(block, Q2_DMIN)
        for j in range(SUBS2):
            pair = load(block, (Q2_SCALES + j) * W)
            scale, low = d * to_f32(pair & 15), dmin * to_f32(pair >> 4)
            for i in range(j * SUB2, (j + 1) * SUB2):
                store(s, i * W, scale * to_f32(load_crumb(block, Q2_CODES, i)) - low)
        from_lanes(s, N, out, k * N)


KERNELS = {
    "Q2_K": Codec(encode_q2_k, search_q2_k, decode_q2_k, alive=N),
    "Q4_K": Codec(encode_q4_k, search_q4_k, decode_q4_k, alive=N),
    "Q5_K": Codec(encode_q5_k, search_q5_k, decode_q5_k, alive=N),
}
