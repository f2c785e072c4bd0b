"""The kernels of quantize/kernels/codes.py, and the same in plain NumPy."""

import numpy as np
import pytest

from ggufsmith.quantize.kernels.codes import nibbles, scale_columns, scale_groups

RNG = np.random.default_rng(2)


@pytest.mark.parametrize(("rows", "width", "size"), [(1, 1, 1), (3, 256, 128), (5, 100, 32), (2, 33, 64)])
def test_scaled_as_numpy_scales(rows: int, width: int, size: int) -> None:
    groups = -(-width // size)
    codes = RNG.integers(0, 256, (rows, width), np.uint8)
    scales = RNG.standard_normal((rows, groups)).astype(np.float32)
    zeros = RNG.integers(0, 256, (rows, groups)).astype(np.float32)
    out = np.empty((rows, width), np.float32)
    flat = [part.reshape(-1) for part in (codes, scales, zeros)]
    order = RNG.integers(0, groups, width, np.int32)
    scale_columns(*flat, width, groups, order, out.reshape(-1))
    np.testing.assert_array_equal(out, (codes - zeros[:, order]) * scales[:, order])
    in_turn = np.arange(width) // size
    scale_groups(*flat, width, groups, size, out.reshape(-1))
    np.testing.assert_array_equal(out, (codes - zeros[:, in_turn]) * scales[:, in_turn])


@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_nibbles(count: int) -> None:
    stream = RNG.integers(0, 256, count, np.uint8)
    codes = np.empty(2 * count, np.uint8)
    nibbles(stream, codes)
    np.testing.assert_array_equal(codes, np.stack([stream & 15, stream >> 4], 1).reshape(-1))
