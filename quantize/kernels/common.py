"""What the searches of several formats share. `x[at]` to `x[at + n - 1]` are the numbers of each block in lanes (see
blocks.py) that a function is about.
"""

from typing import Any

from ggufsmith.quantize.cache import INT, READ_F32, READ_U8, WRITE_F32, WRITE_U8, kernel
from ggufsmith.quantize.kernels import Steering
from ggufsmith.quantize.kernels.blocks import get, put
from ggufsmith.quantize.simd import MAGIC, absolute, bits, broadcast, f32, jitable, maximum, select, sqrt, to_i32, to_u8

# The arguments of `Codec.encode`, `weighted` and `decode`; what tells formats apart follows.
ENCODE, DECODE = (READ_F32, WRITE_U8), (READ_U8, WRITE_F32)
SEARCH = (*ENCODE, READ_F32, INT, INT, READ_F32)

encoding, searching, decoding = kernel(*ENCODE), kernel(*SEARCH), kernel(*DECODE)


@jitable
def largest(x: Any, at: int, n: int) -> Any:
    """The largest magnitude of n numbers."""
    size = broadcast(f32(0))
    for i in range(n):
        size = maximum(absolute(get(x, at + i)), size)
    return size


@jitable
def greatest(x: Any, at: int, n: int) -> Any:
    """The greatest of n numbers and zero."""
    top = broadcast(f32(0))
    for i in range(n):
        top = maximum(get(x, at + i), top)
    return top


@jitable
def square_sum(x: Any, at: int, n: int) -> Any:
    """The sum of n squares, in order."""
    total = broadcast(f32(0))
    for i in range(n):
        v = get(x, at + i)
        total = total + v * v
    return total


@jitable
def place_of(steer: Steering, k: int, n: int) -> int:
    """Where in `steer.weights` those of block k of the blocks at hand begin; n: weights per block."""
    return (steer.first + k) % steer.blocks_per_row * n


@jitable
def weigh(x: Any, at: int, n: int, importance: Any, mean: Any, w: Any) -> None:
    """w[0] to w[n - 1] = importance * sqrt(mean + x * x); x * x without importance.

    importance: in lanes as x is, or empty.
    """
    for i in range(n):
        v = get(x, at + i)
        put(w, i, get(importance, at + i) * sqrt(mean + v * v) if importance.size > 0 else v * v)


@jitable
def reciprocal(d: Any) -> Any:
    """1 / d, and 0 for 0."""
    return select(d != f32(0), f32(1) / d, f32(0))


@jitable
def nearest_integer(x: Any) -> Any:
    """simd.nearest as i32: nearest_int of ggml-quants.c."""
    return to_i32(bits(x + MAGIC) & 0x007FFFFF) - 0x00400000


@jitable
def pack_nibbles(codes: Any, n: int, block: Any, byte: int) -> None:
    """The low four bits of n codes (i32) as n / 2 bytes: code i in the low half, code i + n / 2 in the high half."""
    for i in range(n // 2):
        put(block, byte + i, to_u8((get(codes, i) & 15) | (get(codes, i + n // 2) << 4)))
