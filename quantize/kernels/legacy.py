"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q1_0, Q2_0: one scale (and one minimum) per block of 32 to 128 weights.

Layouts: container/formats.py. The unweighted encodings are quantize_row_q*_ref of ggml-quants.c, the weighted ones
quantize_row_q*_impl; Q8_0, Q1_0 and Q2_0 have no weighted one. docs/kernels.md walks through Q4_0.
"""

from typing import Any, NamedTuple

import numpy as np

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize.kernels import Call, Codec, Steering
from ggufsmith.quantize.kernels.blocks import (
    from_lanes,
    get,
    get_half,
    load_halves,
    offsets,
    put,
    put_half,
    room,
    to_lanes,
)
from ggufsmith.quantize.kernels.common import decoding, encoding, largest, pack_nibbles, searching, weigh
from ggufsmith.quantize.kernels.search import extreme, symmetric_scale
from ggufsmith.quantize.kernels.search_min import Steps, scale_and_min
from ggufsmith.quantize.simd import (
    W,
    absolute,
    broadcast,
    clamp,
    f32,
    jitable,
    load,
    maximum,
    minimum,
    nearest,
    nearest_small,
    round_away,
    select,
    store,
    to_f32,
    to_i8,
    to_i32,
    to_u8,
    to_u32,
)

QK = BY_NAME["Q4_0"].weights  # of the blocks of four, five and eight bits: 32
FLT_MAX = f32(3.4028234663852886e38)


# ---- codes of 4 and 5 bits ----


class Fields(NamedTuple):
    """At which bytes of a block its fields begin: scale, minimum, fifth bits, nibbles; NONE: it has no such field."""

    d: int
    m: int
    qh: int
    qs: int
    size: int


NONE = -1


def fields_of(name: str) -> Fields:
    """Those of a format of this family."""
    form = BY_NAME[name]
    at = dict(zip(form.dtype.names or (), offsets(name), strict=False))
    return Fields(at["d"], at.get("m", NONE), at.get("qh", NONE), at["qs"], form.size)


Q4_0, Q4_1, Q5_0, Q5_1 = fields_of("Q4_0"), fields_of("Q4_1"), fields_of("Q5_0"), fields_of("Q5_1")


@jitable
def inverse_of(d: Any) -> Any:
    """1 / d, and 0 where d is 0 or so small that 1 / d is infinite; with the mask of the latter.

    There ggml converts infinity and NaN to an integer, whose low bits are 0 on x86: all codes are 0.
    """
    inverse = f32(1) / d
    infinite = (absolute(inverse) > FLT_MAX) & (d != 0)
    return select((d != 0) & ~infinite, inverse, f32(0)), infinite


@jitable
def pack(codes: Any, fields: Fields, block: Any) -> None:
    """Codes (i32) of the blocks in lanes into their bytes.

    Byte j of the nibbles holds weights j and j + 16; bit i of the 32 fifth bits, if any, belongs to weight i.
    """
    pack_nibbles(codes, QK, block, fields.qs)
    if fields.qh != NONE:
        fifth = broadcast(np.int32(0))
        for i in range(QK):
            fifth = fifth | ((get(codes, i) >> 4) << np.int32(i))
        for byte in range(4):
            put(block, fields.qh + byte, to_u8(fifth >> np.int32(8 * byte)))


@jitable
def unpack(block: Any, fields: Fields, i: int) -> Any:
    """Code i of the blocks in lanes, as i32."""
    pair = to_i32(get(block, fields.qs + i % (QK // 2)))
    code = (pair >> np.int32(4 * (i // (QK // 2)))) & 15
    if fields.qh != NONE:
        code = code | (((to_i32(get(block, fields.qh + i // 8)) >> np.int32(i % 8)) & 1) << 4)
    return code


@jitable
def encode_symmetric(x: Any, out: Any, levels: Any, fields: Fields) -> None:
    """Q4_0, Q5_0: the weight of largest magnitude gets code 0, that is -levels."""
    s, codes, block = room(QK, f32), room(QK, np.int32), room(fields.size, np.uint8)
    for k in range(0, x.size // QK, W):
        to_lanes(x, k * QK, QK, s)
        top, _ = extreme(s, 0, QK)
        d = top / -levels
        inverse, infinite = inverse_of(d)
        middle = select(infinite, f32(0), broadcast(levels + f32(0.5)))
        last = levels + levels - f32(1)
        for i in range(QK):
            put(codes, i, to_i32(minimum(get(s, i) * inverse + middle, last)))
        put_half(block, fields.d, d)
        pack(codes, fields, block)
        from_lanes(block, fields.size, out, k * fields.size)


@jitable
def encode_with_min(x: Any, out: Any, top: Any, fields: Fields) -> None:
    """Q4_1, Q5_1: codes from 0 for the least weight to `top` for the greatest."""
    s, codes, block = room(QK, f32), room(QK, np.int32), room(fields.size, np.uint8)
    for k in range(0, x.size // QK, W):
        to_lanes(x, k * QK, QK, s)
        low, high = broadcast(FLT_MAX), broadcast(-FLT_MAX)
        for i in range(QK):
            v = get(s, i)
            low, high = minimum(v, low), maximum(v, high)
        d = (high - low) / top
        inverse, _ = inverse_of(d)
        for i in range(QK):  # a range above FLT_MAX gives NaN, and code 0
            code = maximum((get(s, i) - low) * inverse + f32(0.5), f32(0))
            put(codes, i, to_i32(minimum(code, top)))
        put_half(block, fields.d, d)
        put_half(block, fields.m, low)
        pack(codes, fields, block)
        from_lanes(block, fields.size, out, k * fields.size)


# ---- their weighted searches ----


@jitable
def importance_to_lanes(steer: Steering, k: int, w: Any, squares: Any) -> Any:
    """The importance of the W blocks from k on, into w; returns their rows' mean squares. squares: room for one."""
    row, block = (steer.first + k) // steer.blocks_per_row, (steer.first + k) % steer.blocks_per_row
    to_lanes(steer.weights, block * QK, QK, w)
    for lane in range(W):
        squares[lane] = steer.row_squares[min(row, steer.row_squares.size - 1)]
        block += 1
        if block == steer.blocks_per_row:
            row, block = row + 1, 0
    return get(squares, 0)


@jitable
def search_symmetric(x: Any, out: Any, steer: Steering, levels: Any, fields: Fields) -> None:
    """Q4_0, Q5_0: the best of 19 scales (quantize_row_q4_0_impl, quantize_row_q5_0_impl)."""
    s, w, wx, squares = room(QK, f32), room(QK, f32), room(QK, f32), room(1, f32)
    codes, block = room(QK, np.int32), room(fields.size, np.uint8)
    for k in range(0, x.size // QK, W):
        to_lanes(x, k * QK, QK, s)
        square = importance_to_lanes(steer, k, w, squares)
        d, inverse, zero = symmetric_scale(s, 0, w, wx, QK, levels, True, square)
        for i in range(QK):
            code = clamp(nearest_small(inverse * get(s, i)), -levels, levels - f32(1)) + levels
            put(codes, i, to_i32(select(zero, f32(0), code)))
        put_half(block, fields.d, d)
        pack(codes, fields, block)
        from_lanes(block, fields.size, out, k * fields.size)


@jitable
def search_with_min(x: Any, out: Any, steer: Steering, steps: Steps, fields: Fields) -> None:
    """Q4_1, Q5_1: the best of 37 scales, each with its minimum (quantize_row_q4_1_impl, quantize_row_q5_1_impl)."""
    s, w, tried, squares = room(QK, f32), room(QK, f32), room(QK, f32), room(1, f32)
    codes, block = room(QK, np.int32), room(fields.size, np.uint8)
    for k in range(0, x.size // QK, W):
        to_lanes(x, k * QK, QK, s)
        square = importance_to_lanes(steer, k, w, squares)
        weigh(s, 0, QK, w, square, w)
        d, low, inverse, offset = scale_and_min(s, 0, w, tried, QK, steps)
        for i in range(QK):
            code = clamp(nearest(inverse * (get(s, i) - offset)), f32(0), steps.top)
            put(codes, i, to_i32(code))
        put_half(block, fields.d, d)
        put_half(block, fields.m, -low)
        pack(codes, fields, block)
        from_lanes(block, fields.size, out, k * fields.size)


@jitable
def decode_symmetric(blocks: Any, out: Any, levels: int, fields: Fields) -> None:
    """Q4_0, Q5_0: (code - levels) * d."""
    s, block = room(QK, f32), room(fields.size, np.uint8)
    for k in range(0, out.size // QK, W):
        to_lanes(blocks, k * fields.size, fields.size, block)
        d = get_half(block, fields.d)
        for i in range(QK):
            put(s, i, to_f32(unpack(block, fields, i) - levels) * d)
        from_lanes(s, QK, out, k * QK)


@jitable
def decode_with_min(blocks: Any, out: Any, fields: Fields) -> None:
    """Q4_1, Q5_1: code * d + m."""
    s, block = room(QK, f32), room(fields.size, np.uint8)
    for k in range(0, out.size // QK, W):
        to_lanes(blocks, k * fields.size, fields.size, block)
        d, low = get_half(block, fields.d), get_half(block, fields.m)
        for i in range(QK):
            put(s, i, to_f32(unpack(block, fields, i)) * d + low)
        from_lanes(s, QK, out, k * QK)


STEPS_4 = Steps(top=f32(15), start=f32(-0.9), step=f32(0.05), last=36, mad=False)
STEPS_5 = STEPS_4._replace(top=f32(31))


@encoding
def encode_q4_0(x: Any, out: Any) -> None:
    """quantize_row_q4_0_ref."""
    encode_symmetric(x, out, f32(8), Q4_0)


@encoding
def encode_q5_0(x: Any, out: Any) -> None:
    """quantize_row_q5_0_ref."""
    encode_symmetric(x, out, f32(16), Q5_0)


@encoding
def encode_q4_1(x: Any, out: Any) -> None:
    """quantize_row_q4_1_ref."""
    encode_with_min(x, out, f32(15), Q4_1)


@encoding
def encode_q5_1(x: Any, out: Any) -> None:
    """quantize_row_q5_1_ref."""
    encode_with_min(x, out, f32(31), Q5_1)


@searching
def search_q4_0(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q4_0_impl."""
    search_symmetric(x, out, Steering(weights, first, blocks_per_row, row_squares), f32(8), Q4_0)


@searching
def search_q5_0(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q5_0_impl."""
    search_symmetric(x, out, Steering(weights, first, blocks_per_row, row_squares), f32(16), Q5_0)


@searching
def search_q4_1(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q4_1_impl."""
    search_with_min(x, out, Steering(weights, first, blocks_per_row, row_squares), STEPS_4, Q4_1)


@searching
def search_q5_1(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q5_1_impl."""
    search_with_min(x, out, Steering(weights, first, blocks_per_row, row_squares), STEPS_5, Q5_1)


@decoding
def decode_q4_0(blocks: Any, out: Any) -> None:
    """dequantize_row_q4_0."""
    decode_symmetric(blocks, out, 8, Q4_0)


@decoding
def decode_q5_0(blocks: Any, out: Any) -> None:
    """dequantize_row_q5_0."""
    decode_symmetric(blocks, out, 16, Q5_0)


@decoding
def decode_q4_1(blocks: Any, out: Any) -> None:
    """dequantize_row_q4_1."""
    decode_with_min(blocks, out, Q4_1)


@decoding
def decode_q5_1(blocks: Any, out: Any) -> None:
    """dequantize_row_q5_1."""
    decode_with_min(blocks, out, Q5_1)


# ---- Q8_0: codes of 8 bits ----

Q8_D, Q8_CODES, Q8_SIZE = offsets("Q8_0")


@encoding
def encode_q8_0(x: Any, out: Any) -> None:
    """The weight of largest magnitude gets code 127 or -127."""
    s, block = room(QK, f32), room(Q8_SIZE, np.uint8)
    for k in range(0, x.size // QK, W):
        to_lanes(x, k * QK, QK, s)
        d = largest(s, 0, QK) / f32(127)
        inverse, _ = inverse_of(d)
        put_half(block, Q8_D, d)
        for i in range(QK):
            put(block, Q8_CODES + i, to_u8(round_away(get(s, i) * inverse)))
        from_lanes(block, Q8_SIZE, out, k * Q8_SIZE)


@decoding
def decode_q8_0(blocks: Any, out: Any) -> None:
    """One weight per lane: the codes lie in the order of the weights."""
    bits, d = room(1, np.uint16), room(1, f32)
    for k in range(0, out.size // QK, W):
        load_halves(blocks, k * Q8_SIZE + Q8_D, Q8_SIZE, bits, d)
        for lane in range(W):
            for i in range(0, QK, W):
                codes = to_i8(load(blocks, (k + lane) * Q8_SIZE + Q8_CODES + i))
                store(out, (k + lane) * QK + i, to_f32(codes) * d[lane])


# ---- Q1_0: signs ----

QK1 = BY_NAME["Q1_0"].weights
Q1_D, Q1_SIGNS, Q1_SIZE = offsets("Q1_0")


@encoding
def encode_q1_0(x: Any, out: Any) -> None:
    """The sign of each weight, and the mean magnitude."""
    s, block = room(QK1, f32), room(Q1_SIZE, np.uint8)
    for k in range(0, x.size // QK1, W):
        to_lanes(x, k * QK1, QK1, s)
        total = broadcast(f32(0))
        for byte in range(QK1 // 8):
            signs = broadcast(np.uint32(0))
            for i in range(8):
                v = get(s, byte * 8 + i)
                total = total + absolute(v)
                signs = signs | (to_u32(v >= 0) << np.uint32(i))
            put(block, Q1_SIGNS + byte, to_u8(signs))
        put_half(block, Q1_D, total / f32(QK1))
        from_lanes(block, Q1_SIZE, out, k * Q1_SIZE)


@decoding
def decode_q1_0(blocks: Any, out: Any) -> None:
    """dequantize_row_q1_0."""
    s, block = room(QK1, f32), room(Q1_SIZE, np.uint8)
    for k in range(0, out.size // QK1, W):
        to_lanes(blocks, k * Q1_SIZE, Q1_SIZE, block)
        d = get_half(block, Q1_D)
        for i in range(QK1):
            positive = (get(block, Q1_SIGNS + i // 8) >> np.uint8(i % 8)) & 1
            put(s, i, select(positive != 0, d, -d))
        from_lanes(s, QK1, out, k * QK1)


# ---- Q2_0: codes of 2 bits ----

QK2 = BY_NAME["Q2_0"].weights
Q2_D, Q2_CODES, Q2_SIZE = offsets("Q2_0")


@encoding
def encode_q2_0(x: Any, out: Any) -> None:
    """Codes 0 to 3 for -1, 0, 1 and 2 times the largest magnitude (so 3 is never written)."""
    s, block = room(QK2, f32), room(Q2_SIZE, np.uint8)
    for k in range(0, x.size // QK2, W):
        to_lanes(x, k * QK2, QK2, s)
        d = largest(s, 0, QK2)
        inverse, infinite = inverse_of(d)
        zero = select(infinite, 0, broadcast(np.int32(1)))
        put_half(block, Q2_D, d)
        for byte in range(QK2 // 4):
            four = broadcast(np.uint32(0))
            for i in range(4):
                code = clamp(round_away(get(s, byte * 4 + i) * inverse) + zero, 0, 3)
                four = four | (to_u32(code) << np.uint32(2 * i))
            put(block, Q2_CODES + byte, to_u8(four))
        from_lanes(block, Q2_SIZE, out, k * Q2_SIZE)


@decoding
def decode_q2_0(blocks: Any, out: Any) -> None:
    """dequantize_row_q2_0."""
    s, block = room(QK2, f32), room(Q2_SIZE, np.uint8)
    for k in range(0, out.size // QK2, W):
        to_lanes(blocks, k * Q2_SIZE, Q2_SIZE, block)
        d = get_half(block, Q2_D)
        for i in range(QK2):
            code = (get(block, Q2_CODES + i // 4) >> np.uint8(2 * (i % 4))) & 3
            put(s, i, to_f32(to_i32(code) - 1) * d)
        from_lanes(s, QK2, out, k * QK2)


KERNELS = {
    "Q4_0": Codec(Call(encode_q4_0), Call(search_q4_0), Call(decode_q4_0), alive=QK, by_row=True),
    "Q4_1": Codec(Call(encode_q4_1), Call(search_q4_1), Call(decode_q4_1), by_row=True),
    "Q5_0": Codec(Call(encode_q5_0), Call(search_q5_0), Call(decode_q5_0), alive=QK, by_row=True),
    "Q5_1": Codec(Call(encode_q5_1), Call(search_q5_1), Call(decode_q5_1), by_row=True),
    "Q8_0": Codec(Call(encode_q8_0), None, Call(decode_q8_0)),
    "Q1_0": Codec(Call(encode_q1_0), None, Call(decode_q1_0)),
    "Q2_0": Codec(Call(encode_q2_0), None, Call(decode_q2_0)),
}
