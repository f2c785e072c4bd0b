"""MXFP4 and NVFP4: blocks worked out by hand from the formats' description."""

import math

import numpy as np
import pytest
from one_block import block, numbers

from ggufsmith.container.formats import format_of
from ggufsmith.quantize.kernels import fp4

E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def test_mxfp4_by_hand() -> None:
    """The largest weight is 6: floor(log2(6)) - 2 is the exponent 0, stored as 127; codes 0 .. 7, and with 8 the
    negatives.
    """
    x = np.concatenate([E2M1, -E2M1, -E2M1, E2M1])
    packed = block("MXFP4", x)
    assert packed["e"] == 127
    assert packed["qs"][:8].tolist() == [code | (code + 8 if code else 0) << 4 for code in range(8)]
    assert packed["qs"][8:].tolist() == [(code + 8 if code else 0) | code << 4 for code in range(8)]
    assert np.array_equal(numbers("MXFP4", x), x)


def test_nvfp4_by_hand() -> None:
    """Scales amax / 6 of 1, 2, 0.5 and 448, in an 8-bit float with bias 7: 0x38, 0x40, 0x30 and 0x7E."""
    x = np.concatenate([np.concatenate([E2M1, -E2M1]) * np.float32(scale) for scale in (1, 2, 0.5, 448)])
    packed = block("NVFP4", x)
    assert packed["d"].tolist() == [0x38, 0x40, 0x30, 0x7E]
    assert packed["qs"][:8].tolist() == [code | (code + 8 if code else 0) << 4 for code in range(8)]
    assert np.array_equal(numbers("NVFP4", x), x)


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_zeros(name: str) -> None:
    assert not np.frombuffer(
        block(name, np.full(64, -0.0, np.float32)[: format_of(name).weights]).tobytes(), np.uint8
    ).any()


def test_the_least_scale_of_mxfp4() -> None:
    """Below 2**-125 the exponent would be -1, and wrap to 255, which is NaN; 0 holds such weights."""
    x = np.zeros(32, np.float32)
    x[:3] = np.float32([1, 1.75, -1.5]) * np.float32(2.0**-126)
    assert block("MXFP4", x)["e"] == 0
    assert (numbers("MXFP4", x)[:3] * 2.0**126).tolist() == [1, 1.5, -1.5]
    assert block("MXFP4", x / 2)["e"] == 254, "ggml's, and read as zeros"


def test_ties_go_to_the_smaller_code() -> None:
    x = np.zeros(32, np.float32)
    x[:8] = [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]
    assert numbers("MXFP4", x)[:8].tolist() == [6, 0, 0.5, 1, 1.5, 2, 3, 4]


def test_powers_are_where_the_logarithm_rounds() -> None:
    """POWERS[k + 149] is the first float32 whose log2, rounded to float32, reaches k."""
    for k in (-140, -126, -20, -4, -1, 0, 1, 4, 20, 127):
        first = fp4.POWERS[k + 149]
        assert np.float32(math.log2(first)) >= k
        assert np.float32(math.log2(np.nextafter(first, np.float32(0)))) < k
    assert fp4.POWERS[149] == 1
    assert fp4.POWERS[149 + 20] < 2.0**20


def test_scale_tables() -> None:
    assert fp4.E8M0[127] == 0.5
    assert fp4.E8M0[0] == 2.0**-128
    assert (fp4.UE4M3[0x38], fp4.UE4M3[1], fp4.UE4M3[0x7E], fp4.UE4M3[0x7F]) == (0.5, 2.0**-10, 224, 0)
