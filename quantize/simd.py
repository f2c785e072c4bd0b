"""A small vocabulary of vectors, for kernels that read like scalar code and move W blocks at once.

    x = load(s, i * W)                  # W float32, one per lane
    q = nearest(x * inverse)            # operators and functions act on every lane
    q = minimum(maximum(q, 0), 15)      # scalars are spread over the lanes
    store(s, i * W, select(x < 0, -q, q))

**The rule.** Lane l belongs to block l, for the whole kernel. A lane does exactly the scalar algorithm's float32
operations in the scalar algorithm's order, so results do not depend on W, on the CPU or on how rows are cut into
chunks. Nothing here reduces across lanes except `any_lane`, which may only decide whether work can be skipped, or done
in a shorter way with the same result.

**Two ways to run it.** Inside `kernel` (quantize/cache.py) every call becomes one or a few machine instructions (LLVM
vectors, through Numba's extension interface: the package `compiler`). Outside, the same functions work on NumPy arrays
of shape (W,), so that `some_kernel.py_func(...)` is the readable twin that the tests compare with. Functions made of
the vocabulary are decorated with `jitable`: plain Python outside, compiled inside.

**Types.** A vector has the element type of the array that it was loaded from: float32 `f32`, integers `i8 u8 i16 u16
i32 u32`; comparisons give masks. Operators: + - * / (floats), + - * & | ^ ~ << >> (integers; >> shifts in zeros for
unsigned elements and copies of the sign for signed), comparisons, & | ^ ~ on masks. Both sides have the same type, or
one is a Python or NumPy scalar, which takes the vector's type. Write constants that matter as `f32(0.1)`. A variable
keeps its type: start an accumulator with `broadcast(f32(0))`, not with 0.

**Floats** behave as IEEE 754 says: no contraction to FMA but where `multiply_add` asks for it, no reassociation,
denormals kept.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ggufsmith.quantize import cpu

f32 = np.float32
W = cpu.level().lanes
TILE = min(W, 16)  # side of the square that `transpose` moves
Function = TypeVar("Function", bound=Callable[..., Any])
JITABLE: list[Callable[..., Any]] = []  # for the compiler, if it is needed


def jitable(function: Function) -> Function:
    """A function made of the vocabulary: plain Python outside kernels, compiled inside."""
    JITABLE.append(function)
    return function


# ---- lanes and memory ----


def scratch(n: int, dtype: Any) -> Any:
    """An uninitialised 1-D array that starts at a cache line."""
    return np.empty(n, dtype)


def lanes() -> Any:
    """0, 1, …, W-1 as i32."""
    return np.arange(W, dtype=np.int32)


def broadcast(x: Any) -> Any:
    """A scalar in every lane: f32 from floats, u32 from uint32, i32 from other integers."""
    dtype = np.float32 if isinstance(x, float | np.floating) else np.uint32 if isinstance(x, np.uint32) else np.int32
    return np.full(W, x, dtype)


def load(array: Any, at: int) -> Any:
    """array[at : at + W] of a C-contiguous 1-D array, any alignment. Nothing is checked."""
    return array[at : at + W].copy()


def load_one(array: Any, at: int) -> Any:
    """array[at] in every lane. Nothing is checked."""
    return np.full(W, array[at])


def store(array: Any, at: int, v: Any) -> None:
    """array[at : at + W] = v; the element types are the same."""
    array[at : at + W] = v


def gather(array: Any, index: Any) -> Any:
    """array[index] for an i32 or u32 vector of indices into a C-contiguous 1-D array. Nothing is checked."""
    return array[index]


def transpose(source: Any, at: int, stride: int, target: Any, to: int, step: int) -> None:
    """Move a square of TILE x TILE elements: target[to + j * step + i] = source[at + i * stride + j]."""
    square = np.lib.stride_tricks.as_strided(source[at:], (TILE, TILE), (stride * source.itemsize, source.itemsize))
    for j, column in enumerate(square.T.copy()):
        target[to + j * step : to + j * step + TILE] = column


# ---- choosing ----


def select(mask: Any, x: Any, y: Any) -> Any:
    """x where the mask is set, else y; one of them may be a scalar."""
    dtype = x.dtype if isinstance(x, np.ndarray) else y.dtype
    return np.where(mask, x, y).astype(dtype)


def minimum(x: Any, y: Any) -> Any:
    """x where x < y, else y; so y where either is NaN."""
    return select(x < y, x, y)


def maximum(x: Any, y: Any) -> Any:
    """x where x > y, else y; so y where either is NaN."""
    return select(x > y, x, y)


def any_lane(mask: Any) -> bool:
    """Whether the mask is set in some lane; only to choose between ways that give the same."""
    return bool(mask.any())


# ---- one lane's arithmetic ----


def absolute(x: Any) -> Any:
    """|x| of f32: the sign bit cleared."""
    return np.abs(x)


def sqrt(x: Any) -> Any:
    """The correctly rounded square root of f32."""
    return np.sqrt(x)


def multiply_add(x: Any, y: Any, z: Any) -> Any:
    """x * y + z of f32, rounded once, on every CPU; slow on one that has no instruction for it (x86 before 2013).

    Here the sum in float64 is rounded to odd, after which rounding it to float32 is as if it had been exact.
    """
    product, addend = np.float64(x) * np.float64(y), np.float64(z)
    total = product + addend
    other = total - product
    lost = (product - (total - other)) + (addend - other)  # the exact sum is total + lost
    whole = np.broadcast_to(total, W).copy().view(np.int64)
    odd = (whole - ((lost < 0) != (total < 0))) | 1
    return np.where((lost != 0) & np.isfinite(lost), odd, whole).view(np.float64).astype(np.float32)


def bits(x: Any) -> Any:
    """The bits of f32 as u32."""
    return x.view(np.uint32)


def from_bits(x: Any) -> Any:
    """f32 from its bits in u32 or i32."""
    return x.view(np.float32)


def to_f32(x: Any) -> Any:
    """Integers to f32, rounded to nearest even."""
    return x.astype(np.float32)


def to_u8(x: Any) -> Any:
    """The low 8 bits of each integer."""
    return x.astype(np.uint8)


def to_i8(x: Any) -> Any:
    """The low 8 bits of each integer, as a signed number."""
    return x.astype(np.int8)


def to_u16(x: Any) -> Any:
    """Integers as u16: zeros or copies of the sign in front, or the low 16 bits."""
    return x.astype(np.uint16)


def to_i16(x: Any) -> Any:
    """Integers as i16: zeros or copies of the sign in front, or the low 16 bits."""
    return x.astype(np.int16)


def to_u32(x: Any) -> Any:
    """Integers (and masks: 0 or 1) as u32."""
    return x.astype(np.uint32)


def to_i32(x: Any) -> Any:
    """Integers (and masks: 0 or 1) as i32; f32 towards zero, which must fit (`truncate` takes anything)."""
    return x.astype(np.int32)


def truncate(x: Any) -> Any:
    """f32 to i32 towards zero; -2**31 for NaN and for what does not fit, as the x86 instruction does."""
    fits = absolute(x) < f32(2147483648.0)
    return np.where(fits, np.where(fits, x, 0).astype(np.int32), -2147483648).astype(np.int32)


# ---- made of the above ----

MAGIC = f32(12582912.0)  # 1.5 * 2**23: the sum with it has the nearest integer (ties to even) in its low mantissa bits


@jitable
def nearest(x: Any) -> Any:
    """The nearest integer of f32, ties to even, as f32; for |x| > 2**22 whatever `nearest_int` of ggml-quants.c gives.

    The mantissa of x + 1.5 * 2**23 is read as an integer: here it is put below the exponent of 2**23 instead.
    """
    return from_bits((bits(x + MAGIC) & 0x007FFFFF) | 0x4B000000) - MAGIC


@jitable
def nearest_small(x: Any) -> Any:
    """`nearest` for |x| < 2**22, in two operations."""
    return (x + MAGIC) - MAGIC


@jitable
def clamp(x: Any, low: Any, high: Any) -> Any:
    """x kept between low and high."""
    return maximum(minimum(x, high), low)


@jitable
def round_away(x: Any) -> Any:
    """C's roundf, for |x| < 2**22: the nearest integer, ties away from zero, as i32.

    0.49999997, the number below a half, is added: a half itself would lift 0.49999997 to 1.
    """
    return to_i32(x + from_bits((bits(x) & 0x80000000) | 0x3EFFFFFF))


@jitable
def half_to_f32(h: Any) -> Any:
    """float16 bits in u16 to f32, exactly; NaN is made quiet. Integer operations, so equal on every CPU."""
    h = to_u32(h)
    magnitude = h & 0x7FFF
    shifted = magnitude << 13
    normal = shifted + select(magnitude >= 0x7C00, broadcast(np.uint32(0x70000000)), 0x38000000)
    normal = select(magnitude > 0x7C00, normal | 0x00400000, normal)
    tiny = bits(from_bits(magnitude | 0x3F000000) - f32(0.5))
    return from_bits(select(magnitude < 0x0400, tiny, normal) | ((h & 0x8000) << 16))


@jitable
def f32_to_half(x: Any) -> Any:
    """f32 to float16 bits in u16, to nearest even; 65520 and above become infinite, NaN keeps its sign: 0x7E00."""
    b = bits(x)
    magnitude = b & 0x7FFFFFFF
    normal = minimum((magnitude + 0x0FFF + ((magnitude >> 13) & 1) - 0x38000000) >> 13, 0x7C00)
    normal = select(magnitude > 0x7F800000, 0x7E00, normal)
    tiny = bits(from_bits(magnitude) + f32(0.5)) - 0x3F000000
    return to_u16(select(magnitude < 0x38800000, tiny, normal) | ((b >> 16) & 0x8000))


@jitable
def bf16_to_f32(h: Any) -> Any:
    """bfloat16 bits in u16 to f32, exactly."""
    return from_bits(to_u32(h) << 16)


@jitable
def f32_to_bf16(x: Any) -> Any:
    """f32 to bfloat16 bits in u16, to nearest even; NaN stays NaN, made quiet."""
    b = bits(x)
    rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16
    return to_u16(select((b & 0x7FFFFFFF) > 0x7F800000, (b >> 16) | 0x0040, rounded))
