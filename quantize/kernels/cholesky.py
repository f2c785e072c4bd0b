"""The Cholesky factor of a small matrix and its inverse, in float64, with all sums in a fixed order: that of LAPACK
depends on its threads and on the CPU.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.cache import INT, kernel, write
from ggufsmith.quantize.simd import scratch

WRITE_F64 = write(np.float64)


@kernel(WRITE_F64, WRITE_F64, INT)
def factor_and_invert(a: Any, inverse: Any, n: int) -> int:
    """Make the symmetric matrix a, [n * n], its lower triangular factor L with L L^T = a, and give the inverse of L.

    Only the lower triangle of a is read; above it are zeros in the end. inverse: [n * n], zeros. Returns 1, or 0 if a
    is not positive definite; then both are used up.
    """
    column = scratch(n, np.float64)
    for j in range(n):
        if not a[j * n + j] > 0:
            return 0
        root = np.sqrt(a[j * n + j])
        for i in range(j):
            a[i * n + j] = 0
        for i in range(j, n):
            column[i] = a[i * n + j] / root
            a[i * n + j] = column[i]
        for i in range(j + 1, n):
            for k in range(j + 1, i + 1):
                a[i * n + k] -= column[i] * column[k]
    for j in range(n):
        for i in range(j):
            for k in range(i + 1):
                inverse[j * n + k] -= a[j * n + i] * inverse[i * n + k]
        inverse[j * n + j] += 1
        for k in range(j + 1):
            inverse[j * n + k] /= a[j * n + j]
    return 1
