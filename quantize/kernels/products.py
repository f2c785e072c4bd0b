"""Low-rank updates and norms in float32, each sum in a fixed order: the same bytes on any CPU, which no BLAS promises.

Here, and not beside what knows adapters, so that the cache of kernels sees when they change.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.cache import INT, READ_F32, WRITE_F32, kernel, write

WRITE_F64 = write(np.float64)


@kernel(READ_F32, READ_F32, np.dtype(np.float32), INT, INT, WRITE_F32, WRITE_F32)
def add_product(left: Any, right: Any, scale: Any, rank: int, width: int, row: Any, out: Any) -> None:
    """out += scale * (left @ right), the ranks summed in turn.

    left: (n * rank,). right: (rank * width,). out: (n * width,). row: (width,), room for the sums of one row.
    rank: a multiple of 4.
    """
    for i in range(out.size // width):
        row[:] = 0
        for k in range(i * rank, i * rank + rank, 4):
            begin = (k - i * rank) * width
            a, b = right[begin : begin + width], right[begin + width : begin + 2 * width]
            c, d = right[begin + 2 * width : begin + 3 * width], right[begin + 3 * width : begin + 4 * width]
            for j in range(row.size):
                row[j] = row[j] + left[k] * a[j] + left[k + 1] * b[j] + left[k + 2] * c[j] + left[k + 3] * d[j]
        y = out[i * width : i * width + width]
        for j in range(row.size):
            y[j] += scale * row[j]


@kernel(READ_F32, INT, WRITE_F64)
def row_squares(x: Any, width: int, out: Any) -> None:
    """The sum of squares of every row. x: (n * width,). out: (n,)."""
    for i in range(out.size):
        total = 0.0
        for j in range(i * width, i * width + width):
            total += np.float64(x[j]) * np.float64(x[j])
        out[i] = total


@kernel(READ_F32, INT, WRITE_F64)
def add_column_squares(x: Any, width: int, out: Any) -> None:
    """Add every row's squares to those of the columns. x: (n * width,). out: (width,)."""
    for i in range(x.size // width):
        y = x[i * width : i * width + width]
        for j in range(out.size):
            out[j] += np.float64(y[j]) * np.float64(y[j])
