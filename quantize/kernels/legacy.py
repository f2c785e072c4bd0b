"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q1_0, Q2_0: one scale (and one minimum) per block of 32 to 128 weights.

Layouts: container/formats.py. The unweighted encodings are quantize_row_q*_ref of ggml-quants.c, the weighted ones
quantize_row_q*_impl; Q8_0, Q1_0 and Q2_0 have no weighted one.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.cache import INT, READ_F32, READ_U8, WRITE_F32, WRITE_U8, kernel
from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, load_half, load_halves, store_half, to_lanes
from ggufsmith.quantize.kernels.search import extreme, symmetric_scale
from ggufsmith.quantize.kernels.search_min import scale_and_min
from ggufsmith.quantize.simd import (
    W,
    absolute,
    broadcast,
    clamp,
    f32,
    f32_to_half,
    jitable,
    load,
    maximum,
    minimum,
    nearest,
    nearest_small,
    round_away,
    scratch,
    select,
    sqrt,
    store,
    to_f32,
    to_i8,
    to_i32,
    to_u8,
    to_u32,
)

N = 32
FLT_MAX = f32(3.4028234663852886e38)


# ---- codes of 4 and 5 bits ----


@jitable
def inverse_of(d: Any) -> Any:
    """1 / d, and 0 where d is 0 or so small that 1 / d is infinite; with the mask of the latter.

    There ggml converts infinity and NaN to an integer, whose low bits are 0 on x86: all codes are 0.
    """
    inverse = f32(1) / d
    infinite = (absolute(inverse) > FLT_MAX) & (d != 0)
    return select((d != 0) & ~infinite, inverse, f32(0)), infinite


@jitable
def pack(codes: Any, five_bits: bool, block: Any, byte: int) -> None:
    """Codes (i32) of the blocks in lanes into their bytes from `byte` on: the fifth bits, if any, then the low nibbles.

    Byte j of the nibbles holds weights j and j + 16; bit i of the 32 fifth bits belongs to weight i.
    """
    nibbles = byte
    if five_bits:
        nibbles = byte + 4
    fifth = broadcast(np.int32(0))
    for j in range(N // 2):
        low, high = load(codes, j * W), load(codes, (j + N // 2) * W)
        store(block, (nibbles + j) * W, to_u8((low & 15) | (high << 4)))
        fifth = fifth | ((low >> 4) << np.int32(j)) | ((high >> 4) << np.int32(j + N // 2))
    if five_bits:
        for k in range(4):
            store(block, (byte + k) * W, to_u8(fifth >> np.int32(8 * k)))


@jitable
def unpack(block: Any, byte: int, five_bits: bool, i: int) -> Any:
    """Code i of the blocks in lanes, as i32."""
    nibbles = byte
    if five_bits:
        nibbles = byte + 4
    pair = to_i32(load(block, (nibbles + i % (N // 2)) * W))
    code = (pair >> np.int32(4 * (i // (N // 2)))) & 15
    if five_bits:
        code = code | (((to_i32(load(block, (byte + i // 8) * W)) >> np.int32(i % 8)) & 1) << 4)
    return code


@jitable
def encode_symmetric(x: Any, out: Any, levels: Any, five_bits: bool, size: int) -> None:
    """Q4_0, Q5_0: the weight of largest magnitude gets code 0, that is -levels."""
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.int32), scratch(size * W, np.uint8)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        top, _ = extreme(s, 0, N)
        d = top / -levels
        inverse, infinite = inverse_of(d)
        middle = select(infinite, f32(0), broadcast(levels + f32(0.5)))
        last = levels + levels - f32(1)
        for i in range(N):
            store(codes, i * W, to_i32(minimum(load(s, i * W) * inverse + middle, last)))
        store_half(block, 0, f32_to_half(d))
        pack(codes, five_bits, block, 2)
        from_lanes(block, size, out, k * size)


@jitable
def encode_with_min(x: Any, out: Any, top: Any, five_bits: bool, size: int) -> None:
    """Q4_1, Q5_1: codes from 0 for the least weight to `top` for the greatest."""
    s, codes, block = scratch(N * W, np.float32), scratch(N * W, np.int32), scratch(size * W, np.uint8)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        low, high = broadcast(FLT_MAX), broadcast(-FLT_MAX)
        for i in range(N):
            v = load(s, i * W)
            low, high = minimum(v, low), maximum(v, high)
        d = (high - low) / top
        inverse, _ = inverse_of(d)
        for i in range(N):  # a range above FLT_MAX gives NaN, and code 0
            code = maximum((load(s, i * W) - low) * inverse + f32(0.5), f32(0))
            store(codes, i * W, to_i32(minimum(code, top)))
        store_half(block, 0, f32_to_half(d))
        store_half(block, 2, f32_to_half(low))
        pack(codes, five_bits, block, 4)
        from_lanes(block, size, out, k * size)


# ---- their weighted searches ----


@jitable
def load_importance(importance: Any, first: int, power: Any, w: Any, room: Any) -> Any:
    """The importance of the group of blocks from `first` on, into w; returns the mean squares of their rows."""
    per_row = importance.size // N - W
    row, column = first // per_row, first % per_row
    to_lanes(importance, column * N, N, w, 0)
    for lane in range(W):
        room[lane] = power[min(row, power.size - 1)]
        column += 1
        if column == per_row:
            row, column = row + 1, 0
    return load(room, 0)


@jitable
def search_symmetric(
    x: Any, out: Any, importance: Any, first: int, power: Any, levels: Any, five_bits: bool, size: int
) -> None:
    s, w, room = scratch(N * W, np.float32), scratch(N * W, np.float32), scratch(W, np.float32)
    wx, codes, block = scratch(N * W, np.float32), scratch(N * W, np.int32), scratch(size * W, np.uint8)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        square = load_importance(importance, first + k, power, w, room)
        d, inverse, zero = symmetric_scale(s, 0, w, wx, N, levels, True, square)
        for i in range(N):
            code = clamp(nearest_small(inverse * load(s, i * W)), -levels, levels - f32(1)) + levels
            store(codes, i * W, to_i32(select(zero, f32(0), code)))
        store_half(block, 0, f32_to_half(d))
        pack(codes, five_bits, block, 2)
        from_lanes(block, size, out, k * size)


@jitable
def search_with_min(
    x: Any, out: Any, importance: Any, first: int, power: Any, top: Any, five_bits: bool, size: int
) -> None:
    s, w, room = scratch(N * W, np.float32), scratch(N * W, np.float32), scratch(W, np.float32)
    tried, codes, block = scratch(N * W, np.float32), scratch(N * W, np.int32), scratch(size * W, np.uint8)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        square = load_importance(importance, first + k, power, w, room)
        for i in range(N):
            v = load(s, i * W)
            store(w, i * W, load(w, i * W) * sqrt(square + v * v))
        d, low, inverse, offset = scale_and_min(s, 0, w, tried, N, top, f32(-0.9), f32(0.05), 36, False)
        for i in range(N):
            code = clamp(nearest(inverse * (load(s, i * W) - offset)), f32(0), top)
            store(codes, i * W, to_i32(code))
        store_half(block, 0, f32_to_half(d))
        store_half(block, 2, f32_to_half(-low))
        pack(codes, five_bits, block, 4)
        from_lanes(block, size, out, k * size)


@jitable
def decode_symmetric(blocks: Any, out: Any, levels: int, five_bits: bool, size: int) -> None:
    s, block = scratch(N * W, np.float32), scratch(size * W, np.uint8)
    for k in range(0, blocks.size // size, W):
        to_lanes(blocks, k * size, size, block, 0)
        d = load_half(block, 0)
        for i in range(N):
            store(s, i * W, to_f32(unpack(block, 2, five_bits, i) - levels) * d)
        from_lanes(s, N, out, k * N)


@jitable
def decode_with_min(blocks: Any, out: Any, five_bits: bool, size: int) -> None:
    s, block = scratch(N * W, np.float32), scratch(size * W, np.uint8)
    for k in range(0, blocks.size // size, W):
        to_lanes(blocks, k * size, size, block, 0)
        d, low = load_half(block, 0), load_half(block, 2)
        for i in range(N):
            store(s, i * W, to_f32(unpack(block, 4, five_bits, i)) * d + low)
        from_lanes(s, N, out, k * N)


ENCODE, DECODE = kernel(READ_F32, WRITE_U8), kernel(READ_U8, WRITE_F32)
WEIGHTED = kernel(READ_F32, WRITE_U8, READ_F32, INT, READ_F32)


@ENCODE
def encode_q4_0(x: Any, out: Any) -> None:
    encode_symmetric(x, out, f32(8), False, 18)


@ENCODE
def encode_q5_0(x: Any, out: Any) -> None:
    encode_symmetric(x, out, f32(16), True, 22)


@ENCODE
def encode_q4_1(x: Any, out: Any) -> None:
    encode_with_min(x, out, f32(15), False, 20)


@ENCODE
def encode_q5_1(x: Any, out: Any) -> None:
    encode_with_min(x, out, f32(31), True, 24)


@WEIGHTED
def search_q4_0(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    search_symmetric(x, out, importance, first, power, f32(8), False, 18)


@WEIGHTED
def search_q5_0(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    search_symmetric(x, out, importance, first, power, f32(16), True, 22)


@WEIGHTED
def search_q4_1(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    search_with_min(x, out, importance, first, power, f32(15), False, 20)


@WEIGHTED
def search_q5_1(x: Any, out: Any, importance: Any, first: int, power: Any) -> None:
    search_with_min(x, out, importance, first, power, f32(31), True, 24)


@DECODE
def decode_q4_0(blocks: Any, out: Any) -> None:
    decode_symmetric(blocks, out, 8, False, 18)


@DECODE
def decode_q5_0(blocks: Any, out: Any) -> None:
    decode_symmetric(blocks, out, 16, True, 22)


@DECODE
def decode_q4_1(blocks: Any, out: Any) -> None:
    decode_with_min(blocks, out, False, 20)


@DECODE
def decode_q5_1(blocks: Any, out: Any) -> None:
    decode_with_min(blocks, out, True, 24)


# ---- codes of 8, 1 and 2 bits ----


@jitable
def largest(s: Any, n: int) -> Any:
    """The largest magnitude of n values."""
    size = broadcast(f32(0))
    for i in range(n):
        size = maximum(absolute(load(s, i * W)), size)
    return size


@ENCODE
def encode_q8_0(x: Any, out: Any) -> None:
    s, block = scratch(N * W, np.float32), scratch(34 * W, np.uint8)
    for k in range(0, x.size // N, W):
        to_lanes(x, k * N, N, s, 0)
        d = largest(s, N) / f32(127)
        inverse, _ = inverse_of(d)
        store_half(block, 0, f32_to_half(d))
        for i in range(N):
            store(block, (2 + i) * W, to_u8(round_away(load(s, i * W) * inverse)))
        from_lanes(block, 34, out, k * 34)


@DECODE
def decode_q8_0(blocks: Any, out: Any) -> None:
    """One weight per lane: the codes lie in the order of the weights."""
    room, d = scratch(W, np.uint16), scratch(W, np.float32)
    for k in range(0, blocks.size // 34, W):
        load_halves(blocks, k * 34, 34, room, d)
        for lane in range(W):
            for i in range(0, N, W):
                codes = to_i8(load(blocks, (k + lane) * 34 + 2 + i))
                store(out, (k + lane) * N + i, to_f32(codes) * d[lane])


@ENCODE
def encode_q1_0(x: Any, out: Any) -> None:
    """The sign of each weight, and the mean magnitude."""
    s, block = scratch(128 * W, np.float32), scratch(18 * W, np.uint8)
    for k in range(0, x.size // 128, W):
        to_lanes(x, k * 128, 128, s, 0)
        total = broadcast(f32(0))
        for byte in range(16):
            signs = broadcast(np.uint32(0))
            for i in range(8):
                v = load(s, (byte * 8 + i) * W)
                total = total + absolute(v)
                signs = signs | (to_u32(v >= 0) << np.uint32(i))
            store(block, (2 + byte) * W, to_u8(signs))
        store_half(block, 0, f32_to_half(total / f32(128)))
        from_lanes(block, 18, out, k * 18)


@DECODE
def decode_q1_0(blocks: Any, out: Any) -> None:
    s, block = scratch(128 * W, np.float32), scratch(18 * W, np.uint8)
    for k in range(0, blocks.size // 18, W):
        to_lanes(blocks, k * 18, 18, block, 0)
        d = load_half(block, 0)
        for i in range(128):
            positive = (load(block, (2 + i // 8) * W) >> np.uint8(i % 8)) & 1
            store(s, i * W, select(positive != 0, d, -d))
        from_lanes(s, 128, out, k * 128)


@ENCODE
def encode_q2_0(x: Any, out: Any) -> None:
    """Codes 0 to 3 for -1, 0, 1 and 2 times the largest magnitude (so 3 is never written)."""
    s, block = scratch(64 * W, np.float32), scratch(18 * W, np.uint8)
    for k in range(0, x.size // 64, W):
        to_lanes(x, k * 64, 64, s, 0)
        d = largest(s, 64)
        inverse, infinite = inverse_of(d)
        zero = select(infinite, 0, broadcast(np.int32(1)))
        store_half(block, 0, f32_to_half(d))
        for byte in range(16):
            four = broadcast(np.uint32(0))
            for i in range(4):
                code = clamp(round_away(load(s, (byte * 4 + i) * W) * inverse) + zero, 0, 3)
                four = four | (to_u32(code) << np.uint32(2 * i))
            store(block, (2 + byte) * W, to_u8(four))
        from_lanes(block, 18, out, k * 18)


@DECODE
def decode_q2_0(blocks: Any, out: Any) -> None:
    s, block = scratch(64 * W, np.float32), scratch(18 * W, np.uint8)
    for k in range(0, blocks.size // 18, W):
        to_lanes(blocks, k * 18, 18, block, 0)
        d = load_half(block, 0)
        for i in range(64):
            code = (load(block, (2 + i // 4) * W) >> np.uint8(2 * (i % 4))) & 3
            store(s, i * W, to_f32(to_i32(code) - 1) * d)
        from_lanes(s, 64, out, k * 64)


KERNELS = {
    "Q4_0": Codec(encode_q4_0, search_q4_0, decode_q4_0, alive=32, by_row=True),
    "Q4_1": Codec(encode_q4_1, search_q4_1, decode_q4_1, by_row=True),
    "Q5_0": Codec(encode_q5_0, search_q5_0, decode_q5_0, alive=32, by_row=True),
    "Q5_1": Codec(encode_q5_1, search_q5_1, decode_q5_1, by_row=True),
    "Q8_0": Codec(encode_q8_0, None, decode_q8_0),
    "Q1_0": Codec(encode_q1_0, None, decode_q1_0),
    "Q2_0": Codec(encode_q2_0, None, decode_q2_0),
}
