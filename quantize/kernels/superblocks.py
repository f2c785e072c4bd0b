"""What the K-quants share: super-blocks of 256 weights, one per lane, whose sub-blocks' scales are codes themselves.

First the search for each sub-block's scale, then the codes of the scales, then the codes of the weights from the scales
as they are stored. A sub-block whose stored scale is zero keeps the codes of its search, as in ggml.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.kernels.blocks import QK_K, get, part_to_lanes, put
from ggufsmith.quantize.simd import broadcast, clamp, f32, jitable, nearest, select, sqrt, to_i32, to_u8


@jitable
def importance_of(x: Any, at: int, n: int, importance: Any, place: int, square: Any, w: Any, to: int) -> Any:
    """w = importance * sqrt(square + x * x), from `to` on, for n weights of each block; returns the sum of w.

    place: where in `importance` that of the first block's n weights begins; the other blocks' follow every 256.
    """
    part_to_lanes(importance, place, QK_K, n, w, to)
    total = broadcast(f32(0))
    for i in range(n):
        v = get(x, at + i)
        weight = get(w, to + i) * sqrt(square + v * v)
        put(w, to + i, weight)
        total = total + weight
    return total


@jitable
def recode(x: Any, at: int, n: int, d: Any, low: Any, first: Any, last: Any, codes: Any) -> None:
    """Codes of x = d * code - low from `first` to `last`, as u8 counted from `first`; where d is zero they stay."""
    zero = d == 0
    for i in range(at, at + n):
        code = clamp(nearest((get(x, i) + low) / d), first, last) - first
        put(codes, i, select(zero, get(codes, i), to_u8(to_i32(code))))


@jitable
def put_crumbs(codes: Any, block: Any, byte: int) -> None:
    """Codes of 2 bits, four to a byte: byte 32 h + i of 64 holds weights 128 h + i, + 32, + 64, + 96."""
    for half in range(2):
        for i in range(32):
            first = half * 128 + i
            low = get(codes, first) | (get(codes, first + 32) << 2)
            high = get(codes, first + 64) | (get(codes, first + 96) << 2)
            put(block, byte + half * 32 + i, low | (high << 4))


@jitable
def get_crumb(block: Any, byte: int, i: int) -> Any:
    """Code i of those that `put_crumbs` stores, as u8."""
    return (get(block, byte + i // 128 * 32 + i % 32) >> np.uint8(i % 128 // 32 * 2)) & 3
