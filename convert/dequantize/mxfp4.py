"""MXFP4: E2M1 values under shared powers of two, as gpt-oss, compressed-tensors and DeepSeek-V4 store them.

Source: OCP microscaling formats specification 1.0; transformers' integrations/mxfp4.py.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.compressed import check_settings
from ggufsmith.convert.dequantize.lossless_blocks import MXFP4 as GGML_MXFP4
from ggufsmith.convert.dequantize.lossless_blocks import fill_mxfp4
from ggufsmith.convert.dequantize.scheme import Exact, Scheme, SchemeInputs, Shape
from ggufsmith.convert.dequantize.store import EIGHT_BITS, Store
from ggufsmith.convert.stored import StoredTensor

# E2M1: the values of a four-bit float (OCP microscaling formats specification, 5.3.3).
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
BLOCK = 32  # weights under one scale


@dataclass(frozen=True)
class Mxfp4:
    """Two E2M1 values in a byte, the earlier one in the lower half; a scale 2^(e - 127) for every 32 of a row."""

    shape: Shape
    blocks: StoredTensor
    scales: StoredTensor

    granule = 1
    nominal = "BF16"

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        pairs, exponents = self._parts(store, first, last)
        np.take(E2M1, two_in_a_byte(pairs), out=out, mode="clip")
        out.reshape(-1, BLOCK)[:] *= EIGHT_BITS["F8_E8M0"][exponents.reshape(-1)][:, None]

    def as_ggml(self, store: Store, first: int, last: int, out: NDArray[np.uint8]) -> bool:
        """Fill `out` with the rows as ggml's MXFP4. False if they are not that after all."""
        return fill_mxfp4(*self._parts(store, first, last), out)

    def _parts(self, store: Store, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pairs of codes (last - first, width / 2) and exponents (last - first, width / 32)."""
        width = self.shape[-1]
        stored = store.flat(self.blocks, first * width // 2, last * width // 2)
        exponents = store.flat(self.scales, first * width // BLOCK, last * width // BLOCK)
        return stored.view(np.uint8).reshape(last - first, -1), exponents.reshape(last - first, -1)


def two_in_a_byte(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of four bits, (n, width), of which the bytes, (n, width / 2), hold two, the lower half first."""
    codes = np.empty((*stored.shape, 2), np.uint8)
    np.bitwise_and(stored, np.uint8(15), out=codes[:, :, 0])
    np.right_shift(stored, 4, out=codes[:, :, 1])
    return codes.reshape(len(stored), -1)


def build_mxfp4(asked: SchemeInputs) -> Mxfp4:
    """gpt-oss: (experts, rows, groups, 16) and (experts, rows, groups); else (rows, width / 2) and (rows, groups)."""
    check_settings(asked)
    blocks = asked.main
    shape = (
        (*blocks.shape[:-2], blocks.shape[-2] * blocks.shape[-1] * 2)
        if blocks.name.endswith("_blocks") and len(blocks.shape) > 2
        else (*blocks.shape[:-1], blocks.shape[-1] * 2 if blocks.shape else 0)
    )
    if len(shape) < 2 or 0 in shape or shape[-1] % BLOCK:
        raise asked.wrong(f"{list(blocks.shape)} bytes do not divide into blocks of {BLOCK}")
    scales = asked.expect("scales", "U8 F8_E8M0", (*shape[:-1], shape[-1] // BLOCK))
    return Mxfp4(shape, blocks, scales)


MXFP4 = Scheme(
    "MXFP4",
    "the experts of gpt-oss; maps exactly to MXFP4",
    methods=("mxfp4",),
    main=("_blocks",),
    dense=".weight",
    dtypes=("U8",),
    companions={"scales": ("_scales",)},
    required=("scales",),
    build=build_mxfp4,
    exact=lambda weights: Exact(GGML_MXFP4, weights.as_ggml),
)
MXFP4_PACKED = replace(
    MXFP4,
    name="mxfp4-pack-quantized",
    note="compressed-tensors; maps exactly to MXFP4",
    methods=("compressed-tensors",),
    main=(".weight_packed",),
    dense=".weight",
    companions={"scales": (".weight_scale",)},
    unused=(".input_scale", ".input_global_scale"),
    fits=lambda parts: "scales" not in parts or parts["scales"].dtype != "F8_E4M3",
)
MXFP4_SIGNED = replace(
    MXFP4,
    name="FP4 of DeepSeek-V4",
    note="the experts, between weights in FP8; maps exactly to MXFP4",
    methods=("fp8",),
    main=(".weight",),
    dense="{main}",
    dtypes=("I8", "U8"),
    companions={"scales": (".scale",)},
)
