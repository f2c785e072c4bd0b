"""IQ4_NL and IQ4_XS: codes of four bits stand for sixteen values that lie closer near zero.

The order of float32 operations is that of quantize_row_iq4_nl_impl in ggml-quants.c, of which only the choice of the
nearest value is done otherwise: its binary search ends in a comparison of distances, which is exact near the middle
between two values, so the middles are thresholds. Cells of 10.25 hold one of them at most, never near an edge: tables
tell it, and the values on both sides.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize.grids import IQ4_VALUES
from ggufsmith.quantize.kernels import UNSTEERED, Call, Codec, Steering
from ggufsmith.quantize.kernels.blocks import (
    QK_K,
    from_lanes,
    get,
    get_half,
    offsets,
    put,
    put_half,
    put_u16,
    room,
    to_lanes,
)
from ggufsmith.quantize.kernels.common import (
    decoding,
    nearest_integer,
    pack_nibbles,
    place_of,
    reciprocal,
    searching,
    square_sum,
    weigh,
)
from ggufsmith.quantize.kernels.search import ALL_ZERO, extreme
from ggufsmith.quantize.kernels.tables import decode_nibbles, entry
from ggufsmith.quantize.simd import (
    MAGIC,
    W,
    bits,
    broadcast,
    clamp,
    f32,
    jitable,
    maximum,
    minimum,
    select,
    to_f32,
    to_i32,
    to_u8,
)

SUB = BY_NAME["IQ4_NL"].weights  # weights that share a scale, in both types: 32
NL_D, NL_CODES, NL_SIZE = offsets("IQ4_NL")
XS_D, XS_HIGH, XS_LOW, XS_CODES, XS_SIZE = offsets("IQ4_XS")
SUBS = QK_K // SUB
TRIES = 7  # tried on both sides of the scale that takes the largest weight to -127
CELL = 10.25
FARTHEST = f32(16 * CELL - CELL)  # all cells beyond are alike


def cells() -> tuple[NDArray[np.float32], ...]:
    """Of 32 cells, number 16 around zero: the threshold; the code, and the value, below it; the value from it on."""
    middles = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2
    code = np.searchsorted(middles, (np.arange(32) - 16.5) * CELL)
    threshold = np.append(middles, np.inf)[code]
    above = IQ4_VALUES[np.minimum(code + 1, 15)]
    return tuple(a.astype(np.float32) for a in (threshold, code, IQ4_VALUES[code], above))


THRESHOLD, CODE, BELOW, ABOVE = cells()
VALUES = np.resize(IQ4_VALUES, 32)


@jitable
def cell_of(v: Any) -> Any:
    """The cell in the low five bits; v within FARTHEST."""
    return bits(v * f32(1 / CELL) + (MAGIC + f32(16)))


@jitable
def nearest_code(v: Any) -> Any:
    """The code of the value nearest to v; 15 for NaN, as the binary search of ggml ends."""
    v = maximum(minimum(v, FARTHEST), -FARTHEST)
    cell = cell_of(v)
    code = entry(CODE, cell)
    return nearest_integer(select(v < entry(THRESHOLD, cell), code, code + f32(1)))


@jitable
def sums(x: Any, at: int, weight: Any, inverse: Any) -> Any:
    """sum(w * q * x) and sum(w * q * q) for the values q nearest to inverse * x, which are within FARTHEST."""
    qx, q2 = broadcast(f32(0)), broadcast(f32(0))
    for i in range(SUB):
        v = get(x, at + i)
        scaled = inverse * v
        cell = cell_of(scaled)
        q = select(scaled < entry(THRESHOLD, cell), entry(BELOW, cell), entry(ABOVE, cell))
        wq = get(weight, i) * q
        qx = qx + wq * v
        q2 = q2 + wq * q
    return qx, q2


@jitable
def best_scale(x: Any, at: int, weight: Any) -> Any:
    """The scale of 32 weights that fits best, of fifteen tried and refined."""
    top, size = extreme(x, at, SUB)
    qx, q2 = sums(x, at, weight, f32(1) / (-top / f32(-127)))
    scale = select(q2 > f32(0), qx / q2, f32(0))
    best = scale * qx
    for t in range(-TRIES, TRIES + 1):
        qx, q2 = sums(x, at, weight, f32(t - 127) / top)
        better = (q2 > f32(0)) & (qx * qx > best * q2)
        scale = select(better, qx / q2, scale)
        best = select(better, scale * qx, best)
    return select(size < ALL_ZERO, f32(0), scale)


@jitable
def pack_codes(x: Any, at: int, inverse: Any, codes: Any, block: Any, byte: int) -> None:
    """Sixteen bytes of codes: weight i in the low half, weight i + 16 in the high half of byte i."""
    for i in range(SUB):
        put(codes, i, nearest_code(inverse * get(x, at + i)))
    pack_nibbles(codes, SUB, block, byte)


@searching
def encode_iq4_nl(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """With importance or without."""
    steer = Steering(weights, first, blocks_per_row, row_squares)
    s, weight, importance = room(SUB, f32), room(SUB, f32), room(SUB if weights.size > 0 else 0, f32)
    codes, block = room(SUB, np.int32), room(NL_SIZE, np.uint8)
    for k in range(0, x.size // SUB, W):
        to_lanes(x, k * SUB, SUB, s)
        if weights.size > 0:
            to_lanes(weights, place_of(steer, k, SUB), SUB, importance)
        mean = square_sum(s, 0, SUB) * f32(2 / SUB)
        weigh(s, 0, SUB, importance, mean, weight)
        scale = best_scale(s, 0, weight)
        put_half(block, NL_D, scale)
        pack_codes(s, 0, reciprocal(scale), codes, block, NL_CODES)
        from_lanes(block, NL_SIZE, out, k * NL_SIZE)


@searching
def encode_iq4_xs(x: Any, out: Any, weights: Any, first: int, blocks_per_row: int, row_squares: Any) -> None:
    """With importance or without. The scale of largest magnitude of a super-block gets code -32."""
    steer = Steering(weights, first, blocks_per_row, row_squares)
    s, weight, importance = room(QK_K, f32), room(SUB, f32), room(QK_K if weights.size > 0 else 0, f32)
    codes, scales, block = room(SUB, np.int32), room(SUBS, f32), room(XS_SIZE, np.uint8)
    for k in range(0, x.size // QK_K, W):
        to_lanes(x, k * QK_K, QK_K, s)
        if weights.size > 0:
            to_lanes(weights, place_of(steer, k, QK_K), QK_K, importance)
        mean = square_sum(s, 0, QK_K) * f32(2 / QK_K)
        for sub in range(SUBS):
            weigh(s, sub * SUB, SUB, importance, mean, weight)
            put(scales, sub, best_scale(s, sub * SUB, weight))
        top, _ = extreme(scales, 0, SUBS)
        unit = -top / f32(32)
        inverse = reciprocal(unit)
        put_half(block, XS_D, unit)
        high, low = broadcast(0), broadcast(0)
        for sub in range(SUBS):
            code = clamp(nearest_integer(inverse * get(scales, sub)), -32, 31)
            pack_codes(s, sub * SUB, reciprocal(unit * to_f32(code)), codes, block, XS_CODES + sub * SUB // 2)
            code = code + 32
            low = low | ((code & 15) << (4 * sub))
            high = high | ((code >> 4) << (2 * sub))
        put_u16(block, XS_HIGH, high)
        for byte in range(4):
            put(block, XS_LOW + byte, to_u8(low >> (8 * byte)))
        from_lanes(block, XS_SIZE, out, k * XS_SIZE)


@decoding
def decode_iq4_nl(blocks: Any, out: Any) -> None:
    """dequantize_row_iq4_nl."""
    s, block = room(SUB, f32), room(NL_SIZE, np.uint8)
    for k in range(0, out.size // SUB, W):
        to_lanes(blocks, k * NL_SIZE, NL_SIZE, block)
        decode_nibbles(block, NL_CODES, SUB, VALUES, get_half(block, NL_D), s, 0)
        from_lanes(s, SUB, out, k * SUB)


@decoding
def decode_iq4_xs(blocks: Any, out: Any) -> None:
    """dequantize_row_iq4_xs."""
    s, block = room(QK_K, f32), room(XS_SIZE, np.uint8)
    for k in range(0, out.size // QK_K, W):
        to_lanes(blocks, k * XS_SIZE, XS_SIZE, block)
        unit = get_half(block, XS_D)
        for sub in range(SUBS):
            low = to_i32(get(block, XS_LOW + sub // 2)) >> (4 * (sub % 2))
            high = to_i32(get(block, XS_HIGH + sub // 4)) >> (2 * (sub % 4))
            scale = unit * to_f32(((low & 15) | ((high & 3) << 4)) - 32)
            decode_nibbles(block, XS_CODES + sub * SUB // 2, SUB, VALUES, scale, s, sub * SUB)
        from_lanes(s, QK_K, out, k * QK_K)


def unsteered() -> Steering:
    """The last arguments of a search without importance."""
    return UNSTEERED


KERNELS = {
    "IQ4_NL": Codec(Call(encode_iq4_nl, unsteered), Call(encode_iq4_nl), Call(decode_iq4_nl), alive=SUB),
    "IQ4_XS": Codec(Call(encode_iq4_xs, unsteered), Call(encode_iq4_xs), Call(decode_iq4_xs), alive=SUB),
}
