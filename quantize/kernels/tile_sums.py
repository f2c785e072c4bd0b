"""Sums of products over columns, one row per lane, for tiles of neighbouring columns; each sum in a fixed order.

What multiplies matrices elsewhere adds in an order that depends on its threads and on the CPU.
"""

from typing import Any

from ggufsmith.quantize.cache import INT, READ_F32, WRITE_F32, kernel
from ggufsmith.quantize.kernels.blocks import get, put
from ggufsmith.quantize.simd import W, broadcast, f32, jitable, load_one, multiply_add

PANEL = 4  # sums that `add_products` keeps in registers
DEPTH = 512  # columns of the errors that are used again while they are in the cache


@jitable
def add_product(x: Any, h: Any, at: int, to: Any) -> Any:
    """to + x * h[at]."""
    return multiply_add(x, load_one(h, at), to)


@jitable
def add_products(e: Any, at: int, h: Any, row: int, stride: int, first: int, last: int, g: Any, to: int) -> None:
    """g[to + i] += sum of e[at + k] * h[row + i * stride + k] over k from `first` to `last - 1`, for four i."""
    a, b, c, d = get(g, to), get(g, to + 1), get(g, to + 2), get(g, to + 3)
    second, third, fourth = row + stride, row + 2 * stride, row + 3 * stride
    for k in range(first, last):
        x = get(e, at + k)
        a = add_product(x, h, row + k, a)
        b = add_product(x, h, second + k, b)
        c = add_product(x, h, third + k, c)
        d = add_product(x, h, fourth + k, d)
    put(g, to, a)
    put(g, to + 1, b)
    put(g, to + 2, c)
    put(g, to + 3, d)


@kernel(READ_F32, READ_F32, INT, INT, INT, INT, INT, WRITE_F32)
def project(e: Any, h: Any, n: int, at: int, columns: int, first: int, last: int, g: Any) -> None:
    """Add to g the products of errors `first` to `last - 1` with columns `at` to `at + columns - 1` of H.

    e: in lanes, n numbers of each row. h: float32 [n * n], symmetric. g: in lanes, `columns` numbers of each row.
    """
    groups = g.size // (columns * W)
    for begin in range(first, last, DEPTH):
        end = min(begin + DEPTH, last)
        for group in range(groups):
            for j in range(0, columns, PANEL):
                add_products(e, group * n, h, (at + j) * n, n, begin, end, g, group * columns + j)


@kernel(READ_F32, READ_F32, INT, INT, INT, WRITE_F32)
def inner(e: Any, g: Any, n: int, at: int, columns: int, out: Any) -> None:
    """out, one number of each row: the sum of products of columns `at` to `at + columns - 1` of e and the tile g."""
    for group in range(out.size // W):
        total = broadcast(f32(0))
        for j in range(columns):
            total = multiply_add(get(e, group * n + at + j), get(g, group * columns + j), total)
        put(out, group, total)


@jitable
def spread(x: Any, at: int, n: int, h: Any, stride: int, columns: int, g: Any, to: int) -> None:
    """Add to the tile g the products of n numbers x with what rows of h, `stride` apart, have from `at` on."""
    for k in range(0, columns, PANEL):
        add_products(x, 0, h, k * stride + at, stride, 0, n, g, to + k)
