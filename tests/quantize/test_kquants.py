"""Q2_K to Q6_K, and Q8_K: packing, precision."""

import numpy as np
import pytest

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows
from ggufsmith.quantize.kernels import kquants_min, kquants_symmetric
from ggufsmith.quantize.simd import W

NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K")
ERRORS = {"Q2_K": 0.30, "Q3_K": 0.16, "Q4_K": 0.08, "Q5_K": 0.04, "Q6_K": 0.02, "Q8_K": 0.008}


def test_six_bit_scales_come_back() -> None:
    """As the data table of the format has them: which bits of 12 bytes hold scale and minimum j."""
    rng = np.random.default_rng(0)
    scales, mins = rng.integers(0, 64, (2, 8, W)).astype(np.float32)
    block, at = np.zeros(kquants_min.Q4_K.size * W, np.uint8), kquants_min.Q4_K.scales
    kquants_min.pack_scales(scales.reshape(-1), mins.reshape(-1), block, at)
    packed = block.reshape(-1, W)[4:16].astype(int)
    for j in range(4):
        assert np.array_equal(packed[j] & 63, scales[j]) and np.array_equal(packed[4 + j] & 63, mins[j])
        assert np.array_equal(packed[8 + j] & 15 | packed[j] >> 6 << 4, scales[4 + j])
        assert np.array_equal(packed[8 + j] >> 4 | packed[4 + j] >> 6 << 4, mins[4 + j])
    for j in range(8):
        scale, low = kquants_min.unpack_scales(block, at, j)
        assert np.array_equal(scale, scales[j]) and np.array_equal(low, mins[j])


def test_scales_of_q3_k_come_back() -> None:
    codes = np.random.default_rng(0).integers(0, 64, (16, W)).astype(np.uint8)
    block = np.zeros(kquants_symmetric.Q3_SIZE * W, np.uint8)
    kquants_symmetric.pack_scales(codes.reshape(-1), block)
    for j in range(16):
        assert np.array_equal(kquants_symmetric.unpack_scale(block, j), codes[j].astype(np.float32) - 32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_error_of_normal_weights(name: str, weighted: bool) -> None:
    """Root mean square error over that of the weights; a permuted code or a lost minimum multiplies it."""
    form, rng = format_of(name), np.random.default_rng(0)
    x = rng.standard_normal((4, 2048)).astype(np.float32)
    out, back = np.empty((4, form.nbytes((2048,))), np.uint8), np.empty_like(x)
    rows.encode(form, x, out, importance=rng.uniform(0.5, 1, 2048).astype(np.float32) if weighted else None)
    rows.decode(form, out, back)
    error = float(np.sqrt(np.mean((x - back) ** 2)))
    assert ERRORS[name] / 2 < error < ERRORS[name]


def test_q8_k_by_hand() -> None:
    """The weight of largest magnitude, 127, gets code -127; each 16 codes are summed."""
    x = np.zeros((1, 256), np.float32)
    x[0, :3] = 127, -5, 1.4
    form = format_of("Q8_K")
    out = np.empty((1, form.size), np.uint8)
    rows.encode(form, x, out)
    block = out.view(form.dtype)[0, 0]
    assert block["d"] == -1 and block["qs"][:4].tolist() == [-127, 5, -1, 0]
    assert block["bsums"].tolist() == [-123] + [0] * 15
