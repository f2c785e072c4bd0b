"""The searches of quantize/kernels/search_min.py, run lane by lane on NumPy."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufsmith.quantize.kernels import search_min
from ggufsmith.quantize.kernels.search_min import ANYWHERE, NEAR, SMALL, WITHIN, Best, Steps, SubBlocks, code_sums
from ggufsmith.quantize.simd import W, f32

N = 32
SEEDS = st.integers(0, 2**32 - 1)


def weights_of(seed: int) -> tuple[np.random.Generator, NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return rng, rng.standard_normal(N * W).astype(np.float32), rng.uniform(0, 2, N * W).astype(np.float32)


def same(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def sums_and_codes(x: Any, w: Any, top: int, inverse: Any, low: Any, where: int) -> list[Any]:
    codes = np.empty(N * W, np.float32)
    with np.errstate(over="ignore"):
        sums = code_sums(x, 0, w, codes, 0, N, f32(top), inverse, low, where)
    return [codes, *sums]


@given(SEEDS, st.floats(1, float(SMALL), exclude_max=True, width=32), st.sampled_from([3, 15, 31]))
def test_codes_of_small_values_are_the_same_both_ways(seed: int, reach: float, top: int) -> None:
    """NEAR keeps the value within its limits before it is rounded, which only values below SMALL allow."""
    rng, x, w = weights_of(seed)
    x[:W] = (np.arange(W, dtype=np.float32) - W // 2) / 2  # halves, which are rounded to even
    low = rng.choice([x.min(), f32(0), x.max()], W).astype(np.float32)
    inverse = np.full(W, reach / (2 * np.abs(x).max()), np.float32)
    same(*(sums_and_codes(x, w, top, inverse, low, where) for where in (NEAR, ANYWHERE)))


@given(SEEDS, st.floats(-0.46875, 0.46875, width=32), st.sampled_from([3, 15, 31]))
def test_codes_of_values_within_their_limits_need_none(seed: int, beyond: float, top: int) -> None:
    _, x, w = weights_of(seed)
    x -= x.min()
    inverse = np.full(W, (top + beyond) / x.max(), np.float32)
    x[:W] = (np.arange(W, dtype=np.float32) % top + f32(0.5)) / inverse  # near ties
    same(*(sums_and_codes(x, w, top, inverse, np.zeros(W, np.float32), where) for where in (WITHIN, ANYWHERE)))


@given(SEEDS, st.sampled_from([3, 15]), st.booleans())
def test_two_searches_in_turn_give_what_each_gives_alone(seed: int, top: int, mad: bool) -> None:
    rng, x, w = weights_of(seed)
    half, steps = N // 2, Steps(f32(top), f32(-0.9), f32(0.2), 9, mad)
    x[rng.integers(0, x.size, 9)] *= f32(1e7)  # lanes that need all limits
    room = np.empty_like(x)
    found = np.empty((4, 2, W), np.float32)
    search_min.two_scales_and_mins(x, 0, w, room, half, steps, SubBlocks(*found.reshape(4, -1)))
    for i in range(2):
        part = slice(i * half * W, (i + 1) * half * W)
        same(found[:, i], search_min.scale_and_min(x[part], 0, w[part], room, half, steps))


@given(SEEDS, st.floats(0.875, 1.25, width=32), st.sampled_from([0.0, 0.0625, 1.0]), st.sampled_from([3, 15, 31]))
def test_a_step_keeps_codes_within_their_limits(seed: int, reach: float, raised: float, top: int) -> None:
    """Whatever way a step takes: few values beyond the limits, none, or all of them."""
    _, x, w = weights_of(seed)
    whole = search_min.whole_sums(x, 0, w, 0, N)
    low = (whole.low * f32(1 - raised)).astype(np.float32)
    inverse = (f32(top * reach) / (whole.high - low)).astype(np.float32)
    state = Best(low, low, low, inverse, low, inverse)
    codes, expected = np.empty_like(x), np.empty_like(x)
    fit = search_min.next_fit(x, 0, w, codes, 0, N, f32(top), whole, state)
    same(
        fit[:2],
        search_min.fitted(whole, code_sums(x, 0, w, expected, 0, N, f32(top), inverse, low, ANYWHERE))[:2],
    )
    same([codes], [expected])
