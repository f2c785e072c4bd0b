"""Q2_K, Q4_K, Q5_K: super-blocks whose sub-blocks have a scale and a minimum, x = scale * code - minimum.

Encodings: quantize_row_q*_K_ref (unweighted) and quantize_row_q*_K_impl (weighted) of ggml-quants.c.
"""

from typing import Any, NamedTuple

import numpy as np

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize.kernels import Call, Codec, Steering
from ggufsmith.quantize.kernels.blocks import (
    QK_K,
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
from ggufsmith.quantize.kernels.common import decoding, encoding, greatest, place_of, searching, square_sum
from ggufsmith.quantize.kernels.search import as_byte, positive_scale
from ggufsmith.quantize.kernels.search_min import Steps, SubBlocks, put_min_codes, two_scales_and_mins
from ggufsmith.quantize.kernels.superblocks import get_crumb, importance_of, put_crumbs, recode
from ggufsmith.quantize.simd import (
    W,
    absolute,
    any_lane,
    broadcast,
    f32,
    jitable,
    load,
    minimum,
    nearest,
    select,
    sqrt,
    store,
    to_f32,
    to_i32,
    to_u8,
    to_u32,
)


@jitable
def room_for(subs: int) -> SubBlocks:
    """What the searches of so many sub-blocks find."""
    return SubBlocks(room(subs, f32), room(subs, f32), room(subs, f32), room(subs, f32))


@jitable
def search_sub_blocks(
    s: Any, steer: Steering, k: int, square: Any, n: int, steps: Steps, found: SubBlocks, sums: Any
) -> None:
    """The weighted searches of all sub-blocks of n weights, and the sums of their weights; see `importance_of`."""
    w, tried = room(2 * n, f32), room(2 * n, f32)
    place = place_of(steer, k, QK_K)
    for j in range(0, QK_K // n, 2):
        for i in range(2):
            at = (j + i) * n
            put(sums, j + i, importance_of(s, at, n, steer.weights, place + at, square, w, i * n))
        two_scales_and_mins(s, j, w, tried, n, steps, found)


@jitable
def recode_sub_block(s: Any, j: int, n: int, d: Any, low: Any, top: Any, found: SubBlocks, codes: Any) -> None:
    """From the stored scale and minimum of sub-block j the codes of its weights; see `recode`."""
    if any_lane(d == 0):
        put_min_codes(s, j * n, n, get(found.inverses, j), get(found.lows, j), top, codes)
    recode(s, j * n, n, d, low, f32(0), top, codes)


# ---- Q4_K and Q5_K: 8 sub-blocks of 32, scales and minima of 6 bits ----

SUB, SUBS = 32, 8


class SixBits(NamedTuple):
    """Q4_K or Q5_K: at which bytes of a block its fields begin (qh: fifth bits, NONE in Q4_K), and how scales are
    searched, without importance and with it.
    """

    d: int
    dmin: int
    scales: int
    qh: int
    qs: int
    size: int
    plain: Steps
    weighted: Steps


NONE = -1


def six_bits(name: str, plain: Steps) -> SixBits:
    """The record of a format. The weighted search has the same codes and other steps."""
    form = BY_NAME[name]
    at = dict(zip(form.dtype.names or (), offsets(name), strict=False))
    weighted = plain._replace(start=f32(-0.9), step=f32(0.05), last=36)
    return SixBits(at["d"], at["dmin"], at["scales"], at.get("qh", NONE), at["qs"], form.size, plain, weighted)


Q4_K = six_bits("Q4_K", Steps(top=f32(15), start=f32(-1), step=f32(0.1), last=20, mad=False))
Q5_K = six_bits("Q5_K", Steps(top=f32(31), start=f32(-0.5), step=f32(0.1), last=15, mad=False))


@jitable
def pack_scales(scales: Any, mins: Any, block: Any, byte: int) -> None:
    """8 scales and 8 minima (f32) as 6-bit numbers in 12 bytes; the last four of each go in two parts."""
    for j in range(4):
        scale, low = to_i32(get(scales, j)), to_i32(get(mins, j))
        late_scale, late_low = to_i32(get(scales, j + 4)), to_i32(get(mins, j + 4))
        put(block, byte + j, to_u8(scale | ((late_scale >> 4) << 6)))
        put(block, byte + 4 + j, to_u8(low | ((late_low >> 4) << 6)))
        put(block, byte + 8 + j, to_u8((late_scale & 15) | ((late_low & 15) << 4)))


@jitable
def unpack_scales(block: Any, byte: int, j: int) -> Any:
    """Scale and minimum j of 8, as f32."""
    scale, low = get(block, byte + j % 4), get(block, byte + 4 + j % 4)
    if j < 4:
        return to_f32(scale & 63), to_f32(low & 63)
    pair = get(block, byte + 4 + j)
    return to_f32((pair & 15) | ((scale >> 6) << 4)), to_f32((pair >> 4) | ((low >> 6) << 4))


@jitable
def finish_sixes(s: Any, found: SubBlocks, codes: Any, kind: SixBits, block: Any) -> None:
    """From the stored scales the codes of the weights, and their bytes: nibbles, and fifth bits."""
    d, dmin = get_half(block, kind.d), get_half(block, kind.dmin)
    for j in range(SUBS):
        scale, low = unpack_scales(block, kind.scales, j)
        recode_sub_block(s, j, SUB, d * scale, dmin * low, kind.plain.top, found, codes)
    for i in range(SUB):
        fifth = broadcast(np.uint32(0))
        for pair in range(4):
            low_code, high_code = get(codes, pair * 64 + i), get(codes, pair * 64 + 32 + i)
            put(block, kind.qs + pair * 32 + i, (low_code & 15) | (high_code << 4))
            two = to_u32((low_code >> 4) | ((high_code >> 4) << 1))
            fifth = fifth | (two << np.uint32(2 * pair))
        if kind.qh != NONE:
            put(block, kind.qh + i, to_u8(fifth))


@jitable
def own_weights(s: Any, at: int, w: Any, to: int) -> None:
    """w = |x| + the root of the sub-block's mean square."""
    mean = sqrt(square_sum(s, at, SUB) / f32(SUB))
    for i in range(SUB):
        put(w, to + i, mean + absolute(get(s, at + i)))


@jitable
def encode_sixes(x: Any, out: Any, kind: SixBits) -> None:
    """The unweighted Q4_K and Q5_K: the largest scale (and minimum) of a super-block gets code 63."""
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(kind.size, np.uint8)
    w, tried = room(2 * SUB, f32), room(2 * SUB, f32)
    found, scales, mins = room_for(SUBS), room(SUBS, f32), room(SUBS, f32)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        for j in range(0, SUBS, 2):
            own_weights(s, j * SUB, w, 0)
            own_weights(s, (j + 1) * SUB, w, SUB)
            two_scales_and_mins(s, j, w, tried, SUB, kind.plain, found)
        max_scale, max_min = greatest(found.scales, 0, SUBS), greatest(found.mins, 0, SUBS)
        scale_inverse = select(max_scale > 0, f32(63) / max_scale, f32(0))
        min_inverse = select(max_min > 0, f32(63) / max_min, f32(0))
        for j in range(SUBS):
            put(scales, j, minimum(as_byte(nearest(scale_inverse * get(found.scales, j))), f32(63)))
            put(mins, j, minimum(as_byte(nearest(min_inverse * get(found.mins, j))), f32(63)))
        put_half(block, kind.d, max_scale / f32(63))
        put_half(block, kind.dmin, max_min / f32(63))
        pack_scales(scales, mins, block, kind.scales)
        finish_sixes(s, found, codes, kind, block)
        from_lanes(block, kind.size, out, k * kind.size)


@jitable
def search_sixes(x: Any, out: Any, steer: Steering, kind: SixBits) -> None:
    """The weighted Q4_K and Q5_K: the codes of the scales are searched too."""
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(kind.size, np.uint8)
    found, sums, scales, mins = room_for(SUBS), room(SUBS, f32), room(SUBS, f32), room(SUBS, f32)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        square = f32(2) * square_sum(s, 0, QK_K) / f32(QK_K)
        search_sub_blocks(s, steer, k, square, SUB, kind.weighted, found, sums)
        d = positive_scale(found.scales, 0, sums, 0, scales, 0, SUBS, f32(63))
        dmin = positive_scale(found.mins, 0, sums, 0, mins, 0, SUBS, f32(63))
        if kind.qh != NONE:  # Q4_K lets a code that wrapped below zero spill into its neighbours' bits
            for j in range(SUBS):
                put(scales, j, minimum(get(scales, j), f32(63)))
                put(mins, j, minimum(get(mins, j), f32(63)))
        put_half(block, kind.d, d)
        put_half(block, kind.dmin, dmin)
        pack_scales(scales, mins, block, kind.scales)
        finish_sixes(s, found, codes, kind, block)
        from_lanes(block, kind.size, out, k * kind.size)


@jitable
def decode_sixes(blocks: Any, out: Any, kind: SixBits) -> None:
    """One weight per lane: a sub-block's codes lie in the order of its weights."""
    bits, d, dmin = room(1, np.uint16), room(1, f32), room(1, f32)
    for k in range(0, out.size // QK_K, W):
        load_halves(blocks, k * kind.size + kind.d, kind.size, bits, d)
        load_halves(blocks, k * kind.size + kind.dmin, kind.size, bits, dmin)
        for lane in range(W):
            at = (k + lane) * kind.size
            for j in range(SUBS):
                early = at + kind.scales + j % 4
                scale, low = blocks[at + kind.scales + j], blocks[at + kind.scales + 4 + j]
                if j >= 4:
                    scale, low = (low & 15) | blocks[early] >> 6 << 4, low >> 4 | blocks[early + 4] >> 6 << 4
                factor, offset = d[lane] * f32(scale & 63), dmin[lane] * f32(low & 63)
                for i in range(0, SUB, W):
                    codes = (load(blocks, at + kind.qs + j // 2 * SUB + i) >> np.uint8(j % 2 * 4)) & 15
                    if kind.qh != NONE:
                        fifth = (load(blocks, at + kind.qh + i) >> np.uint8(j)) & 1
                        codes = codes | (fifth << 4)
                    store(out, (k + lane) * QK_K + j * SUB + i, to_f32(codes) * factor - offset)


@encoding
def encode_q4_k(x: Any, out: Any) -> None:
    """quantize_row_q4_K_ref."""
    encode_sixes(x, out, Q4_K)


@encoding
def encode_q5_k(x: Any, out: Any) -> None:
    """quantize_row_q5_K_ref."""
    encode_sixes(x, out, Q5_K)


@searching
def search_q4_k(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q4_K_impl."""
    search_sixes(x, out, Steering(weights, first, blocks_per_row, row_squares), Q4_K)


@searching
def search_q5_k(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q5_K_impl."""
    search_sixes(x, out, Steering(weights, first, blocks_per_row, row_squares), Q5_K)


@decoding
def decode_q4_k(blocks: Any, out: Any) -> None:
    """dequantize_row_q4_K."""
    decode_sixes(blocks, out, Q4_K)


@decoding
def decode_q5_k(blocks: Any, out: Any) -> None:
    """dequantize_row_q5_K."""
    decode_sixes(blocks, out, Q5_K)


# ---- Q2_K: 16 sub-blocks of 16, scales and minima of 4 bits ----

SUB2, SUBS2 = 16, 16
Q2_SCALES, Q2_CODES, Q2_D, Q2_DMIN, Q2_SIZE = offsets("Q2_K")
Q2_PLAIN = Steps(top=f32(3), start=f32(-0.5), step=f32(0.1), last=15, mad=True)
Q2_WEIGHTED = Steps(top=f32(3), start=f32(-0.9), step=f32(0.05), last=36, mad=False)


@jitable
def finish_q2_k(s: Any, found: SubBlocks, codes: Any, block: Any) -> None:
    """From the stored scales the codes of the weights; four to a byte, 32 weights apart."""
    d, dmin = get_half(block, Q2_D), get_half(block, Q2_DMIN)
    for j in range(SUBS2):
        pair = get(block, Q2_SCALES + j)
        recode_sub_block(s, j, SUB2, d * to_f32(pair & 15), dmin * to_f32(pair >> 4), f32(3), found, codes)
    put_crumbs(codes, block, Q2_CODES)


@encoding
def encode_q2_k(x: Any, out: Any) -> None:
    """The largest scale (and minimum) of a super-block gets code 15; errors are measured as absolute differences."""
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(Q2_SIZE, np.uint8)
    w, tried, found = room(2 * SUB2, f32), room(2 * SUB2, f32), room_for(SUBS2)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        for j in range(0, SUBS2, 2):
            for i in range(2 * SUB2):
                put(w, i, absolute(get(s, j * SUB2 + i)))
            two_scales_and_mins(s, j, w, tried, SUB2, Q2_PLAIN, found)
        max_scale, max_min = greatest(found.scales, 0, SUBS2), greatest(found.mins, 0, SUBS2)
        scaled, lowered = max_scale > 0, max_min > 0
        for j in range(SUBS2):
            scale = to_i32(nearest(f32(15) / max_scale * get(found.scales, j)))
            low = to_i32(nearest(f32(15) / max_min * get(found.mins, j)))
            put(block, Q2_SCALES + j, to_u8(select(scaled, scale, 0) | (select(lowered, low, 0) << 4)))
        put_half(block, Q2_D, select(scaled, max_scale / f32(15), f32(0)))
        put_half(block, Q2_DMIN, select(lowered, max_min / f32(15), f32(0)))
        finish_q2_k(s, found, codes, block)
        from_lanes(block, Q2_SIZE, out, k * Q2_SIZE)


@searching
def search_q2_k(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """quantize_row_q2_K_impl."""
    steer = Steering(weights, first, blocks_per_row, row_squares)
    s, codes, block = room(QK_K, f32), room(QK_K, np.uint8), room(Q2_SIZE, np.uint8)
    found, sums, scales, mins = room_for(SUBS2), room(SUBS2, f32), room(SUBS2, f32), room(SUBS2, f32)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        square = square_sum(s, 0, QK_K) / f32(QK_K)
        search_sub_blocks(s, steer, k, square, SUB2, Q2_WEIGHTED, found, sums)
        d = positive_scale(found.scales, 0, sums, 0, scales, 0, SUBS2, f32(15))
        dmin = positive_scale(found.mins, 0, sums, 0, mins, 0, SUBS2, f32(15))
        for j in range(SUBS2):
            put(block, Q2_SCALES + j, to_u8(to_i32(get(scales, j)) | (to_i32(get(mins, j)) << 4)))
        put_half(block, Q2_D, d)
        put_half(block, Q2_DMIN, dmin)
        finish_q2_k(s, found, codes, block)
        from_lanes(block, Q2_SIZE, out, k * Q2_SIZE)


@decoding
def decode_q2_k(blocks: Any, out: Any) -> None:
    """dequantize_row_q2_K."""
    s, block = room(QK_K, f32), room(Q2_SIZE, np.uint8)
    for k in range(0, out.size // QK_K, W):
        to_lanes(blocks, k * Q2_SIZE, Q2_SIZE, block)
        d, dmin = get_half(block, Q2_D), get_half(block, Q2_DMIN)
        for j in range(SUBS2):
            pair = get(block, Q2_SCALES + j)
            scale, low = d * to_f32(pair & 15), dmin * to_f32(pair >> 4)
            for i in range(j * SUB2, (j + 1) * SUB2):
                put(s, i, scale * to_f32(get_crumb(block, Q2_CODES, i)) - low)
        from_lanes(s, QK_K, out, k * QK_K)


KERNELS = {
    "Q2_K": Codec(Call(encode_q2_k), Call(search_q2_k), Call(decode_q2_k), alive=QK_K),
    "Q4_K": Codec(Call(encode_q4_k), Call(search_q4_k), Call(decode_q4_k), alive=QK_K),
    "Q5_K": Codec(Call(encode_q5_k), Call(search_q5_k), Call(decode_q5_k), alive=QK_K),
}
