"""The kernels of quantize/kernels/products.py, and the same in plain NumPy, rank by rank."""

import numpy as np
import pytest

from ggufsmith.quantize.kernels.products import add_column_squares, add_product, row_squares

RNG = np.random.default_rng(7)


@pytest.mark.parametrize(("n", "rank", "width"), [(1, 4, 1), (3, 8, 5), (17, 16, 256), (2, 64, 67)])
def test_products_are_summed_rank_by_rank(n: int, rank: int, width: int) -> None:
    left, right, out = (
        RNG.standard_normal(shape).astype(np.float32) for shape in ((n, rank), (rank, width), (n, width))
    )
    scale, total = np.float32(0.37), np.zeros((n, width), np.float32)
    for k in range(rank):
        total += left[:, k : k + 1] * right[k]
    expected = out + scale * total
    add_product(left.reshape(-1), right.reshape(-1), scale, rank, width, np.empty(width, np.float32), out.reshape(-1))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("n", "width"), [(1, 1), (5, 67), (64, 256)])
def test_squares(n: int, width: int) -> None:
    x = RNG.standard_normal((n, width)).astype(np.float32)
    rows, columns = np.empty(n), np.ones(width)
    row_squares(x.reshape(-1), width, rows)
    add_column_squares(x.reshape(-1), width, columns)
    np.testing.assert_allclose(rows, (x.astype(np.float64) ** 2).sum(1), rtol=1e-14)
    np.testing.assert_allclose(columns, 1 + (x.astype(np.float64) ** 2).sum(0), rtol=1e-14)
