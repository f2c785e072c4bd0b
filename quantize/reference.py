"""Formats read in plain NumPy, without the kernels: what checks them must not be made of them.

Most formats are read by the `gguf` package, which llama.cpp's developers keep; the others, which it does not know, are
read here as ggml's dequantize_row_* of ggml-quants.c do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import Format

Blocks = NDArray[Any]  # of the format's record dtype, (n,)


def dequantize(format: Format, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [n, weights per row] for uint8 [n, bytes per row], whole blocks."""
    from gguf import quants  # --help does without it
    from gguf.constants import GGMLQuantizationType

    own = OWN.get(format.name)
    with np.errstate(all="ignore"):
        if own is None:
            wide = quants.dequantize(data, GGMLQuantizationType[format.name])
        else:
            wide = own(np.ascontiguousarray(data).reshape(-1, format.size).view(format.dtype)[:, 0])
    return np.asarray(wide, np.float32).reshape(len(data), -1)


def widen(values: NDArray[Any], format: Format) -> NDArray[np.float32]:
    """float32 of F32, F16 or BF16, the halves as their bits."""
    if format.name == "F32":
        return values.view(np.float32)
    if format.name == "F16":
        return values.view(np.float16).astype(np.float32)
    return (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(x: NDArray[np.float32], format: Format) -> NDArray[Any]:
    """Finite float32 as F32, F16 or BF16, the halves as their bits, rounded to nearest even."""
    if format.name == "F32":
        return x
    if format.name == "F16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    return (bits + np.uint32(0x7FFF) + odd >> np.uint32(16)).astype(np.uint16)


def _q1_0(blocks: Blocks) -> NDArray[np.float32]:
    """d where a bit is set, -d where it is not."""
    positive = np.unpackbits(blocks["qs"], axis=1, bitorder="little")
    return np.where(positive, _half(blocks), -_half(blocks))


def _q2_0(blocks: Blocks) -> NDArray[np.float32]:
    """(code - 1) * d, four codes to a byte."""
    codes = blocks["qs"][:, :, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    return (codes.reshape(len(blocks), -1).astype(np.float32) - 1) * _half(blocks)


def _q8_k(blocks: Blocks) -> NDArray[np.float32]:
    """code * d."""
    scaled: NDArray[np.float32] = blocks["d"][:, None] * blocks["qs"]
    return scaled


def _half(blocks: Blocks) -> NDArray[np.float32]:
    """The scale d, (n, 1)."""
    return np.ascontiguousarray(blocks["d"]).view(np.float16).astype(np.float32)[:, None]


OWN: Mapping[str, Callable[[Blocks], NDArray[np.float32]]] = {"Q1_0": _q1_0, "Q2_0": _q2_0, "Q8_K": _q8_k}
