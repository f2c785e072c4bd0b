"""MXFP4 and NVFP4: four-bit floats with a shared scale, a power of two for 32 weights or an 8-bit float for 16.

Sources: quantize_row_mxfp4_ref and quantize_row_nvfp4_ref in ggml-quants.c, the scales' formats in ggml-impl.h; OCP
Microscaling Formats 1.0. Codes stand for twice their value as E2M1, and scales for half of theirs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.quantize.cache import READ_F32, READ_U8, WRITE_F32, WRITE_U8, kernel
from ggufsmith.quantize.grids import FP4_VALUES
from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, to_lanes
from ggufsmith.quantize.kernels.iq_common import decode_nibbles
from ggufsmith.quantize.simd import (
    W,
    absolute,
    bits,
    broadcast,
    f32,
    gather,
    jitable,
    load,
    maximum,
    minimum,
    scratch,
    select,
    store,
    to_f32,
    to_i32,
    to_u8,
    truncate,
)

MX, NV, SUB = 32, 64, 16  # weights per block, and per scale of NVFP4
MX_SIZE, NV_SIZE = 17, 36
LOWEST = -149  # the exponent of the smallest float32


def powers() -> NDArray[np.float32]:
    """For k from -149 to 128 the smallest float32 whose logarithm to base 2, rounded to float32, is at least k.

    It lies some units below 2**k where k's neighbours are far apart: ggml takes floorf(log2f(x)) for the exponent.
    """
    k = np.arange(LOWEST, 129)[:, None]
    below = np.ldexp(1.0, k) - np.arange(64) * np.ldexp(1.0, np.maximum(k - 24, LOWEST))
    with np.errstate(invalid="ignore", divide="ignore"):
        reached = np.log2(below).astype(np.float32) >= k
    first: NDArray[np.float32] = below[np.arange(len(k)), reached.sum(1) - 1].astype(np.float32)
    return first


def e8m0() -> NDArray[np.float32]:
    """float32 [256]: half of 2**(e - 127)."""
    return np.ldexp(np.float32(1), np.arange(256) - 128)


def ue4m3() -> NDArray[np.float32]:
    """float32 [256]: half of an unsigned float of four exponent and three fraction bits; 0x7F is read as 0."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7))
    return np.where(code == 0x7F, 0, value / 2).astype(np.float32)


POWERS, E8M0, UE4M3 = powers(), e8m0(), ue4m3()
VALUES = np.resize(FP4_VALUES, 32)


@jitable
def largest(x: Any, at: int, n: int) -> Any:
    top = broadcast(f32(0))
    for i in range(n):
        top = maximum(absolute(load(x, at + i * W)), top)
    return top


@jitable
def code_of(v: Any, scale: Any) -> Any:
    """The code of the value times scale that is nearest to v; of equally near ones the first, as float32 sees them."""
    size = absolute(v)
    code, least = broadcast(0), size
    for k in range(1, 8):
        distance = absolute(FP4_VALUES[k] * scale - size)
        code, least = select(distance < least, broadcast(k), code), minimum(distance, least)
    return select((v < f32(0)) & (code != 0), code + 8, code)


@jitable
def store_codes(x: Any, at: int, n: int, scale: Any, block: Any, byte: int) -> None:
    """n weights as n / 2 bytes; weight i in the low half, weight i + n / 2 in the high half of byte i."""
    for i in range(n // 2):
        low, high = code_of(load(x, at + i * W), scale), code_of(load(x, at + (i + n // 2) * W), scale)
        store(block, (byte + i) * W, to_u8(low | (high << 4)))


@jitable
def exponent(top: Any) -> Any:
    """floor(log2(top)) - 2 + 127 as a byte; 0 for 0, and for the -1 that is NaN in E8M0: llama.cpp refuses its own."""
    b = bits(top)
    tiny = b < 0x00800000
    k = to_i32(bits(to_f32(b)) >> 23) - (127 - LOWEST)  # of a number below 2**-126, whose bits count units of 2**-149
    k = select(tiny, k, to_i32(b >> 23) - 127)
    next_power = gather(POWERS, maximum(k + 1, LOWEST) - LOWEST)
    k = select(top >= next_power, k + 1, k)
    return select((top > f32(0)) & (k != -126), (k + 125) & 0xFF, 0)


@jitable
def to_ue4m3(v: Any) -> Any:
    """The nearest unsigned 8-bit float, ties up. From 256 on it is 0x7E, which is 448."""
    b = to_i32(bits(v))
    code = ((b >> 19) - ((127 - 7) << 4) + 1) >> 1
    code = select(code >= 15 << 3, 0x7E, code)
    small = minimum(truncate(v * f32(512) + f32(0.5)), 7)
    return select((b >> 23) <= 120, small, code)


@kernel(READ_F32, WRITE_U8)
def mxfp4(x: Any, out: Any) -> None:
    v, block = scratch(MX * W, np.float32), scratch(MX_SIZE * W, np.uint8)
    for k in range(0, x.size // MX, W):
        to_lanes(x, k * MX, MX, v, 0)
        e = exponent(largest(v, 0, MX))
        store(block, 0, to_u8(e))
        store_codes(v, 0, MX, gather(E8M0, e), block, 1)
        from_lanes(block, MX_SIZE, out, k * MX_SIZE)


@kernel(READ_F32, WRITE_U8)
def nvfp4(x: Any, out: Any) -> None:
    v, block = scratch(NV * W, np.float32), scratch(NV_SIZE * W, np.uint8)
    for k in range(0, x.size // NV, W):
        to_lanes(x, k * NV, NV, v, 0)
        for sub in range(4):
            at = sub * SUB * W
            scale = to_ue4m3(largest(v, at, SUB) / f32(6))
            store(block, sub * W, to_u8(scale))
            store_codes(v, at, SUB, gather(UE4M3, scale), block, 4 + sub * SUB // 2)
        from_lanes(block, NV_SIZE, out, k * NV_SIZE)


@kernel(READ_U8, WRITE_F32)
def mxfp4_decode(blocks: Any, out: Any) -> None:
    block, lanes = scratch(MX_SIZE * W, np.uint8), scratch(MX * W, np.float32)
    for k in range(0, out.size // MX, W):
        to_lanes(blocks, k * MX_SIZE, MX_SIZE, block, 0)
        scale = gather(E8M0, to_i32(load(block, 0)))
        decode_nibbles(block, 1, MX, VALUES, scale, lanes, 0)
        from_lanes(lanes, MX, out, k * MX)


@kernel(READ_U8, WRITE_F32)
def nvfp4_decode(blocks: Any, out: Any) -> None:
    block, lanes = scratch(NV_SIZE * W, np.uint8), scratch(NV * W, np.float32)
    for k in range(0, out.size // NV, W):
        to_lanes(blocks, k * NV_SIZE, NV_SIZE, block, 0)
        for sub in range(4):
            scale = gather(UE4M3, to_i32(load(block, sub * W)))
            decode_nibbles(block, 4 + sub * SUB // 2, SUB, VALUES, scale, lanes, sub * SUB)
        from_lanes(lanes, NV, out, k * NV)


KERNELS = {"MXFP4": Codec(mxfp4, None, mxfp4_decode), "NVFP4": Codec(nvfp4, None, nvfp4_decode)}
