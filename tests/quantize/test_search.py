"""The searches of quantize/kernels/search.py, run lane by lane on NumPy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.quantize.kernels.search import SMALL, code_sums
from ggufsmith.quantize.simd import W, f32

N = 32


@given(st.integers(0, 2**32 - 1), st.floats(1, float(SMALL), exclude_max=True, width=32), st.sampled_from([3, 15, 31]))
def test_codes_of_small_values_are_the_same_both_ways(seed: int, reach: float, top: int) -> None:
    """`small` rounds after keeping the value within its limits, which only values below SMALL allow."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(N * W).astype(np.float32), rng.uniform(0, 2, N * W).astype(np.float32)
    x[:W] = (np.arange(W, dtype=np.float32) - W // 2) / 2  # halves, which are rounded to even
    low = rng.choice([x.min(), f32(0), x.max()], W).astype(np.float32)
    inverse = np.full(W, reach / (2 * np.abs(x).max()), np.float32)
    found = []
    for small in (False, True):
        codes = np.empty(N * W, np.float32)
        with np.errstate(over="ignore"):
            sums = code_sums(x, 0, w, 0, codes, N, f32(top), inverse, low, small)
        found.append([codes, *sums])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))
