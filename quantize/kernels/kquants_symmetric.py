"""Q3_K, Q6_K, Q8_K: super-blocks whose sub-blocks have a scale only, x = scale * code, with codes of both signs.

Encodings: quantize_row_q*_K_ref (unweighted) and quantize_row_q*_K_impl (weighted) of ggml-quants.c. Q8_K, a format of
activations that ggml_quantize_chunk does not take, follows quantize_row_q8_K_ref.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.kernels import Call, Codec, Steering
from ggufsmith.quantize.kernels.blocks import (
    QK_K,
    from_lanes,
    get,
    get_half,
    offsets,
    part_to_lanes,
    put,
    put_half,
    put_u16,
    room,
    to_lanes,
)
from ggufsmith.quantize.kernels.common import decoding, encoding, place_of, searching, square_sum
from ggufsmith.quantize.kernels.search import (
    ALL_ZERO,
    extreme,
    put_symmetric_codes,
    refined_scale,
    symmetric_scale,
)
from ggufsmith.quantize.kernels.superblocks import get_crumb, importance_of, put_crumbs, recode
from ggufsmith.quantize.simd import (
    W,
    any_lane,
    bits,
    broadcast,
    clamp,
    f32,
    from_bits,
    jitable,
    minimum,
    nearest,
    select,
    to_f32,
    to_i8,
    to_i32,
    to_u8,
    to_u32,
)

SUB, SUBS = 16, 16

# ---- Q3_K: scales of 6 bits ----

Q3_MASK, Q3_CODES, Q3_SCALES, Q3_D, Q3_SIZE = offsets("Q3_K")


@jitable
def pack_scales(scales: Any, block: Any) -> None:
    """16 scales (u8, 0 to 63) into 12 bytes: 8 bytes of low nibbles, 4 of upper bits."""
    for j in range(8):
        low, high = get(scales, j), get(scales, j + 8)
        put(block, Q3_SCALES + j, (low & 15) | (high << 4))
    for j in range(4):
        low = (get(scales, j) >> 4) | ((get(scales, j + 4) >> 4) << 2)
        high = (get(scales, j + 8) >> 4) | ((get(scales, j + 12) >> 4) << 2)
        put(block, Q3_SCALES + 8 + j, low | (high << 4))


@jitable
def unpack_scale(block: Any, j: int) -> Any:
    """Scale j of 16, as f32 from -32 to 31."""
    low = (get(block, Q3_SCALES + j % 8) >> np.uint8(j // 8 * 4)) & 15
    high = (get(block, Q3_SCALES + 8 + j % 4) >> np.uint8(j // 4 * 2)) & 3
    return to_f32(to_i32(low | (high << 4)) - 32)


@jitable
def finish_q3_k(s: Any, codes: Any, block: Any) -> None:
    """From the stored scales the codes of the weights: two bits, and the third in bit i / 32 of byte i % 32."""
    d, zero = get_half(block, Q3_D), broadcast(f32(0))
    for j in range(SUBS):
        recode(s, j * SUB, SUB, d * unpack_scale(block, j), zero, f32(-4), f32(3), codes)
    for byte in range(32):
        third = broadcast(np.uint32(0))
        for j in range(8):
            i = j * 32 + byte
            code = get(codes, i)
            third = third | (to_u32(code >> 2) << np.uint32(j))
            put(codes, i, code & 3)
        put(block, Q3_MASK + byte, to_u8(third))
    put_crumbs(codes, block, Q3_CODES)


@encoding
def encode_q3_k(x: Any, out: Any) -> None:
    """The scale of largest magnitude of a super-block gets code -32."""
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(Q3_SIZE, np.uint8)
    scales, scale_codes = room(SUBS, f32), room(SUBS, np.uint8)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        for j in range(SUBS):
            put(scales, j, refined_scale(s, j * SUB, SUB, f32(4), codes, j * SUB))
        top, _ = extreme(scales, 0, SUBS)
        some = top != 0
        inverse = f32(-32) / top
        for j in range(SUBS):
            code = to_i32(to_i8(to_i32(nearest(inverse * get(scales, j)))))
            put(scale_codes, j, to_u8(select(some, clamp(code, -32, 31) + 32, 0)))
        put_half(block, Q3_D, select(some, f32(1) / inverse, f32(0)))
        pack_scales(scale_codes, block)
        finish_q3_k(s, codes, block)
        from_lanes(block, Q3_SIZE, out, k * Q3_SIZE)


@searching
def search_q3_k(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q3_K_impl."""
    steer = Steering(weights, first, blocks_per_row, row_squares)
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(Q3_SIZE, np.uint8)
    w, wx, sums = room(SUB, f32), room(SUB, f32), room(SUBS, f32)
    scales, scale_codes = room(SUBS, f32), room(SUBS, np.uint8)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        square = f32(2) * square_sum(s, 0, QK_K) / f32(QK_K)
        place = place_of(steer, k, QK_K)
        for j in range(SUBS):
            at = j * SUB
            put(sums, j, importance_of(s, at, SUB, steer.weights, place + at, square, w, 0))
            scale, inverse, zero = symmetric_scale(s, at, w, wx, SUB, f32(4), True)
            put_symmetric_codes(s, at, SUB, inverse, zero, f32(4), codes, at)
            put(scales, j, scale)
        d, inverse, zero = symmetric_scale(scales, 0, sums, wx, SUBS, f32(32), False)
        put_symmetric_codes(scales, 0, SUBS, inverse, zero, f32(32), scale_codes, 0)
        put_half(block, Q3_D, d)
        pack_scales(scale_codes, block)
        finish_q3_k(s, codes, block)
        from_lanes(block, Q3_SIZE, out, k * Q3_SIZE)


@decoding
def decode_q3_k(blocks: Any, out: Any) -> None:
    """dequantize_row_q3_K."""
    s, block = room(QK_K, f32), room(Q3_SIZE, np.uint8)
    for k in range(0, out.size // QK_K, W):
        to_lanes(blocks, k * Q3_SIZE, Q3_SIZE, block)
        d = get_half(block, Q3_D)
        for j in range(SUBS):
            scale = d * unpack_scale(block, j)
            for i in range(j * SUB, (j + 1) * SUB):
                third = (get(block, Q3_MASK + i % 32) >> np.uint8(i // 32)) & 1
                code = to_i32(get_crumb(block, Q3_CODES, i) | (third << 2)) - 4
                put(s, i, scale * to_f32(code))
        from_lanes(s, QK_K, out, k * QK_K)


# ---- Q6_K: scales of 8 bits ----

Q6_LOW, Q6_HIGH, Q6_SCALES, Q6_D, Q6_SIZE = offsets("Q6_K")


@jitable
def own_weights(x: Any, at: int, n: int, w: Any) -> None:
    """w = x * x."""
    for i in range(n):
        v = get(x, at + i)
        put(w, i, v * v)


@jitable
def finish_q6_k(s: Any, scales: Any, inverses: Any, codes: Any, block: Any) -> None:
    """The scale of largest magnitude gets code -128; the codes of the weights are nibbles and two upper bits."""
    top, size = extreme(scales, 0, SUBS)
    inverse = f32(-128) / top
    put_half(block, Q6_D, f32(1) / inverse)
    d, zero = get_half(block, Q6_D), broadcast(f32(0))
    for j in range(SUBS):
        scale = to_i8(to_i32(minimum(f32(127), nearest(inverse * get(scales, j)))))
        put(block, Q6_SCALES + j, to_u8(scale))
        at, factor = j * SUB, d * to_f32(scale)
        if any_lane(factor == 0):  # the codes of the search stay
            none = extreme(s, at, SUB)[1] < ALL_ZERO
            put_symmetric_codes(s, at, SUB, get(inverses, j), none, f32(32), codes, at)
        recode(s, at, SUB, factor, zero, f32(-32), f32(31), codes)
    for half in range(2):
        for i in range(32):
            first = half * 128 + i
            a, b = get(codes, first), get(codes, first + 32)
            c, e = get(codes, first + 64), get(codes, first + 96)
            put(block, Q6_LOW + half * 64 + i, (a & 15) | (c << 4))
            put(block, Q6_LOW + half * 64 + 32 + i, (b & 15) | (e << 4))
            high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)
            put(block, Q6_HIGH + half * 32 + i, high)
    empty = size < ALL_ZERO
    if any_lane(empty):
        for byte in range(Q6_SIZE):
            put(block, byte, select(empty, 0, get(block, byte)))


@encoding
def encode_q6_k(x: Any, out: Any) -> None:
    """quantize_row_q6_K_ref."""
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(Q6_SIZE, np.uint8)
    w, wx, scales, inverses = room(SUB, f32), room(SUB, f32), room(SUBS, f32), room(SUBS, f32)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        for j in range(SUBS):
            own_weights(s, j * SUB, SUB, w)
            scale, inverse, _ = symmetric_scale(s, j * SUB, w, wx, SUB, f32(32), True)
            put(scales, j, scale)
            put(inverses, j, inverse)
        finish_q6_k(s, scales, inverses, codes, block)
        from_lanes(block, Q6_SIZE, out, k * Q6_SIZE)


@searching
def search_q6_k(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q6_K_impl."""
    steer = Steering(weights, first, blocks_per_row, row_squares)
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(Q6_SIZE, np.uint8)
    w, wx, scales, inverses = room(SUB, f32), room(SUB, f32), room(SUBS, f32), room(SUBS, f32)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        place = place_of(steer, k, QK_K)
        for j in range(SUBS):
            part_to_lanes(steer.weights, place + j * SUB, QK_K, SUB, w, 0)
            scale, inverse, _ = symmetric_scale(s, j * SUB, w, wx, SUB, f32(32), True)
            put(scales, j, scale)
            put(inverses, j, inverse)
        finish_q6_k(s, scales, inverses, codes, block)
        from_lanes(block, Q6_SIZE, out, k * Q6_SIZE)


@decoding
def decode_q6_k(blocks: Any, out: Any) -> None:
    """dequantize_row_q6_K."""
    s, block = room(QK_K, f32), room(Q6_SIZE, np.uint8)
    for k in range(0, out.size // QK_K, W):
        to_lanes(blocks, k * Q6_SIZE, Q6_SIZE, block)
        d = get_half(block, Q6_D)
        for j in range(SUBS):
            scale = d * to_f32(to_i8(get(block, Q6_SCALES + j)))
            for i in range(j * SUB, (j + 1) * SUB):
                quarter = i % 128 // 32
                low = get(block, Q6_LOW + i // 128 * 64 + quarter % 2 * 32 + i % 32)
                high = get(block, Q6_HIGH + i // 128 * 32 + i % 32)
                code = ((low >> np.uint8(quarter // 2 * 4)) & 15) | (((high >> np.uint8(quarter * 2)) & 3) << 4)
                put(s, i, scale * to_f32(to_i32(code) - 32))
        from_lanes(s, QK_K, out, k * QK_K)


# ---- Q8_K ----

Q8_D, Q8_CODES, Q8_SUMS, Q8_SIZE = offsets("Q8_K")


@encoding
def encode_q8_k(x: Any, out: Any) -> None:
    """The weight of largest magnitude gets code -127; with the sums of 16 codes each."""
    s, block = room(QK_K, f32), room(Q8_SIZE, np.uint8)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        top, size = extreme(s, 0, QK_K)
        some = size != 0
        inverse = f32(-127) / top
        d = bits(select(some, f32(1) / inverse, f32(0)))
        put_u16(block, Q8_D, d)
        put_u16(block, Q8_D + 2, d >> np.uint32(16))
        for j in range(SUBS):
            total = broadcast(np.int32(0))
            for i in range(j * SUB, (j + 1) * SUB):
                code = to_i8(to_i32(select(some, minimum(f32(127), nearest(inverse * get(s, i))), f32(0))))
                put(block, Q8_CODES + i, to_u8(code))
                total = total + to_i32(code)
            put_u16(block, Q8_SUMS + 2 * j, total)
        from_lanes(block, Q8_SIZE, out, k * Q8_SIZE)


@decoding
def decode_q8_k(blocks: Any, out: Any) -> None:
    """dequantize_row_q8_K."""
    s, block = room(QK_K, f32), room(Q8_SIZE, np.uint8)
    for k in range(0, out.size // QK_K, W):
        to_lanes(blocks, k * Q8_SIZE, Q8_SIZE, block)
        word = broadcast(np.uint32(0))
        for byte in range(4):
            word = word | (to_u32(get(block, Q8_D + byte)) << np.uint32(8 * byte))
        d = from_bits(word)
        for i in range(QK_K):
            put(s, i, d * to_f32(to_i8(get(block, Q8_CODES + i))))
        from_lanes(s, QK_K, out, k * QK_K)


KERNELS = {
    "Q3_K": Codec(Call(encode_q3_k), Call(search_q3_k), Call(decode_q3_k), alive=SUB),
    "Q6_K": Codec(Call(encode_q6_k), Call(search_q6_k), Call(decode_q6_k), alive=SUB),
    "Q8_K": Codec(Call(encode_q8_k), None, Call(decode_q8_k)),
}
