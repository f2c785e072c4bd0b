"""TQ1_0 and TQ2_0: blocks worked out by hand from the formats' description."""

import numpy as np
import pytest
from one_block import block, numbers


def test_zeros() -> None:
    """Code 1 is zero: 0b01010101; 11111 in base 3 is 121, and 121 * 256 / 243 rounds up to 128; 11110 gives 127."""
    packed = block("TQ2_0", np.zeros(256, np.float32))
    assert packed["d"] == 0
    assert np.all(packed["qs"] == 0x55)
    packed = block("TQ1_0", np.zeros(256, np.float32))
    assert packed["d"] == 0
    assert np.all(packed["qs"] == 128)
    assert np.all(packed["qh"] == 127)


def test_places() -> None:
    """One weight of 2.0 (float16 0x4000) among zeros lands in one byte."""
    for weight, byte, shift in ((0, 0, 0), (33, 1, 2), (127, 31, 6), (128, 32, 0), (255, 63, 6)):
        x = np.zeros(256, np.float32)
        x[weight] = 2
        packed = block("TQ2_0", x)
        assert packed["d"] == 0x4000
        assert packed["qs"][byte] == 0x55 + (1 << shift)
        assert np.delete(packed["qs"], byte).tolist() == [0x55] * 63


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_ternary_weights_come_back(name: str) -> None:
    x = np.random.default_rng(1).integers(-1, 2, 256).astype(np.float32) * np.float32(0.375)
    assert np.array_equal(numbers(name, x), x)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_halves_round_away_from_zero(name: str) -> None:
    x = np.resize(np.float32([1, 0.5, -0.5, 0.49999997, -0.49999997, 0]), 256)
    assert np.array_equal(numbers(name, x), np.resize(np.float32([1, 1, -1, 0, 0, 0]), 256))


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_a_scale_without_inverse(name: str) -> None:
    """Below 2**-128 one over the scale is infinite; lroundf gives ggml zeros there, and so do we."""
    assert not numbers(name, np.full(256, 1e-39, np.float32)).any()
