"""Weights and inputs as layers have them: few directions carry most of the inputs, and single columns stand out."""

import numpy as np
from numpy.typing import NDArray


def correlated(n: int, rows: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """W, float32 [rows, n], and H = mean x x^T, float32 [n, n]."""
    rng = np.random.default_rng(seed)
    rank = max(8, n // 16)
    x = (rng.standard_normal((3 * n, rank)) * np.arange(1, rank + 1) ** -0.7) @ rng.standard_normal((rank, n))
    x = (x + 0.3 * rng.standard_normal(x.shape)) * np.exp(0.5 * rng.standard_normal(n))
    x[:, 5] *= 30
    w = rng.standard_t(6, (rows, n)) * 0.03
    return w.astype(np.float32), (x.T @ x / len(x)).astype(np.float32)
