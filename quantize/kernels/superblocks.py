"""What the K-quants share: super-blocks of 256 weights, one per lane, whose sub-blocks' scales are codes themselves.

First the search for each sub-block's scale, then the codes of the scales, then the codes of the weights from the scales
as they are stored. A sub-block whose stored scale is zero keeps the codes of its search, as in ggml.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.cache import INT, READ_F32, READ_U8, WRITE_F32, WRITE_U8, kernel
from ggufsmith.quantize.kernels.blocks import part_to_lanes
from ggufsmith.quantize.simd import (
    W,
    broadcast,
    clamp,
    f32,
    jitable,
    load,
    nearest,
    select,
    sqrt,
    store,
    to_i32,
    to_u8,
)

N = 256
ENCODE, DECODE = kernel(READ_F32, WRITE_U8), kernel(READ_U8, WRITE_F32)
WEIGHTED = kernel(READ_F32, WRITE_U8, READ_F32, INT, READ_F32)


@jitable
def square_sum(x: Any, at: int, n: int) -> Any:
    """The sum of n squares, in order."""
    total = broadcast(f32(0))
    for i in range(n):
        v = load(x, at + i * W)
        total = total + v * v
    return total


@jitable
def importance_of(x: Any, at: int, n: int, importance: Any, column: int, square: Any, w: Any, to: int) -> Any:
    """w = importance * sqrt(square + x * x), from `to` on, for n weights of each lane; returns the sum of w.

    column: where the importance of the first lane's n weights begins; the other lanes' follow every 256.
    """
    part_to_lanes(importance, column, N, n, w, to)
    total = broadcast(f32(0))
    for i in range(n):
        v = load(x, at + i * W)
        weight = load(w, to + i * W) * sqrt(square + v * v)
        store(w, to + i * W, weight)
        total = total + weight
    return total


@jitable
def recode(x: Any, at: int, n: int, d: Any, low: Any, first: Any, last: Any, codes: Any) -> None:
    """Codes of x = d * code - low from `first` to `last`, as u8 counted from `first`; where d is zero they stay."""
    zero = d == 0
    for i in range(n):
        code = clamp(nearest((load(x, at + i * W) + low) / d), first, last) - first
        store(codes, at + i * W, select(zero, load(codes, at + i * W), to_u8(to_i32(code))))


@jitable
def store_crumbs(codes: Any, block: Any, byte: int) -> None:
    """Codes of 2 bits, four to a byte: byte 32 h + i of 64 holds weights 128 h + i, + 32, + 64, + 96."""
    for half in range(2):
        for i in range(32):
            at = (half * 128 + i) * W
            low = load(codes, at) | (load(codes, at + 32 * W) << 2)
            high = load(codes, at + 64 * W) | (load(codes, at + 96 * W) << 2)
            store(block, (byte + half * 32 + i) * W, low | (high << 4))


@jitable
def load_crumb(block: Any, byte: int, i: int) -> Any:
    """Code i of those that `store_crumbs` stores, as u8."""
    return (load(block, (byte + i // 128 * 32 + i % 32) * W) >> np.uint8(i % 128 // 32 * 2)) & 3
