"""Rows between float32, float16 and bfloat16, in one pass over memory that also finds the largest magnitude.

Rounding is to nearest even: float16 as IEEE 754 (NumPy, ggml_fp32_to_fp16), bfloat16 as torch and ggml_fp32_to_bf16.
The largest magnitude, as float32 bits, tells whether anything in the chunk needs a closer look: NaN and infinity lie at
and above 0x7F800000, and order of bits is order of magnitude.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.quantize.cache import INT, READ_F32, READ_U16, WRITE_F32, WRITE_U16, Kernel, kernel
from ggufsmith.quantize.simd import (
    TILE,
    W,
    bf16_to_f32,
    bits,
    broadcast,
    f32,
    f32_to_bf16,
    f32_to_half,
    half_to_f32,
    jitable,
    load,
    maximum,
    scratch,
    store,
    transpose,
)

HALF, BRAIN = 0, 1
LAYOUT = {"F16": HALF, "BF16": BRAIN}


@jitable
def widen(v: Any, layout: int) -> Any:
    """float16 or bfloat16 bits (u16), as `layout` says, to f32."""
    return half_to_f32(v) if layout == HALF else bf16_to_f32(v)


@jitable
def narrow(v: Any, layout: int) -> Any:
    """f32 to float16 or bfloat16 bits (u16), as `layout` says."""
    return f32_to_half(v) if layout == HALF else f32_to_bf16(v)


@jitable
def magnitude(v: Any) -> Any:
    """The bits of |v| as u32, whose order is that of the magnitudes."""
    return bits(v) & 0x7FFFFFFF


@jitable
def highest(peak: Any) -> Any:
    """The largest of the lanes; the order of comparing does not matter."""
    s = scratch(W, np.uint32)
    store(s, 0, peak)
    top = s[0]
    for lane in range(1, W):
        top = s[lane] if s[lane] > top else top
    return top


@kernel(READ_F32)
def peak_of(x: Any) -> Any:
    """The largest magnitude of x, as float32 bits; x: at least W float32."""
    peak = broadcast(np.uint32(0))
    for start in range(0, x.size, W):
        peak = maximum(peak, magnitude(load(x, min(start, x.size - W))))
    return highest(peak)


@kernel(READ_F32, WRITE_F32)
def copied(x: Any, y: Any) -> Any:
    """y = x, and the largest magnitude; x, y: at least W float32."""
    peak = broadcast(np.uint32(0))
    for start in range(0, x.size, W):
        i = min(start, x.size - W)
        v = load(x, i)
        peak = maximum(peak, magnitude(v))
        store(y, i, v)
    return highest(peak)


@kernel(READ_U16, INT, WRITE_F32)
def widened(x: Any, source: int, y: Any) -> Any:
    """y = x in float32, and the largest magnitude; x: at least W u16, of the layout `source`."""
    peak = broadcast(np.uint32(0))
    for start in range(0, x.size, W):
        i = min(start, x.size - W)
        v = widen(load(x, i), source)
        peak = maximum(peak, magnitude(v))
        store(y, i, v)
    return highest(peak)


@kernel(READ_F32, INT, WRITE_U16)
def narrowed(x: Any, target: int, y: Any) -> Any:
    """y = x rounded to the layout `target`, and the largest magnitude of x; x: at least W float32."""
    peak = broadcast(np.uint32(0))
    for start in range(0, x.size, W):
        i = min(start, x.size - W)
        v = load(x, i)
        peak = maximum(peak, magnitude(v))
        store(y, i, narrow(v, target))
    return highest(peak)


@kernel(READ_U16, INT, INT, WRITE_U16)
def exchanged(x: Any, source: int, target: int, y: Any) -> Any:
    """Between the half formats; equal formats are copied bit for bit."""
    peak = broadcast(np.uint32(0))
    for start in range(0, x.size, W):
        i = min(start, x.size - W)
        h = load(x, i)
        v = widen(h, source)
        peak = maximum(peak, magnitude(v))
        store(y, i, h if source == target else narrow(v, target))
    return highest(peak)


@kernel(READ_F32, INT, WRITE_F32)
def square_sums(x: Any, width: int, power: Any) -> Any:
    """Sums of squares of rows, in order, one row per lane; and the peak. power: (rows rounded up to W,)."""
    rows = x.size // width
    tile = scratch(TILE * W, np.float32)
    tile[:] = 0
    peak = broadcast(np.uint32(0))
    for row in range(0, rows, W):
        total = broadcast(f32(0))
        for column in range(0, width, TILE):
            for lane in range(0, W, TILE):
                at = (row + lane) * width + column
                if row + lane + TILE <= rows:
                    transpose(x, at, width, tile, lane, W)
                else:
                    for i in range(rows - row - lane):
                        for j in range(TILE):
                            tile[j * W + lane + i] = x[at + i * width + j]
            for j in range(TILE):
                v = load(tile, j * W)
                total = total + v * v
                peak = maximum(peak, magnitude(v))
        store(power, row, total)
    return highest(peak)


def mean_squares(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The mean square of each row of (n, width), summed in order in float32, n rounded up to W; and the peak."""
    n, width = x.shape
    power = np.empty((n + W - 1) // W * W, np.float32)
    peak = int(square_sums(x.reshape(-1), width, power))
    power /= np.float32(width)
    return power, peak


def peak(x: NDArray[np.float32]) -> int:
    """The largest magnitude of a 1-D array, as float32 bits; NaN counts as larger than infinity."""
    return int(peak_of(padded(x)))


def convert(x: NDArray[Any], source: str, y: NDArray[Any], target: str) -> int:
    """y = x for 1-D arrays of one length; float32 or, as uint16 bits, float16 and bfloat16. Returns `peak` of x.

    source, target: "F32", "F16" or "BF16". float16 overflow gives infinity (peak tells).
    """
    if x.size < W:  # the kernels move whole vectors
        room = np.zeros(W, y.dtype)
        found = convert(padded(x), source, room, target)
        y[:] = room[: x.size]
        return found
    run, layouts = kernel_for(source, target)
    return int(run(x, *layouts, y))


def kernel_for(source: str, target: str) -> tuple[Kernel, tuple[int, ...]]:
    """The kernel from one plain format to another and its layout arguments."""
    layouts = tuple(LAYOUT[name] for name in (source, target) if name in LAYOUT)
    run = {(0, 0): copied, (1, 0): widened, (0, 1): narrowed, (1, 1): exchanged}[source in LAYOUT, target in LAYOUT]
    return run, layouts


def padded(x: NDArray[Any]) -> NDArray[Any]:
    """x with zeros behind it, so that it fills a vector."""
    return x if x.size >= W else np.concatenate([x, np.zeros(W - x.size, x.dtype)])
