"""TQ1_0 and TQ2_0: -1, 0 and 1 times the largest magnitude of 256 weights.

quantize_row_tq1_0_ref, quantize_row_tq2_0_ref and their dequantize_row_* of ggml-quants.c.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.kernels import Call, Codec
from ggufsmith.quantize.kernels.blocks import (
    QK_K,
    from_lanes,
    get,
    load_halves,
    offsets,
    put,
    put_half,
    room,
    to_lanes,
)
from ggufsmith.quantize.kernels.common import decoding, encoding, largest, reciprocal
from ggufsmith.quantize.simd import (
    W,
    broadcast,
    f32,
    jitable,
    load,
    store,
    to_f32,
    to_i32,
    to_u8,
    to_u32,
)

INFINITY = f32(np.inf)


@jitable
def trit(x: Any, i: int, inverse: Any) -> Any:
    """0, 1 or 2 for the nearest of -1, 0 and 1, ties away from zero; 1 where a tiny scale has no finite inverse."""
    v = inverse * get(x, i)
    up, down = (v >= f32(0.5)) & (v < INFINITY), (v <= f32(-0.5)) & (v > -INFINITY)
    return to_i32(up) - to_i32(down) + 1


# ---- TQ1_0: five trits per byte ----

TQ1_CODES, TQ1_LAST, TQ1_D, TQ1_SIZE = offsets("TQ1_0")
# Runs of (first byte, bytes, first weight): each byte holds five weights that are a multiple of the run's length apart.
RUNS = ((TQ1_CODES, 32, 0), (TQ1_CODES + 32, 16, 160))
LAST_BYTES, LAST_WEIGHT = 4, 240  # of four weights each


@jitable
def base_three(x: Any, first: int, count: int, step: int, inverse: Any) -> Any:
    """A byte of five trits, of which the first `count` are those of every `step`th weight and the others are 0.

    The number n of five ternary digits is stored as n * 256 / 243, rounded up: a fraction of 256 from which
    multiplications by 3 bring out digit after digit. 69043 / 2**24 is the division by 243.
    """
    number = broadcast(0)
    for k in range(5):
        number = number * 3
        if k < count:
            number = number + trit(x, first + k * step, inverse)
    return to_u8(((to_u32(number) * 256 + 242) * 69043) >> 24)


@encoding
def encode_tq1_0(x: Any, out: Any) -> None:
    """quantize_row_tq1_0_ref."""
    s, block = room(QK_K, f32), room(TQ1_SIZE, np.uint8)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        top = largest(s, 0, QK_K)
        inverse = reciprocal(top)
        for start, run, weight in RUNS:
            for m in range(run):
                put(block, start + m, base_three(s, weight + m, 5, run, inverse))
        for m in range(LAST_BYTES):
            put(block, TQ1_LAST + m, base_three(s, LAST_WEIGHT + m, 4, LAST_BYTES, inverse))
        put_half(block, TQ1_D, top)
        from_lanes(block, TQ1_SIZE, out, k * TQ1_SIZE)


@jitable
def unpack(blocks: Any, at: int, run: int, count: int, scale: Any, out: Any, to: int) -> None:
    """`count` trits from each of `run` bytes; each multiplication by 3 brings out a digit of a fraction of 256.

    If there are more lanes than bytes, the first lanes hold what stands before them, and so do weights before theirs.
    """
    excess = max(W - run, 0)
    for n in range(count - 1, -1, -1):
        for m in range(-excess, run - excess, W):
            fraction = to_i32(load(blocks, at + m)) * 3**n & 0xFF
            store(out, to + n * run + m, to_f32((fraction * 3 >> 8) - 1) * scale)


@decoding
def decode_tq1_0(blocks: Any, out: Any) -> None:
    """dequantize_row_tq1_0, one weight per lane: a byte's neighbours hold the neighbours of its weights."""
    bits, d = room(1, np.uint16), room(1, f32)
    for k in range(0, out.size // QK_K, W):
        load_halves(blocks, k * TQ1_SIZE + TQ1_D, TQ1_SIZE, bits, d)
        for lane in range(W):
            at, to = (k + lane) * TQ1_SIZE, (k + lane) * QK_K
            # From the last to the first, each of which writes what the one before it has spoilt.
            unpack(blocks, at + TQ1_LAST, LAST_BYTES, 4, d[lane], out, to + LAST_WEIGHT)
            for start, run, weight in RUNS[::-1]:
                unpack(blocks, at + start, run, 5, d[lane], out, to + weight)


# ---- TQ2_0: four trits per byte, 32 weights apart ----

TQ2_CODES, TQ2_D, TQ2_SIZE = offsets("TQ2_0")
RUN = 32


@encoding
def encode_tq2_0(x: Any, out: Any) -> None:
    """quantize_row_tq2_0_ref."""
    s, block = room(QK_K, f32), room(TQ2_SIZE, np.uint8)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        top = largest(s, 0, QK_K)
        inverse = reciprocal(top)
        for half in range(2):
            for m in range(RUN):
                four = broadcast(0)
                for n in range(4):
                    four = four | (trit(s, half * 128 + n * RUN + m, inverse) << (2 * n))
                put(block, TQ2_CODES + half * RUN + m, to_u8(four))
        put_half(block, TQ2_D, top)
        from_lanes(block, TQ2_SIZE, out, k * TQ2_SIZE)


@decoding
def decode_tq2_0(blocks: Any, out: Any) -> None:
    """One weight per lane: a byte's neighbours hold the neighbours of its weights."""
    bits, d = room(1, np.uint16), room(1, f32)
    for k in range(0, out.size // QK_K, W):
        load_halves(blocks, k * TQ2_SIZE + TQ2_D, TQ2_SIZE, bits, d)
        for lane in range(W):
            for half in range(2):
                for n in range(4):
                    for m in range(0, RUN, W):
                        four = load(blocks, (k + lane) * TQ2_SIZE + TQ2_CODES + half * RUN + m)
                        code = to_i32((four >> np.uint8(2 * n)) & 3) - 1
                        store(out, (k + lane) * QK_K + half * 128 + n * RUN + m, to_f32(code) * d[lane])


KERNELS = {
    "TQ1_0": Codec(Call(encode_tq1_0), None, Call(decode_tq1_0)),
    "TQ2_0": Codec(Call(encode_tq2_0), None, Call(decode_tq2_0)),
}
