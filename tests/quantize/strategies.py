"""Hypothesis strategies for rows of weights and their importance, shared by all types.

A drawn row is a mosaic: every block gets its own kind, so that each kind appears at every position of a super-block and
beside every other kind. The drawn numbers are seeds; NumPy makes the values, which keeps examples small and fast.
"""

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from numpy.random import Generator
from numpy.typing import NDArray

Rows = NDArray[np.float32]
BLOCK = 32


def heavy(rng: Generator, n: int) -> Rows:
    """Student's t with two degrees of freedom: many small weights, some large."""
    return rng.standard_t(2, n).astype(np.float32)


def outlier(rng: Generator, n: int) -> Rows:
    row = (rng.standard_normal(n) * 1e-2).astype(np.float32)
    row[rng.integers(n)] = rng.choice([-30.0, 30.0])
    return row


def alternating(rng: Generator, n: int) -> Rows:
    return (np.where(np.arange(n) % 2, -1.0, 1.0) * rng.uniform(0.1, 2)).astype(np.float32)


def ties(rng: Generator, n: int) -> Rows:
    """Few distinct values, so that maxima, sorts and roundings meet ties."""
    return (rng.integers(-4, 5, n) * 0.5).astype(np.float32)


def signed_zeros(rng: Generator, n: int) -> Rows:
    return np.where(rng.integers(0, 2, n) == 1, np.float32(-0.0), np.float32(0.0))


def sparse(rng: Generator, n: int) -> Rows:
    return np.where(rng.random(n) < 0.8, 0, rng.standard_normal(n)).astype(np.float32)


def denormal(rng: Generator, n: int) -> Rows:
    return (rng.integers(-(2**20), 2**20, n) * 2.0**-149).astype(np.float32)


KINDS: dict[str, Callable[[Generator, int], Rows]] = {
    "normal": lambda rng, n: rng.standard_normal(n).astype(np.float32),
    "heavy": heavy,
    "constant": lambda rng, n: np.full(n, rng.standard_normal(), np.float32),
    "zeros": lambda rng, n: np.zeros(n, np.float32),
    "signed zeros": signed_zeros,
    "denormal": denormal,
    "outlier": outlier,
    "alternating": alternating,
    "ties": ties,
    "sparse": sparse,
    "positive": lambda rng, n: np.abs(rng.standard_normal(n)).astype(np.float32),
}

# Powers of ten; 1e-9 and less meet the thresholds below which ggml treats a block as zero. From about 1e9 on the fourth
# powers that the IQ searches sum overflow, and ggml asserts; test_kernels.py has those rows apart.
SCALES = (-30, -20, -16, -12, -9, -7, -5, -2, -2, -2, 0, 0, 2, 4, 6)


def mosaic(seed: int, n_rows: int, n: int, kinds: list[str], scales: list[int]) -> Rows:
    """float32 [n_rows, n]: block i of the flattened rows is of the i-th kind, times 10**(i-th scale); both repeat."""
    rng = np.random.default_rng(seed)
    blocks = [
        KINDS[kinds[i % len(kinds)]](rng, BLOCK) * np.float32(10.0 ** scales[i % len(scales)])
        for i in range(n_rows * n // BLOCK)
    ]
    return np.concatenate(blocks).astype(np.float32).reshape(n_rows, n)


def rows(n: int = 512, max_rows: int = 5, scales: tuple[int, ...] = SCALES) -> st.SearchStrategy[Rows]:
    """float32 [1..max_rows, n]; n a multiple of 32."""
    one_scale = st.sampled_from(scales).map(lambda scale: [scale])
    return st.builds(
        mosaic,
        st.integers(0, 2**32 - 1),
        st.integers(1, max_rows),
        st.just(n),
        st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=7),
        st.one_of(one_scale, one_scale, st.lists(st.sampled_from(scales), min_size=1, max_size=5)),
    )


def ones(rng: Generator, n: int) -> Rows:
    return np.ones(n, np.float32)


def squares(rng: Generator, n: int) -> Rows:
    """What an imatrix holds: mean squares of activations."""
    return (rng.standard_normal(n) ** 2 + 1e-3).astype(np.float32)


def mostly_zero(rng: Generator, n: int) -> Rows:
    return np.where(rng.random(n) < 0.7, 0, rng.random(n)).astype(np.float32)


def ratios(rng: Generator, n: int) -> Rows:
    return (10.0 ** rng.uniform(-8, 8, n)).astype(np.float32)


IMPORTANCES: dict[str, Callable[[Generator, int], Rows]] = {
    "ones": ones,
    "squares": squares,
    "mostly zero": mostly_zero,
    "ratios": ratios,
}


def importance(n: int = 512) -> st.SearchStrategy[Rows]:
    """float32 [n], never negative, never all zero in the whole row."""

    def make(kind: str, seed: int) -> Rows:
        weights = IMPORTANCES[kind](np.random.default_rng(seed), n)
        weights[seed % n] = 1
        return weights

    return st.builds(make, st.sampled_from(sorted(IMPORTANCES)), st.integers(0, 2**32 - 1))
