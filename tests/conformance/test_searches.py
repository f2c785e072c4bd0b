"""Rows that drive the searches out of the range in which shortcuts would be right, against ggml.

Negative weights of very different magnitudes, with importance in very few places: minima rise above the maximum, scales
turn negative, codes reach far beyond 2**22 before they are limited, and codes of scales wrap.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))

import oracle

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows

pytestmark = pytest.mark.conformance

WIDTH = 1024
NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def lopsided(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """float32 rows [32, WIDTH] and their importance [WIDTH]."""
    rng = np.random.default_rng(seed)
    x = -(10.0 ** rng.uniform(-9, 1, (32, WIDTH)))
    x[rng.random(x.shape) < 0.02] *= -1e-3
    some = rng.random(WIDTH) < rng.choice([0.03, 0.1, 0.3])
    return x.astype(np.float32), np.where(some, 10.0 ** rng.uniform(-3, 3, WIDTH), 0).astype(np.float32)


def wide(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Every finite magnitude, whose squares and sums overflow and vanish."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((32, WIDTH)) * 10.0 ** rng.integers(-45, 38, (32, WIDTH // 16)).repeat(16, 1)
    return x.astype(np.float32), (10.0 ** rng.uniform(-8, 8, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("make", [lopsided, wide])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_ggml(name: str, weighted: bool, make: object) -> None:
    form, codec = format_of(name), rows.codec_of(format_of(name))
    for seed in range(20):
        x, importance = make(seed)  # type: ignore[operator]
        importance, _ = rows.usable(importance, WIDTH, codec.alive or form.weights, codec.alive > 0)
        out = np.empty((32, form.nbytes((WIDTH,))), np.uint8)
        given = importance if weighted else None
        rows.encode(form, x, out, importance=given)
        assert np.array_equal(out, oracle.quantize(name, x, given))
