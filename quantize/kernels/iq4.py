"""IQ4_NL and IQ4_XS: codes of four bits stand for sixteen values that lie closer near zero.

The order of float32 operations is that of quantize_row_iq4_nl_impl in ggml-quants.c, of which only the choice of the
nearest value is done otherwise: its binary search ends in a comparison of distances, which is exact near the middle
between two values, so the middles are thresholds. Cells of 10.25 hold one of them at most, never near an edge: tables
tell it, and the values on both sides.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.quantize.cache import INT, READ_F32, READ_U8, WRITE_F32, WRITE_U8, Kernel, kernel
from ggufsmith.quantize.grids import IQ4_VALUES
from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.kernels.blocks import from_lanes, load_half, store_half, to_lanes
from ggufsmith.quantize.kernels.iq_common import decode_nibbles, entry, nearest_integer, reciprocal
from ggufsmith.quantize.kernels.search import ALL_ZERO, extreme
from ggufsmith.quantize.simd import (
    MAGIC,
    W,
    bits,
    broadcast,
    clamp,
    f32,
    f32_to_half,
    jitable,
    load,
    maximum,
    minimum,
    scratch,
    select,
    sqrt,
    store,
    to_f32,
    to_i32,
    to_u8,
)

SUB = 32  # weights that share a scale
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
        v = load(x, at + i * W)
        scaled = inverse * v
        cell = cell_of(scaled)
        q = select(scaled < entry(THRESHOLD, cell), entry(BELOW, cell), entry(ABOVE, cell))
        wq = load(weight, i * W) * q
        qx = qx + wq * v
        q2 = q2 + wq * q
    return qx, q2


@jitable
def best_scale(x: Any, at: int, weight: Any) -> Any:
    """The scale of 32 weights from `at` that fits best, of fifteen tried and refined."""
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
def weigh(x: Any, at: int, importance: Any, mean: Any, weight: Any) -> None:
    """weight[0 : 32 * W] of 32 weights at `at` in lanes. importance: in lanes as x is, or empty."""
    for i in range(SUB):
        v = load(x, at + i * W)
        w = load(importance, at + i * W) * sqrt(mean + v * v) if importance.size > 0 else v * v
        store(weight, i * W, w)


@jitable
def mean_square(x: Any, n: int) -> Any:
    """Twice the mean square of n weights in lanes."""
    total = broadcast(f32(0))
    for i in range(n):
        v = load(x, i * W)
        total = total + v * v
    return total * f32(2 / n)


@jitable
def store_codes(x: Any, at: int, inverse: Any, block: Any, byte: int) -> None:
    """Sixteen bytes of codes: weight i in the low half, weight i + 16 in the high half of byte i."""
    for i in range(16):
        low, high = nearest_code(inverse * load(x, at + i * W)), nearest_code(inverse * load(x, at + (i + 16) * W))
        store(block, (byte + i) * W, to_u8(low | (high << 4)))


@jitable
def encode_nl(x: Any, out: Any, importance: Any, first: int) -> None:
    v, weight, block = scratch(SUB * W, np.float32), scratch(SUB * W, np.float32), scratch(18 * W, np.uint8)
    steer = scratch(SUB * W if importance.size > 0 else 0, np.float32)
    per_row = max(importance.size // SUB - W, 1)
    for k in range(0, x.size // SUB, W):
        to_lanes(x, k * SUB, SUB, v, 0)
        if steer.size > 0:
            to_lanes(importance, (first + k) % per_row * SUB, SUB, steer, 0)
        weigh(v, 0, steer, mean_square(v, SUB), weight)
        scale = best_scale(v, 0, weight)
        store_half(block, 0, f32_to_half(scale))
        store_codes(v, 0, reciprocal(scale), block, 2)
        from_lanes(block, 18, out, k * 18)


@jitable
def encode_xs(x: Any, out: Any, importance: Any, first: int) -> None:
    v, weight, block = scratch(256 * W, np.float32), scratch(SUB * W, np.float32), scratch(136 * W, np.uint8)
    steer = scratch(256 * W if importance.size > 0 else 0, np.float32)
    scales = scratch(8 * W, np.float32)
    per_row = max(importance.size // 256 - W, 1)
    for k in range(0, x.size // 256, W):
        to_lanes(x, k * 256, 256, v, 0)
        if steer.size > 0:
            to_lanes(importance, (first + k) % per_row * 256, 256, steer, 0)
        mean = mean_square(v, 256)
        for sub in range(8):
            weigh(v, sub * SUB * W, steer, mean, weight)
            store(scales, sub * W, best_scale(v, sub * SUB * W, weight))
        top, _ = extreme(scales, 0, 8)
        unit = -top / f32(32)
        inverse = reciprocal(unit)
        store_half(block, 0, f32_to_half(unit))
        high, low = broadcast(0), broadcast(0)
        for sub in range(8):
            code = clamp(nearest_integer(inverse * load(scales, sub * W)), -32, 31)
            store_codes(v, sub * SUB * W, reciprocal(unit * to_f32(code)), block, 8 + 16 * sub)
            code = code + 32
            low = low | ((code & 15) << (4 * sub))
            high = high | ((code >> 4) << (2 * sub))
        for byte in range(2):
            store(block, (2 + byte) * W, to_u8(high >> (8 * byte)))
        for byte in range(4):
            store(block, (4 + byte) * W, to_u8(low >> (8 * byte)))
        from_lanes(block, 136, out, k * 136)


@kernel(READ_F32, WRITE_U8, READ_F32, INT)
def iq4_nl(x: Any, out: Any, importance: Any, first: int) -> None:
    encode_nl(x, out, importance, first)


@kernel(READ_F32, WRITE_U8, READ_F32, INT)
def iq4_xs(x: Any, out: Any, importance: Any, first: int) -> None:
    encode_xs(x, out, importance, first)


@kernel(READ_U8, WRITE_F32)
def iq4_nl_decode(blocks: Any, out: Any) -> None:
    block, lanes = scratch(18 * W, np.uint8), scratch(SUB * W, np.float32)
    for k in range(0, out.size // SUB, W):
        to_lanes(blocks, k * 18, 18, block, 0)
        decode_nibbles(block, 2, SUB, VALUES, load_half(block, 0), lanes, 0)
        from_lanes(lanes, SUB, out, k * SUB)


@kernel(READ_U8, WRITE_F32)
def iq4_xs_decode(blocks: Any, out: Any) -> None:
    block, lanes = scratch(136 * W, np.uint8), scratch(256 * W, np.float32)
    for k in range(0, out.size // 256, W):
        to_lanes(blocks, k * 136, 136, block, 0)
        unit = load_half(block, 0)
        for sub in range(8):
            low = to_i32(load(block, (4 + sub // 2) * W)) >> (4 * (sub % 2))
            high = to_i32(load(block, (2 + sub // 4) * W)) >> (2 * (sub % 4))
            scale = unit * to_f32(((low & 15) | ((high & 3) << 4)) - 32)
            decode_nibbles(block, 8 + 16 * sub, SUB, VALUES, scale, lanes, sub * SUB)
        from_lanes(lanes, 256, out, k * 256)


def codec(encoder: Kernel, decoder: Kernel) -> Codec:
    return Codec(
        encode=lambda x, out: encoder(x, out, np.empty(0, np.float32), 0),
        weighted=lambda x, out, importance, first, power: encoder(x, out, importance, first),
        decode=decoder,
        alive=SUB,
    )


KERNELS = {"IQ4_NL": codec(iq4_nl, iq4_nl_decode), "IQ4_XS": codec(iq4_xs, iq4_xs_decode)}
