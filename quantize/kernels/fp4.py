"""MXFP4 and NVFP4: four-bit floats with a shared scale, a power of two for 32 weights or an 8-bit float for 16.

Sources: quantize_row_mxfp4_ref and quantize_row_nvfp4_ref in ggml-quants.c, the scales' formats in ggml-impl.h; OCP
Microscaling Formats 1.0. Codes stand for twice their value as E2M1, and scales for half of theirs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize.grids import FP4_VALUES
from ggufsmith.quantize.kernels import Call, Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, get, offsets, put, room, to_lanes
from ggufsmith.quantize.kernels.common import decoding, encoding, largest, pack_nibbles
from ggufsmith.quantize.kernels.tables import decode_nibbles
from ggufsmith.quantize.simd import (
    W,
    absolute,
    bits,
    broadcast,
    f32,
    gather,
    jitable,
    maximum,
    minimum,
    select,
    to_f32,
    to_i32,
    to_u8,
    truncate,
)

MX, NV = BY_NAME["MXFP4"].weights, BY_NAME["NVFP4"].weights
MX_SCALE, MX_CODES, MX_SIZE = offsets("MXFP4")
NV_SCALES, NV_CODES, NV_SIZE = offsets("NVFP4")
SUBS = NV_CODES - NV_SCALES  # scales in a block of NVFP4
SUB = NV // SUBS
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
def code_of(v: Any, scale: Any) -> Any:
    """The code of the value times scale that is nearest to v; of equally near ones the first, as float32 sees them."""
    size = absolute(v)
    code, least = broadcast(0), size
    for k in range(1, 8):
        distance = absolute(FP4_VALUES[k] * scale - size)
        code, least = select(distance < least, broadcast(k), code), minimum(distance, least)
    return select((v < f32(0)) & (code != 0), code + 8, code)


@jitable
def pack_codes(x: Any, at: int, n: int, scale: Any, codes: Any, block: Any, byte: int) -> None:
    """n weights as n / 2 bytes; weight i in the low half, weight i + n / 2 in the high half of byte i."""
    for i in range(n):
        put(codes, i, code_of(get(x, at + i), scale))
    pack_nibbles(codes, n, block, byte)


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


@encoding
def encode_mxfp4(x: Any, out: Any) -> None:
    """The scale takes the largest weight to between 4 and 8 (6 is the largest value)."""
    s, codes, block = room(MX, f32), room(MX, np.int32), room(MX_SIZE, np.uint8)
    for k in range(0, x.size // MX, W):
        to_lanes(x, k * MX, MX, s)
        e = exponent(largest(s, 0, MX))
        put(block, MX_SCALE, to_u8(e))
        pack_codes(s, 0, MX, gather(E8M0, e), codes, block, MX_CODES)
        from_lanes(block, MX_SIZE, out, k * MX_SIZE)


@encoding
def encode_nvfp4(x: Any, out: Any) -> None:
    """The scale takes the largest weight to 6."""
    s, codes, block = room(NV, f32), room(SUB, np.int32), room(NV_SIZE, np.uint8)
    for k in range(0, x.size // NV, W):
        to_lanes(x, k * NV, NV, s)
        for sub in range(SUBS):
            scale = to_ue4m3(largest(s, sub * SUB, SUB) / f32(6))
            put(block, NV_SCALES + sub, to_u8(scale))
            pack_codes(s, sub * SUB, SUB, gather(UE4M3, scale), codes, block, NV_CODES + sub * SUB // 2)
        from_lanes(block, NV_SIZE, out, k * NV_SIZE)


@decoding
def decode_mxfp4(blocks: Any, out: Any) -> None:
    """dequantize_row_mxfp4."""
    s, block = room(MX, f32), room(MX_SIZE, np.uint8)
    for k in range(0, out.size // MX, W):
        to_lanes(blocks, k * MX_SIZE, MX_SIZE, block)
        scale = gather(E8M0, to_i32(get(block, MX_SCALE)))
        decode_nibbles(block, MX_CODES, MX, VALUES, scale, s, 0)
        from_lanes(s, MX, out, k * MX)


@decoding
def decode_nvfp4(blocks: Any, out: Any) -> None:
    """dequantize_row_nvfp4."""
    s, block = room(NV, f32), room(NV_SIZE, np.uint8)
    for k in range(0, out.size // NV, W):
        to_lanes(blocks, k * NV_SIZE, NV_SIZE, block)
        for sub in range(SUBS):
            scale = gather(UE4M3, to_i32(get(block, NV_SCALES + sub)))
            decode_nibbles(block, NV_CODES + sub * SUB // 2, SUB, VALUES, scale, s, sub * SUB)
        from_lanes(s, NV, out, k * NV)


KERNELS = {
    "MXFP4": Codec(Call(encode_mxfp4), None, Call(decode_mxfp4)),
    "NVFP4": Codec(Call(encode_nvfp4), None, Call(decode_nvfp4)),
}
