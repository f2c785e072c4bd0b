"""BitNet b1.58: ternary weights, four in a byte, under one scale, as transformers packs them.

Source: transformers' integrations/bitnet.py (pack_weights, BitLinear, AutoBitLinear).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.scheme import Parts, Scheme, SchemeInputs, Shape, floats
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

PER_BYTE = 4


@dataclass(frozen=True)
class Ternary:
    """weight (out / 4, in) uint8: row r of the matrix is two bits of row r mod (out / 4), less one, by the scale.

    inverse: divide by the scale (BitLinear), or multiply by it (AutoBitLinear).
    """

    shape: Shape
    inverse: bool
    packed: StoredTensor
    scale: StoredTensor

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scale)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        scale = to_f32(store.whole(self.scale), self.scale.dtype).reshape(-1)[0]
        each = self.shape[0] // PER_BYTE
        for part in range(first // each, -(-last // each)):
            begin, end = max(first, part * each), min(last, (part + 1) * each)
            stored = store.rows(self.packed, begin - part * each, end - part * each)
            codes = stored >> np.uint8(2 * part) & np.uint8(3)
            np.subtract(codes, np.float32(1), out=out[begin - first : end - first])
        if self.inverse:
            out /= scale
        else:
            out *= scale


def build_ternary(asked: SchemeInputs) -> Ternary:
    """Malformed or Unsupported if the tensors are not those of one such weight."""
    packed, scale = asked.main, asked.part("scale")
    if asked.settings.first("quant_method") != "bitnet":  # a scale that divides looks like one that multiplies
        raise asked.wrong("its weights look like BitNet's, but no quantization_config says how they are scaled")
    asked.matrix("main")
    kind = asked.settings.first("linear_class") or "bitlinear"
    if kind not in ("bitlinear", "autobitlinear"):
        raise asked.unsupported(f"linear_class {kind!r}", "bitlinear and autobitlinear")
    return Ternary((packed.shape[0] * PER_BYTE, packed.shape[1]), kind == "bitlinear", packed, scale)


def fits(parts: Parts) -> bool:
    """Whether the scale, if there is one, is a single number."""
    scale = parts.get("scale")
    return scale is None or (scale.dtype in ("F32", "F16", "BF16") and math.prod(scale.shape) == 1)


BITNET = Scheme(
    "BitNet",
    "ternary weights packed by transformers (offline mode)",
    methods=("bitnet",),
    main=(".weight",),
    dtypes=("U8",),
    companions={"scale": (".weight_scale",)},
    required=("scale",),
    fits=fits,
    build=build_ternary,
)
