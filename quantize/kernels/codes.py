"""Codes of a few bits under scales and zero points, as checkpoints of other quantizers hold them, to float32.

Here, and not beside what knows those layouts, so that the cache of kernels sees when they change.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.cache import INT, READ_F32, READ_U8, WRITE_F32, WRITE_U8, kernel, read

READ_I32 = read(np.int32)


@kernel(READ_U8, WRITE_U8)
def nibbles(stream: Any, codes: Any) -> None:
    """Two codes of each byte, the lower half first."""
    for k in range(stream.size):
        codes[2 * k] = stream[k] & np.uint8(15)
        codes[2 * k + 1] = stream[k] >> np.uint8(4)


@kernel(READ_U8, READ_F32, READ_F32, INT, INT, INT, WRITE_F32)
def scale_groups(codes: Any, scales: Any, zeros: Any, width: int, groups: int, size: int, out: Any) -> None:
    """out = (code - zero) * scale; groups of `size` columns in turn, the last perhaps shorter.

    codes, out: (n * width,). scales, zeros: (n * groups,).
    """
    for row in range(codes.size // width):
        for group in range(groups):
            scale, zero = scales[row * groups + group], zeros[row * groups + group]
            begin, end = row * width + group * size, row * width + min(group * size + size, width)
            x, y = codes[begin:end], out[begin:end]  # slices begin at 0, which lets LLVM vectorize the loop
            for k in range(y.size):
                y[k] = (np.float32(x[k]) - zero) * scale


@kernel(READ_U8, READ_F32, READ_F32, INT, INT, READ_I32, WRITE_F32)
def scale_columns(codes: Any, scales: Any, zeros: Any, width: int, groups: int, order: Any, out: Any) -> None:
    """The same, with the group of every column in `order`, (width,)."""
    for row in range(codes.size // width):
        x, y = codes[row * width : row * width + width], out[row * width : row * width + width]
        of_scale, of_zero = scales[row * groups : row * groups + groups], zeros[row * groups : row * groups + groups]
        for k in range(y.size):
            y[k] = (np.float32(x[k]) - of_zero[order[k]]) * of_scale[order[k]]
