"""Conversion between the plain formats: every bit, every length, and what is reported."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows
from ggufsmith.quantize.kernels import floats
from ggufsmith.quantize.simd import W

F32, F16, BF16 = (format_of(name) for name in ("F32", "F16", "BF16"))
HALVES = np.arange(1 << 16, dtype=np.uint16)
EDGES = [
    0.0,
    -0.0,
    2.0**-24,
    2.0**-25,
    3 * 2.0**-26,
    2.0**-14,
    65504,
    65519.996,
    1e-45,
    1e-38,
    1.17e-38,
    2047.5,
    2049.0,
]


def widen(bits: NDArray[np.uint16], name: str) -> NDArray[np.float32]:
    """The reference, in NumPy."""
    if name == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(x: NDArray[np.float32], name: str) -> NDArray[np.uint16]:
    if name == "F16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    below = x.view(np.uint32) >> 16  # bfloat16 is the upper half: choose it or its successor by exact distance
    rest = x.view(np.uint32) & 0xFFFF
    return (below + ((rest > 0x8000) | ((rest == 0x8000) & (below & 1 == 1)))).astype(np.uint16)


def encode(target: str, x: NDArray[np.generic], source: str) -> tuple[NDArray[np.uint8], rows.Report]:
    form = format_of(target)
    out = np.empty((len(x), form.nbytes((x.shape[1],))), np.uint8)
    return out, rows.encode(form, x, out, source=format_of(source))


def wild(seed: int, n: int) -> NDArray[np.float32]:
    """Numbers of every magnitude that float16 can hold, ties between neighbours, and edges."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * 2.0 ** rng.integers(-40, 14, n)).astype(np.float32)
    ties = (x.view(np.uint32) & 0xFFFFE000) | 0x1000
    x = np.where(rng.random(n) < 0.3, ties.view(np.float32), x)
    x[: len(EDGES)] = EDGES[:n]
    return x.astype(np.float32)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half_widens_exactly(name: str) -> None:
    out, report = encode("F32", HALVES.reshape(64, -1), name)
    assert np.array_equal(out.view(np.float32).ravel(), widen(HALVES, name), equal_nan=True)
    infinite = ~np.isfinite(widen(HALVES, name))
    assert report.nonfinite == rows.Finding(int(infinite.sum()), divmod(int(infinite.argmax()), 1024))


@pytest.mark.parametrize("target", ["F16", "BF16"])
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 3 * W))
def test_narrowing_is_to_nearest_even(target: str, seed: int, n: int) -> None:
    x = wild(seed, max(n, len(EDGES)))[None, :]
    out, report = encode(target, x, "F32")
    assert np.array_equal(out.view(np.uint16), narrow(x, target))
    assert report == rows.Report()


@pytest.mark.parametrize(("source", "target"), [("F16", "BF16"), ("BF16", "F16"), ("F16", "F16"), ("BF16", "BF16")])
def test_between_halves(source: str, target: str) -> None:
    wide = widen(HALVES, source)
    fits = np.abs(wide) < (65520 if target == "F16" else np.inf)  # False for NaN
    bits = HALVES[fits].reshape(1, -1)
    out, _ = encode(target, bits, source)
    expected = bits if source == target else narrow(widen(bits, source), target)
    assert np.array_equal(out.view(np.uint16), expected)


def test_equal_formats_keep_every_bit_even_of_nans() -> None:
    for name in ("F16", "BF16"):
        assert encode(name, HALVES.reshape(1, -1), name)[0].view(np.uint16).tolist() == [HALVES.tolist()]
    x = np.array([[0x7F800001, 0xFFC12345, 0x80000000] * W], np.uint32).view(np.float32)
    assert encode("F32", x, "F32")[0].tobytes() == x.tobytes()


@pytest.mark.parametrize("source", ["F32", "BF16"])
def test_float16_overflow_is_counted_and_located(source: str) -> None:
    x = np.zeros((300, 1000), np.float32)
    x[290, 7], x[290, 999], x[291, 0] = 65536.0, -1e30, np.inf
    _, report = encode("F16", x if source == "F32" else narrow(x, "BF16"), source)
    assert report.overflow == rows.Finding(2, (290, 7))
    assert report.nonfinite == rows.Finding(1, (291, 0))


def test_the_largest_value_that_rounds_into_float16_is_no_overflow() -> None:
    below = np.nextafter(np.float32(65520), np.float32(0))
    assert encode("F16", np.full((1, W), below, np.float32), "F32")[1] == rows.Report()
    assert encode("F16", np.full((1, W), 65520, np.float32), "F32")[1].overflow.count == W


def test_a_row_that_lies_unaligned_in_a_file() -> None:
    x = wild(5, 96)
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:]  # read-only, at an odd address
    shifted = raw.view(np.float32).reshape(2, 48)
    for target in ("F32", "F16", "BF16"):
        assert encode(target, shifted, "F32")[0].tobytes() == encode(target, x.reshape(2, 48), "F32")[0].tobytes()


def test_the_largest_magnitude() -> None:
    x = np.linspace(-3, 2, 1001, dtype=np.float32)
    assert floats.peak(x) == int(np.float32(3).view(np.uint32))
    assert floats.peak(x[-3:]) == int(np.float32(2).view(np.uint32))
    assert floats.peak(np.append(x, np.float32("nan"))) > rows.INFINITE


@settings(deadline=None)
@given(n=st.integers(1, 2 * W + 1), width=st.sampled_from([32, 96]), seed=st.integers(0, 99))
def test_mean_squares_are_summed_in_order(n: int, width: int, seed: int) -> None:
    x = wild(seed, n * width).reshape(n, width)
    total = np.zeros(n, np.float32)
    for column in x.T:
        total = total + column * column
    assert np.array_equal(floats.mean_squares(x)[0][:n], total / np.float32(width))
