"""Q3_K, Q6_K, Q8_K: super-blocks whose sub-blocks have a scale only, x = scale * code, with codes of both signs.

Encodings: quantize_row_q*_K_ref (unweighted) and quantize_row_q*_K_impl (weighted) of ggml-quants.c. Q8_K, a format of
activations that ggml_quantize_chunk does not take, follows quantize_row_q8_K_ref.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, load_half, offsets, part_to_lanes, store_half, to_lanes
from ggufsmith.quantize.kernels.search import (
    ALL_ZERO,
    extreme,
    refined_scale,
    store_symmetric_codes,
    symmetric_scale,
)
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
    any_lane,
    bits,
    broadcast,
    clamp,
    f32,
    f32_to_half,
    from_bits,
    jitable,
    load,
    minimum,
    nearest,
    scratch,
    select,
    store,
    to_f32,
    to_i8,
    to_i32,
    to_u8,
    to_u32,
)

SUB, SUBS = 16, 16

# ---- Q3_K: scales of 6 bits ----

MASK, Q3_CODES, Q3_SCALES, Q3_D, Q3_SIZE = offsets("Q3_K")


@jitable
def pack_scales(scales: Any, block: Any) -> None:
    """16 scales (u8, 0 to 63) into 12 bytes: 8 bytes of low nibbles, 4 of upper bits."""
    for j in range(8):
        low, high = load(scales, j * W), load(scales, (j + 8) * W)
        store(block, (Q3_SCALES + j) * W, (low & 15) | (high << 4))
    for j in range(4):
        low = (load(scales, j * W) >> 4) | ((load(scales, (j + 4) * W) >> 4) << 2)
        high = (load(scales, (j + 8) * W) >> 4) | ((load(scales, (j + 12) * W) >> 4) << 2)
        store(block, (Q3_SCALES + 8 + j) * W, low | (high << 4))


@jitable
def unpack_scale(block: Any, j: int) -> Any:
    """Scale j of 16, as f32 from -32 to 31."""
    low = (load(block, (Q3_SCALES + j % 8) * W) >> np.uint8(j // 8 * 4)) & 15
    high = (load(block, (Q3_SCALES + 8 + j % 4) * W) >> np.uint8(j // 4 * 2)) & 3
    return to_f32(to_i32(low | (high << 4)) - 32)


@jitable
def finish_q3_k(s: Any, codes: Any, block: Any) -> None:
    """From the stored scales the codes of the weights: two bits, and the third in bit i / 32 of byte i % 32."""
    d, zero = load_half(block, Q3_D), broadcast(f32(0))
    for j in range(SUBS):
        recode(s, j * SUB * W, SUB, d * unpack_scale(block, j), zero, f32(-4), f32(3), codes)
    for i in range(32):
        third = broadcast(np.uint32(0))
        for j in range(8):
            at = (j * 32 + i) * W
            code = load(codes, at)
            third = third | (to_u32(code >> 2) << np.uint32(j))
            store(codes, at, code & 3)
        store(block, (MASK + i) * W, to_u8(third))
    store_crumbs(codes, block, Q3_CODES)


@ENCODE
def encode_q3_k(x: Any, out: Any) -> None:
    """The scale of largest magnitude of a super-block gets code -32."""
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(Q3_SIZE * W, np.uint8)
    scales, scale_codes = scratch(SUBS * W, np.float32), scratch(SUBS * W, np.uint8)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        for j in range(SUBS):
            store(scales, j * W, refined_scale(s, j * SUB * W, SUB, f32(4), codes, j * SUB * W))
        top, _ = extreme(scales, 0, SUBS)
        some = top != 0
        inverse = f32(-32) / top
        for j in range(SUBS):
            code = to_i32(to_i8(to_i32(nearest(inverse * load(scales, j * W)))))
            store(scale_codes, j * W, to_u8(select(some, clamp(code, -32, 31) + 32, 0)))
        store_half(block, Q3_D, f32_to_half(select(some, f32(1) / inverse, f32(0))))
        pack_scales(scale_codes, block)
        finish_q3_k(s, codes, block)
        from_lanes(block, Q3_SIZE, out, k * Q3_SIZE)


@WEIGHTED
def search_q3_k(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    per_row = importance.size // N - W
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(Q3_SIZE * W, np.uint8)
    w, wx = scratch(SUB * W, np.float32), scratch(SUB * W, np.float32)
    scales, sums, scale_codes = (
        scratch(SUBS * W, np.float32),
        scratch(SUBS * W, np.float32),
        scratch(SUBS * W, np.uint8),
    )
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        square = f32(2) * square_sum(s, 0, N) / f32(N)
        column = (first + k) % per_row * N
        for j in range(SUBS):
            at = j * SUB * W
            store(sums, j * W, importance_of(s, at, SUB, importance, column + j * SUB, square, w, 0))
            scale, inverse, zero = symmetric_scale(s, at, w, wx, SUB, f32(4), True)
            store_symmetric_codes(s, at, SUB, inverse, zero, f32(4), codes, at)
            store(scales, j * W, scale)
        d, inverse, zero = symmetric_scale(scales, 0, sums, wx, SUBS, f32(32), False)
        store_symmetric_codes(scales, 0, SUBS, inverse, zero, f32(32), scale_codes, 0)
        store_half(block, Q3_D, f32_to_half(d))
        pack_scales(scale_codes, block)
        finish_q3_k(s, codes, block)
        from_lanes(block, Q3_SIZE, out, k * Q3_SIZE)


@DECODE
def decode_q3_k(blocks: Any, out: Any) -> None:
    s, block = scratch(N * W, np.float32), scratch(Q3_SIZE * W, np.uint8)
    for k in range(0, blocks.size // Q3_SIZE, W):
        to_lanes(blocks, k * Q3_SIZE, Q3_SIZE, block, 0)
        d = load_half(block, Q3_D)
        for j in range(SUBS):
            scale = d * unpack_scale(block, j)
            for i in range(j * SUB, (j + 1) * SUB):
                third = (load(block, (MASK + i % 32) * W) >> np.uint8(i // 32)) & 1
                code = to_i32(load_crumb(block, Q3_CODES, i) | (third << 2)) - 4
                store(s, i * W, scale * to_f32(code))
        from_lanes(s, N, out, k * N)


# ---- Q6_K: scales of 8 bits ----

Q6_LOW, Q6_HIGH, Q6_SCALES, Q6_D, Q6_SIZE = offsets("Q6_K")


@jitable
def load_own_weights(x: Any, at: int, n: int, w: Any) -> None:
    """w = x * x."""
    for i in range(n):
        v = load(x, at + i * W)
        store(w, i * W, v * v)


@jitable
def finish_q6_k(s: Any, scales: Any, inverses: Any, codes: Any, block: Any) -> None:
    """The scale of largest magnitude gets code -128; the codes of the weights are nibbles and two upper bits."""
    top, size = extreme(scales, 0, SUBS)
    inverse = f32(-128) / top
    d_bits = f32_to_half(f32(1) / inverse)
    store_half(block, Q6_D, d_bits)
    d, zero = load_half(block, Q6_D), broadcast(f32(0))
    for j in range(SUBS):
        scale = to_i8(to_i32(minimum(f32(127), nearest(inverse * load(scales, j * W)))))
        store(block, (Q6_SCALES + j) * W, to_u8(scale))
        at, factor = j * SUB * W, d * to_f32(scale)
        if any_lane(factor == 0):  # the codes of the search stay
            none = extreme(s, at, SUB)[1] < ALL_ZERO
            store_symmetric_codes(s, at, SUB, load(inverses, j * W), none, f32(32), codes, at)
        recode(s, at, SUB, factor, zero, f32(-32), f32(31), codes)
    for half in range(2):
        for i in range(32):
            at = (half * 128 + i) * W
            a, b = load(codes, at), load(codes, at + 32 * W)
            c, e = load(codes, at + 64 * W), load(codes, at + 96 * W)
            store(block, (Q6_LOW + half * 64 + i) * W, (a & 15) | (c << 4))
            store(block, (Q6_LOW + half * 64 + 32 + i) * W, (b & 15) | (e << 4))
            high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)
            store(block, (Q6_HIGH + half * 32 + i) * W, high)
    empty = size < ALL_ZERO
    if any_lane(empty):
        for byte in range(Q6_SIZE):
            store(block, byte * W, select(empty, 0, load(block, byte * W)))


@ENCODE
def encode_q6_k(x: Any, out: Any) -> None:
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(Q6_SIZE * W, np.uint8)
    w, wx = scratch(SUB * W, np.float32), scratch(SUB * W, np.float32)
    scales, inverses = scratch(SUBS * W, np.float32), scratch(SUBS * W, np.float32)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        for j in range(SUBS):
            at = j * SUB * W
            load_own_weights(s, at, SUB, w)
            scale, inverse, _ = symmetric_scale(s, at, w, wx, SUB, f32(32), True)
            store(scales, j * W, scale)
            store(inverses, j * W, inverse)
        finish_q6_k(s, scales, inverses, codes, block)
        from_lanes(block, Q6_SIZE, out, k * Q6_SIZE)


@WEIGHTED
def search_q6_k(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    per_row = importance.size // N - W
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.uint8), scratch(Q6_SIZE * W, np.uint8)
    w, wx = scratch(SUB * W, np.float32), scratch(SUB * W, np.float32)
    scales, inverses = scratch(SUBS * W, np.float32), scratch(SUBS * W, np.float32)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        column = (first + k) % per_row * N
        for j in range(SUBS):
            at = j * SUB * W
            part_to_lanes(importance, column + j * SUB, N, SUB, w, 0)
            scale, inverse, _ = symmetric_scale(s, at, w, wx, SUB, f32(32), True)
            store(scales, j * W, scale)
            store(inverses, j * W, inverse)
        finish_q6_k(s, scales, inverses, codes, block)
        from_lanes(block, Q6_SIZE, out, k * Q6_SIZE)


@DECODE
def decode_q6_k(blocks: Any, out: Any) -> None:
    s, block = scratch(N * W, np.float32), scratch(Q6_SIZE * W, np.uint8)
    for k in range(0, blocks.size // Q6_SIZE, W):
        to_lanes(blocks, k * Q6_SIZE, Q6_SIZE, block, 0)
        d = load_half(block, Q6_D)
        for j in range(SUBS):
            scale = d * to_f32(to_i8(load(block, (Q6_SCALES + j) * W)))
            for i in range(j * SUB, (j + 1) * SUB):
                quarter = i % 128 // 32
                low = load(block, (Q6_LOW + i // 128 * 64 + quarter % 2 * 32 + i % 32) * W)
                high = load(block, (Q6_HIGH + i // 128 * 32 + i % 32) * W)
                code = ((low >> np.uint8(quarter // 2 * 4)) & 15) | (((high >> np.uint8(quarter * 2)) & 3) << 4)
                store(s, i * W, scale * to_f32(to_i32(code) - 32))
        from_lanes(s, N, out, k * N)


# ---- Q8_K ----

Q8_D, Q8_CODES, Q8_SUMS, Q8_SIZE = offsets("Q8_K")


@ENCODE
def encode_q8_k(x: Any, out: Any) -> None:
    """The weight of largest magnitude gets code -127; with the sums of 16 codes each."""
    s, block = scratch(N * W, np.float32), scratch(Q8_SIZE * W, np.uint8)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        top, size = extreme(s, 0, N)
        some = size != 0
        inverse = f32(-127) / top
        d = bits(select(some, f32(1) / inverse, f32(0)))
        for byte in range(4):
            store(block, (Q8_D + byte) * W, to_u8(d >> np.uint32(8 * byte)))
        for j in range(SUBS):
            total = broadcast(np.int32(0))
            for i in range(j * SUB, (j + 1) * SUB):
                code = to_i8(to_i32(select(some, minimum(f32(127), nearest(inverse * load(s, i * W))), f32(0))))
                store(block, (Q8_CODES + i) * W, to_u8(code))
                total = total + to_i32(code)
            store(block, (Q8_SUMS + 2 * j) * W, to_u8(total))
            store(block, (Q8_SUMS + 2 * j + 1) * W, to_u8(total >> 8))
        from_lanes(block, Q8_SIZE, out, k * Q8_SIZE)


@DECODE
def decode_q8_k(blocks: Any, out: Any) -> None:
    s, block = scratch(N * W, np.float32), scratch(Q8_SIZE * W, np.uint8)
    for k in range(0, blocks.size // Q8_SIZE, W):
        to_lanes(blocks, k * Q8_SIZE, Q8_SIZE, block, 0)
        word = broadcast(np.uint32(0))
        for byte in range(4):
            word = word | (to_u32(load(block, (Q8_D + byte) * W)) << np.uint32(8 * byte))
        d = from_bits(word)
        for i in range(N):
            store(s, i * W, d * to_f32(to_i8(load(block, (Q8_CODES + i) * W))))
        from_lanes(s, N, out, k * N)


KERNELS = {
    "Q3_K": Codec(encode_q3_k, search_q3_k, decode_q3_k, alive=SUB),
    "Q6_K": Codec(encode_q6_k, search_q6_k, decode_q6_k, alive=SUB),
    "Q8_K": Codec(encode_q8_k, None, decode_q8_k),
}
