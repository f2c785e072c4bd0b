"""Every type that rows.py encodes or decodes, byte for byte and bit for bit against ggml itself."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))

import golden_make
import oracle
import strategies

from ggufsmith.container.formats import BY_NAME, format_of
from ggufsmith.quantize import rows, selftest
from twins import slip

pytestmark = pytest.mark.conformance

PLAIN = ("F16", "BF16")
NAMES = [name for name in BY_NAME if name in rows.MODULES]
MODES = [
    (name, weighted)
    for name in NAMES
    for weighted in (False, True)
    if (rows.codec_of(format_of(name)).weighted if weighted else rows.codec_of(format_of(name)).encode)
]
patient = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def encoded(
    name: str,
    x: NDArray[Any],
    source: str = "F32",
    importance: NDArray[np.float32] | None = None,
    wide: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Our bytes; of IQ3_S in ggml's place. wide: x in float32, if it is not."""
    form = format_of(name)
    out = np.full((len(x), form.nbytes((x.shape[1],))), 0xA5, np.uint8)
    rows.encode(form, x, out, source=format_of(source), importance=importance)
    return slip(out, x if wide is None else wide) if name == "IQ3_S" else out


def decoded(name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    form = format_of(name)
    out = np.empty((len(data), data.shape[1] // form.size * form.weights), np.float32)
    rows.decode(form, data, out)
    return out


def expected(name: str, x: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """ggml's bytes, for the importance that we use where the given one says nothing about a group of weights."""
    if importance is not None:
        codec = rows.codec_of(format_of(name))
        importance, _ = rows.usable(importance, x.shape[1], codec.alive or format_of(name).weights, codec.alive > 0)
    return oracle.quantize(name, x, importance)


def assert_same(name: str, ours: NDArray[Any], ggml: NDArray[Any]) -> None:
    """Equal bits; a failure names the blocks."""
    if not np.array_equal(ours.view(np.uint8), ggml.view(np.uint8)):
        size = format_of(name).size if ours.dtype == np.uint8 else format_of(name).weights * 4
        blocks = (ours.view(np.uint8) != ggml.view(np.uint8)).reshape(-1, size).any(1)
        pytest.fail(f"{name}: {blocks.sum()} of {blocks.size} blocks differ, the first is {blocks.argmax()}")


@pytest.mark.parametrize("name", [*NAMES, *PLAIN])
def test_sizes(name: str) -> None:
    assert oracle.sizes(name) == (format_of(name).weights, format_of(name).size)


@pytest.mark.parametrize(("name", "weighted"), MODES)
def test_bytes_of_ggml(name: str, weighted: bool) -> None:
    @patient
    @given(strategies.rows(), strategies.importance())
    def check(x: NDArray[np.float32], importance: NDArray[np.float32]) -> None:
        given = importance if weighted else None
        assert_same(name, encoded(name, x, importance=given), expected(name, x, given))

    check()


@pytest.mark.parametrize(("name", "weighted"), MODES)
def test_many_rows(name: str, weighted: bool) -> None:
    """Whole groups of lanes and a rest; three super-blocks per row, so that importance begins anywhere in a group."""
    x = strategies.mosaic(1, 70, 768, sorted(strategies.KINDS), [-2])
    importance = strategies.squares(np.random.default_rng(2), 768) if weighted else None
    whole = encoded(name, x, importance=importance)
    assert_same(name, whole, expected(name, x, importance))
    parts = [encoded(name, x[start : start + 9], importance=importance) for start in range(0, 70, 9)]
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("source", PLAIN)
@pytest.mark.parametrize(("name", "weighted"), MODES)
def test_other_sources(name: str, weighted: bool, source: str) -> None:
    wide = strategies.mosaic(3, 9, 768, sorted(strategies.KINDS), [-2, -5])
    half = (
        wide.astype(np.float16).view(np.uint16) if source == "F16" else (wide.view(np.uint32) >> 16).astype(np.uint16)
    )
    x = half.view(np.float16).astype(np.float32) if source == "F16" else (half.astype(np.uint32) << 16).view(np.float32)
    importance = strategies.squares(np.random.default_rng(4), 768) if weighted else None
    assert_same(name, encoded(name, half, source, importance, x), expected(name, x, importance))


@pytest.mark.parametrize(("name", "weighted"), MODES)
@pytest.mark.parametrize("kind", ["zeros", "negative", "nan"])
def test_importance_that_says_nothing(name: str, weighted: bool, kind: str) -> None:
    """The group gets the mean importance of the row, and the report counts it."""
    if not weighted:
        return
    form = format_of(name)
    x = strategies.mosaic(5, 3, 768, ["normal"], [-2])
    importance = strategies.squares(np.random.default_rng(6), 768)
    importance[256:512] = {"zeros": 0, "negative": -1, "nan": np.nan}[kind]
    out = np.empty((3, form.nbytes((768,))), np.uint8)
    report = rows.encode(form, x, out, importance=importance)
    if kind == "zeros" and not rows.codec_of(form).alive:  # ggml loses nothing there, so neither its bytes change
        assert report == rows.Report()
    else:
        assert report.unweighted == rows.Finding(3 * 256, (0, 256))
    assert_same(name, out, expected(name, x, importance))


@pytest.mark.parametrize("name", [*NAMES, *PLAIN])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_numbers_of_ggml(name: str, data: st.DataObject) -> None:
    """Any bytes decode as ggml decodes them, infinite and NaN scales included; only the sign of a NaN is free."""
    form = format_of(name)
    seed, blocks = data.draw(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 70)))
    packed = np.random.default_rng(seed).integers(0, 256, (blocks, form.size), dtype=np.uint8)
    ours, ggml = decoded(name, packed), oracle.dequantize(name, packed)
    assert_same(name, np.where(np.isnan(ours), np.nan, ours), np.where(np.isnan(ggml), np.nan, ggml))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Q8_K"])
def test_numbers_of_encoded_rows(name: str) -> None:
    x = strategies.mosaic(7, 9, 768, sorted(strategies.KINDS), [-2])
    packed = oracle.quantize(name, x, strategies.squares(np.random.default_rng(8), 768))
    assert_same(name, decoded(name, packed), oracle.dequantize(name, packed))


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_every_scale(name: str) -> None:
    """The neighbourhood of every power of two, where floorf(log2f(x)) jumps, and every rounding of an 8-bit scale."""
    edges = np.ldexp(np.float32(1), np.arange(-149, 128)).view(np.int32)[:, None] + np.arange(-70, 9)
    eighths = np.arange(0x38000000, 0x45800000, 1 << 15, dtype=np.int32)
    tops = np.concatenate([edges[edges >= 0], eighths]).astype(np.int32).view(np.float32)
    x = np.zeros((tops.size, 64), np.float32)
    for column, factor in ((0, 1), (5, -0.3), (17, 0.7), (32, -1), (40, 0.1), (63, 0.05)):
        x[:, column] = tops * np.float32(factor)
    ggml = expected(name, x)
    known = (ggml[:, [0, 17]] != 0xFF).all(1) if name == "MXFP4" else np.ones(len(x), bool)
    assert_same(name, encoded(name, x)[known], ggml[known])  # the others llama.cpp refuses itself: see rows.py


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("IQ", "TQ", "MX", "NV"))])
def test_huge_weights(name: str) -> None:
    """Up to 3e38, whole rows and outliers: ggml's bytes, or where it asserts and dies, some bytes and a report."""
    rng = np.random.default_rng(9)
    ones = np.ones(512, np.float32)
    for power in (19, 37):
        whole = (rng.standard_normal((1, 512)) * 10.0**power).clip(-3e38, 3e38).astype(np.float32)
        outliers = rng.standard_normal((1, 512)).astype(np.float32)
        outliers[:, ::97] *= np.float32(10.0**power)
        for x in (whole, outliers):
            out = np.empty((1, format_of(name).nbytes((512,))), np.uint8)
            report = rows.encode(format_of(name), x, out, importance=ones)
            ggml = oracle.quantize_or_abort(name, x, ones)
            if ggml is None:
                assert report.overflow.count, "ggml dies here"
            else:
                assert_same(name, out, ggml)


def test_known_answers_are_those_of_ggml() -> None:
    assert dict(selftest.ANSWERS) == golden_make.known_answers()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the features named here are those of x86-64")
@pytest.mark.parametrize(
    ("cpu", "features"),
    [("x86-64", "+sse,+sse2"), ("haswell", "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+bmi,+bmi2")],
)
def test_other_cpus(cpu: str, features: str) -> None:
    """The golden blocks again, with the instructions and the lanes of older CPUs."""
    golden = Path(__file__).parents[1] / "quantize" / "test_golden.py"
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(golden)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
