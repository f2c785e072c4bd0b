"""TQ1_0 and TQ2_0: -1, 0 and 1 times the largest magnitude of 256 weights (quantize_row_tq1_0_ref, _tq2_0_ref)."""

from typing import Any

import numpy as np

from ggufsmith.quantize.cache import READ_F32, READ_U8, WRITE_F32, WRITE_U8, kernel
from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, load_half, store_half, to_lanes
from ggufsmith.quantize.kernels.iq_common import load_scales, reciprocal
from ggufsmith.quantize.simd import (
    W,
    absolute,
    broadcast,
    f32,
    f32_to_half,
    jitable,
    load,
    maximum,
    scratch,
    store,
    to_f32,
    to_i32,
    to_u8,
    to_u32,
)

BLOCK = 256
INFINITY = f32(np.inf)

# TQ1_0 holds five trits per byte, in runs of (first byte, number of bytes, first weight): each byte those weights that
# are a multiple of the run's length apart. The last four bytes hold four weights each.
RUNS = ((0, 32, 0), (32, 16, 160))
LAST, LAST_WEIGHT = 48, 240
TQ1_SIZE, TQ1_SCALE, TQ2_SIZE, TQ2_SCALE = 54, 52, 66, 64


@jitable
def largest(x: Any) -> Any:
    top = broadcast(f32(0))
    for i in range(BLOCK):
        top = maximum(top, absolute(load(x, i * W)))
    return top


@jitable
def trit(x: Any, i: int, inverse: Any) -> Any:
    """0, 1 or 2 for the nearest of -1, 0 and 1, ties away from zero; 1 where a tiny scale has no finite inverse."""
    v = inverse * load(x, i * W)
    up, down = (v >= f32(0.5)) & (v < INFINITY), (v <= f32(-0.5)) & (v > -INFINITY)
    return to_i32(up) - to_i32(down) + 1


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


@kernel(READ_F32, WRITE_U8)
def tq1_0(x: Any, out: Any) -> None:
    v, block = scratch(BLOCK * W, np.float32), scratch(TQ1_SIZE * W, np.uint8)
    for k in range(0, x.size // BLOCK, W):
        to_lanes(x, k * BLOCK, BLOCK, v, 0)
        top = largest(v)
        inverse = reciprocal(top)
        for start, run, weight in RUNS:
            for m in range(run):
                store(block, (start + m) * W, base_three(v, weight + m, 5, run, inverse))
        for m in range(4):
            store(block, (LAST + m) * W, base_three(v, LAST_WEIGHT + m, 4, 4, inverse))
        store_half(block, TQ1_SCALE, f32_to_half(top))
        from_lanes(block, TQ1_SIZE, out, k * TQ1_SIZE)


@kernel(READ_F32, WRITE_U8)
def tq2_0(x: Any, out: Any) -> None:
    v, block = scratch(BLOCK * W, np.float32), scratch(TQ2_SIZE * W, np.uint8)
    for k in range(0, x.size // BLOCK, W):
        to_lanes(x, k * BLOCK, BLOCK, v, 0)
        top = largest(v)
        inverse = reciprocal(top)
        for half in range(2):
            for m in range(32):
                byte = broadcast(0)
                for n in range(4):
                    byte = byte | (trit(v, half * 128 + n * 32 + m, inverse) << (2 * n))
                store(block, (half * 32 + m) * W, to_u8(byte))
        store_half(block, TQ2_SCALE, f32_to_half(top))
        from_lanes(block, TQ2_SIZE, out, k * TQ2_SIZE)


@jitable
def unpack(block: Any, byte: int, run: int, count: int, scale: Any, v: Any, weight: int) -> None:
    """`count` trits from each of `run` bytes; each multiplication by 3 brings out the next."""
    for m in range(run):
        fraction = to_i32(load(block, (byte + m) * W))
        for n in range(count):
            store(v, (weight + n * run + m) * W, to_f32((fraction * 3 >> 8) - 1) * scale)
            fraction = fraction * 3 & 0xFF


@kernel(READ_U8, WRITE_F32)
def tq1_0_decode(blocks: Any, out: Any) -> None:
    v, block = scratch(BLOCK * W, np.float32), scratch(TQ1_SIZE * W, np.uint8)
    for k in range(0, out.size // BLOCK, W):
        to_lanes(blocks, k * TQ1_SIZE, TQ1_SIZE, block, 0)
        scale = load_half(block, TQ1_SCALE)
        for start, run, weight in RUNS:
            unpack(block, start, run, 5, scale, v, weight)
        unpack(block, LAST, 4, 4, scale, v, LAST_WEIGHT)
        from_lanes(v, BLOCK, out, k * BLOCK)


@kernel(READ_U8, WRITE_F32)
def tq2_0_decode(blocks: Any, out: Any) -> None:
    scales = scratch(W, np.float32)
    for k in range(out.size // BLOCK):
        at = k * TQ2_SIZE
        if k % W == 0:
            load_scales(blocks, at + TQ2_SCALE, TQ2_SIZE, scales)
        for half in range(2):
            for n in range(4):
                for m in range(32):
                    code = (blocks[at + half * 32 + m] >> (2 * n)) & 3
                    out[k * BLOCK + half * 128 + n * 32 + m] = f32(code - 1) * scales[k % W]


KERNELS = {"TQ1_0": Codec(tq1_0, None, tq1_0_decode), "TQ2_0": Codec(tq2_0, None, tq2_0_decode)}
