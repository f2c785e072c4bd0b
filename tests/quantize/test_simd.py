"""The vocabulary: compiled, and on NumPy arrays, and against the definitions of what it imitates."""

import math
import os
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.quantize import simd
from ggufsmith.quantize.cache import READ_F32, READ_U8, WRITE_F32, WRITE_U8, kernel, read, write
from ggufsmith.quantize.simd import (
    TILE,
    W,
    absolute,
    any_lane,
    bits,
    broadcast,
    clamp,
    f32,
    from_bits,
    gather,
    jitable,
    lanes,
    load,
    load_one,
    maximum,
    minimum,
    multiply_add,
    nearest,
    nearest_small,
    round_away,
    scratch,
    select,
    sqrt,
    store,
    to_f32,
    to_i8,
    to_i16,
    to_i32,
    to_u8,
    to_u16,
    to_u32,
    transpose,
    truncate,
)

WRITE_I32, WRITE_U32 = write(np.int32), write(np.uint32)
EDGES = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    0.49999997,
    8388608.5,
    2.0**22,
    1e30,
    -1e30,
    math.inf,
    -math.inf,
    math.nan,
    1e-45,
]


def wild(seed: int = 0) -> NDArray[np.float32]:
    """W numbers, among them the edges; four vectors of them."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(4 * W) * 10.0 ** rng.integers(-4, 8, 4 * W)).astype(np.float32)
    x[: len(EDGES)] = EDGES
    return rng.permutation(x).astype(np.float32)


def both(run: Any, *arrays: NDArray[Any]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The arrays after the compiled kernel and after its twin in NumPy."""
    compiled, plain = [a.copy() for a in arrays], [a.copy() for a in arrays]
    run(*compiled)
    with np.errstate(all="ignore"):
        run.py_func(*plain)
    return compiled, plain


def assert_twins(run: Any, *arrays: NDArray[Any]) -> list[NDArray[Any]]:
    compiled, plain = both(run, *arrays)
    for a, b in zip(compiled, plain, strict=True):
        nan = np.isnan(a) & np.isnan(b) if a.dtype == np.float32 else np.zeros(a.shape, bool)
        assert np.array_equal(a.view(f"u{a.itemsize}")[~nan], b.view(f"u{b.itemsize}")[~nan])
    return compiled


@kernel(READ_F32, WRITE_F32)
def float_operations(x: Any, out: Any) -> None:
    at = 0
    for k in range(0, x.size - W, W):
        a, b = load(x, k), load(x, k + W)
        for v in (a + b, a - b, a * b, a / b, -a, absolute(a), sqrt(absolute(a)), minimum(a, b), maximum(a, b)):
            store(out, at, v)
            at += W
        for v in (nearest(a), nearest_small(b), clamp(a, -3, f32(2.5)), a * 3, f32(0.1) - a, select(a < b, a, 7)):
            store(out, at, v)
            at += W
        a += b
        a *= f32(0.5)
        store(out, at, a)
        at += W


def test_floats() -> None:
    assert_twins(float_operations, wild(), np.zeros(3 * 16 * W, np.float32))


@kernel(READ_F32, WRITE_I32)
def comparisons(x: Any, out: Any) -> None:
    a, b = load(x, 0), load(x, W)
    m = (a < b) | (a >= f32(2)) & ~(b <= 1) ^ (a == a)
    store(out, 0, to_i32(m))
    store(out, W, to_i32((a != b) & (a > 0)))
    store(out, 2 * W, to_i32(lanes() < 3) + 10)
    out[3 * W] = any_lane(m)
    out[3 * W + 1] = any_lane(a != a)
    out[3 * W + 2] = any_lane(lanes() == W)


def test_comparisons() -> None:
    for seed in range(8):
        assert_twins(comparisons, wild(seed), np.zeros(4 * W, np.int32))


@kernel(READ_F32, WRITE_I32, WRITE_U32, WRITE_U8, write(np.int8), write(np.uint16), write(np.int16))
def integers(x: Any, i: Any, u: Any, b: Any, c: Any, h: Any, g: Any) -> None:
    v, w = load(i, 0), load(u, 0)
    store(i, W, (v + 3) * v - (v & 0xFF) | (v ^ 5))
    store(i, 2 * W, (v >> 3) + (v << 2) + ~v - (-v))
    store(i, 3 * W, to_i32(w >> 5) + to_i32(load(c, 0)) + to_i32(load(h, 0)) + to_i32(load(b, 0)) + to_i32(load(g, 0)))
    store(i, 4 * W, truncate(load(x, 0)))
    store(i, 5 * W, clamp(v, -100, 100))
    store(i, 6 * W, select(v > 0, v, 0))
    store(u, W, (w + 1) * w ^ (w >> 7) | (w << 3))
    store(u, 2 * W, to_u32(load(c, 0)) + to_u32(load(h, 0)))
    store(u, 3 * W, bits(load(x, 0)) & 0x7FFFFFFF)
    store(u, 4 * W, maximum(w, 0x80000000))
    store(u, 5 * W, bits(to_f32(w)) + bits(to_f32(v)))
    store(u, 6 * W, bits(from_bits(w)))
    store(b, W, to_u8(v) + (load(b, 0) >> 2))
    store(c, W, to_i8(w) >> 1)
    store(h, W, to_u16(v) + to_u16(load(b, 0)))
    store(g, W, to_i16(load(c, 0)) + to_i16(w))


def test_integers() -> None:
    rng = np.random.default_rng(0)
    arrays: list[NDArray[Any]] = [wild()]
    for dtype in (np.int32, np.uint32, np.uint8, np.int8, np.uint16, np.int16):
        limits = np.iinfo(dtype)
        arrays.append(rng.integers(limits.min, limits.max, 7 * W, dtype, endpoint=True))
    assert_twins(integers, *arrays)


@kernel(READ_F32, READ_U8, read(np.int32), WRITE_F32, WRITE_U8)
def memory(x: Any, b: Any, index: Any, out: Any, small: Any) -> None:
    store(out, 1, load(x, 3))  # any alignment
    store(out, 1 + W, gather(x, load(index, 0)))
    store(small, 0, gather(b, load(index, 0)))
    store(out, 1 + 2 * W, broadcast(f32(1.5)))
    s = scratch(W, np.float32)
    store(s, 0, to_f32(lanes()))
    store(out, 1 + 3 * W, load(s, 0) + to_f32(broadcast(np.uint32(7))))
    store(out, 1 + 4 * W, load_one(x, 17))


def test_memory() -> None:
    rng = np.random.default_rng(0)
    x, b = np.arange(100, dtype=np.float32), np.arange(100, dtype=np.uint8)
    index = rng.integers(0, 100, W).astype(np.int32)
    out, small = assert_twins(memory, x, b, index, np.zeros(6 * W, np.float32), np.zeros(W, np.uint8))[3:]
    assert np.array_equal(out[1 + W : 1 + 2 * W], x[index]) and np.array_equal(small, b[index])


@kernel(READ_F32, READ_F32, READ_F32, WRITE_F32)
def fused(x: Any, y: Any, z: Any, out: Any) -> None:
    for i in range(0, x.size, W):
        store(out, i, multiply_add(load(x, i), load(y, i), load(z, i)))


def test_multiply_add_rounds_once() -> None:
    """Of any numbers, and of sums that nearly cancel, as exact fractions have them."""
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal(200 * W).astype(np.float32) for _ in range(2))
    z = (
        -(x * y)
        * (1 + rng.integers(-3, 4, x.size) * np.float32(2**-23))
        * np.float32(2) ** rng.integers(-60, 2, x.size)
    )
    z = z.astype(np.float32)
    assert_twins(fused, wild(1), wild(2), wild(3), np.zeros(wild(1).size, np.float32))
    out = assert_twins(fused, x, y, z, np.zeros(x.size, np.float32))[3]
    for a, b, c, found in zip(x, y, z, out, strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        other = np.nextafter(found, np.float32(np.copysign(np.inf, float(exact - Fraction(float(found))))))
        assert abs(exact - Fraction(float(found))) <= abs(exact - Fraction(float(other)))


@jitable
def move(source: Any, target: Any) -> None:
    transpose(source, 5, TILE + 3, target, 2, TILE + 1)


@kernel(READ_F32, WRITE_F32)
def move_floats(source: Any, target: Any) -> None:
    move(source, target)


@kernel(READ_U8, WRITE_U8)
def move_bytes(source: Any, target: Any) -> None:
    move(source, target)


@pytest.mark.parametrize(("run", "dtype"), [(move_floats, np.float32), (move_bytes, np.uint8)])
def test_transpose(run: Any, dtype: type) -> None:
    source = (np.arange(5 + TILE * (TILE + 3)) % 251).astype(dtype)
    target = assert_twins(run, source, np.zeros(2 + TILE * (TILE + 1), dtype))[1]
    assert np.array_equal(target[2:].reshape(TILE, -1)[:, :TILE], source[5:].reshape(TILE, -1)[:, :TILE].T)


def test_nearest_is_ggmls() -> None:
    """The mantissa of x + 1.5 * 2**23 as an integer, whatever x is."""
    x = np.concatenate([wild(seed) for seed in range(20)])
    with np.errstate(all="ignore"):
        expected = ((x + np.float32(12582912)).view(np.int32) & 0x007FFFFF) - 0x00400000
        assert np.array_equal(nearest(x), expected.astype(np.float32))
    small = x[np.abs(x) < 2**22]
    assert np.array_equal(nearest(small), np.rint(small)) and np.array_equal(nearest_small(small), np.rint(small))


def test_round_away_is_roundf() -> None:
    halves = np.arange(-40, 40, dtype=np.float32) / 2
    x = np.concatenate([halves, np.nextafter(halves, np.float32(99)), np.nextafter(halves, np.float32(-99))])
    assert np.array_equal(round_away(x), np.trunc(x.astype(np.float64) + np.copysign(0.5, x)).astype(np.int32))


@kernel(READ_F32, WRITE_I32)
def rounded(x: Any, out: Any) -> None:
    for k in range(0, x.size, W):
        store(out, k, round_away(load(x, k)))


def test_rounding_compiles_to_the_same() -> None:
    x = np.linspace(-130, 130, 64 * W, dtype=np.float32)
    assert_twins(rounded, x, np.zeros(x.size, np.int32))


def test_a_vector_of_another_type_is_refused() -> None:
    @kernel(READ_F32, WRITE_U8)
    def mixed(x: Any, out: Any) -> None:
        store(out, 0, load(x, 0))

    with pytest.raises(Exception, match="store"):
        mixed(np.zeros(W, np.float32), np.zeros(W, np.uint8))


@pytest.mark.parametrize(("level", "lanes"), [("x86-64-v2", 8), ("x86-64-v3", 16), ("x86-64-v4", 32), ("arm64", 8)])
def test_width_follows_the_level(level: str, lanes: int) -> None:
    script = "from ggufsmith.quantize import simd; print(simd.W)"
    environment = {**os.environ, "GGUFSMITH_CPU": level}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == lanes
    assert W in (8, 16, 32) and simd.TILE <= W
