"""NVFP4: E2M1 values under an E4M3 scale for every 16, and one float32 scale for the tensor.

compressed-tensors divides by the scale of the tensor (weight_global_scale), ModelOpt multiplies with it
(weight_scale_2). ggml's NVFP4 has no place for it, so that the weights are dequantized.
Sources: compressed-tensors 0.20, compressors/nvfp4 and quantization/lifecycle/forward.py; ModelOpt's NVFP4QTensor.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.compressed import check_settings
from ggufsmith.convert.dequantize.mxfp4 import E2M1, two_in_a_byte
from ggufsmith.convert.dequantize.scheme import Scheme, SchemeInputs, Shape
from ggufsmith.convert.dequantize.store import EIGHT_BITS, Store
from ggufsmith.convert.stored import StoredTensor

BLOCK = 16  # weights under one scale
UNUSED = (".input_scale", ".input_global_scale", ".output_scale", ".pre_quant_scale")


@dataclass(frozen=True)
class Nvfp4:
    """divides: by the scale of the tensor, else it multiplies."""

    shape: Shape
    packed: StoredTensor
    scale: StoredTensor
    whole: StoredTensor
    divides: bool

    granule = 1
    nominal = "BF16"

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        np.take(E2M1, two_in_a_byte(store.rows(self.packed, first, last)), out=out, mode="clip")
        scales, whole = EIGHT_BITS["F8_E4M3"][store.rows(self.scale, first, last)], store.whole(self.whole).reshape(-1)
        (np.divide if self.divides else np.multiply)(scales, whole, out=scales)
        out.reshape(-1, BLOCK)[:] *= scales.reshape(-1, 1)


def build(asked: SchemeInputs) -> Nvfp4:
    """Malformed or Unsupported if the tensors are not those of one such weight."""
    check_settings(asked)
    packed = asked.matrix("main")
    rows, width = packed.shape[0], 2 * packed.shape[1]
    if width % BLOCK:
        raise asked.wrong(f"{list(packed.shape)} bytes do not divide into blocks of {BLOCK}")
    whole = asked.part("global_scale")
    if whole.dtype != "F32" or whole.nbytes != 4:
        raise asked.wrong(f"the scale of the tensor is {whole.dtype} {list(whole.shape)}; one F32 is expected")
    if "pre_quant_scale" in asked.parts:
        raise asked.unsupported("inputs scaled before the weights (AWQ)", "NVFP4 without it")
    scale = asked.expect("scale", "F8_E4M3", (rows, width // BLOCK))
    return Nvfp4((rows, width), packed, scale, whole, whole.name.endswith("weight_global_scale"))


NVFP4_PACKED = Scheme(
    "nvfp4-pack-quantized",
    "compressed-tensors",
    methods=("compressed-tensors",),
    main=(".weight_packed",),
    dense=".weight",
    dtypes=("U8",),
    companions={"scale": (".weight_scale",), "global_scale": (".weight_global_scale",)},
    required=("scale", "global_scale"),
    unused=UNUSED,
    fits=lambda parts: "scale" in parts and parts["scale"].dtype == "F8_E4M3",
    build=build,
)
NVFP4 = replace(
    NVFP4_PACKED,
    name="NVFP4",
    note="ModelOpt; without activation-aware scales",
    methods=("modelopt",),
    main=(".weight",),
    dense="{main}",
    companions={
        "scale": (".weight_scale",),
        "global_scale": (".weight_scale_2",),
        "pre_quant_scale": (".pre_quant_scale",),
    },
    unused=UNUSED[:-1],
)
