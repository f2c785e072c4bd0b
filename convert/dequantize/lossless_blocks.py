"""Blocks of ggml types straight from codes and scales that mean the same: nothing is searched, nothing is lost.

Source: ggml/src/ggml-common.h and ggml-quants.c (dequantize_row_q4_0, dequantize_row_mxfp4).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME

Q4_0, MXFP4 = BY_NAME["Q4_0"], BY_NAME["MXFP4"]


def fill_q4_0(codes: NDArray[np.uint8], scales: NDArray[np.float32], out: NDArray[np.uint8]) -> bool:
    """Q4_0 is scale * (code - 8) with a scale in half precision. False if a scale is not one.

    codes: (n, width), 0 to 15. scales: (n, groups), for groups of a whole number of blocks. out: (n, bytes per row).
    """
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not (np.isfinite(half).all() and np.array_equal(half.astype(np.float32), scales)):
        return False
    blocks: Any = out.view(Q4_0.dtype)
    blocks["d"] = half.view(np.uint16).repeat(blocks.shape[1] // half.shape[1], axis=1)
    blocks["qs"] = _halves(codes)
    return True


def fill_mxfp4(pairs: NDArray[np.uint8], exponents: NDArray[np.uint8], out: NDArray[np.uint8]) -> bool:
    """MXFP4 is the same everywhere but for the order of the codes. False if an exponent stands for NaN.

    pairs: (n, width / 2) of two codes of E2M1, the earlier one in the lower half. exponents: (n, width / 32) of E8M0.
    """
    blocks: Any = out.view(MXFP4.dtype)
    blocks["e"] = exponents
    # Eight bytes at a time, as numbers whose parts never meet: a block is two of them.
    words = pairs.reshape(len(pairs), -1, 16).view(np.uint64)
    first, second = words[:, :, 0], words[:, :, 1]
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    even = first & low | (second & low) << np.uint64(4)
    odd = first >> np.uint64(4) & low | second & ~low
    codes = np.empty((*even.shape, 8, 2), np.uint8)
    codes[..., 0], codes[..., 1] = (each.view(np.uint8).reshape(*each.shape, 8) for each in (even, odd))
    blocks["qs"] = codes.reshape(*even.shape, 16)
    return not (exponents == 255).any()


def _halves(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first half of a block in the low bits of its bytes, the second in the high ones: (n, blocks, 16)."""
    halves = codes.reshape(len(codes), -1, 2, 16)
    packed: NDArray[np.uint8] = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return packed
