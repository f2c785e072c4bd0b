"""F16 and BF16 against ggml's conversions: every rounding boundary, and every half."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))

import oracle

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize(("name", "step"), [("F16", 1 << 12), ("BF16", 1 << 15)])
def test_rounding(name: str, step: int) -> None:
    """Every finite float32 whose low bits are a rounding boundary of the target, its neighbours, and random ones."""
    halfway = np.arange(0, 1 << 32, step, dtype=np.uint64)
    near = (halfway[:, None] + np.array([-1, 0, 1])).ravel()
    drawn = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18)
    x = np.concatenate([near, drawn]).astype(np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    x = x[: x.size // 32 * 32].reshape(-1, 32)
    out = np.empty((len(x), 64), np.uint8)
    rows.encode(format_of(name), x, out)
    assert np.array_equal(out, oracle.quantize(name, x))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_widening(name: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(64, -1)
    ours = np.empty((64, 1024), np.float32)
    rows.decode(format_of(name), halves, ours)
    assert np.array_equal(ours.view(np.uint32), oracle.dequantize(name, halves).view(np.uint32))
