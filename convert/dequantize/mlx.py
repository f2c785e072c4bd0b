"""MLX: codes of a few bits in 32-bit words, and a scale and a bias for each group of a row.

weight = scale * code + bias. The words of a row are one stream of bits, whatever the bits. Experts are stacked:
(experts, rows, words). How many bits and columns a group has only the config says ("quantization"), for all modules or
for one by its name.
Source: mlx 0.29, mlx/ops.cpp (affine_quantize, affine_dequantize), mlx-lm 0.28, utils.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.bitpacking import unpack
from ggufsmith.convert.dequantize.scheme import Scheme, SchemeInputs, Shape, floats
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

BITS = (2, 3, 4, 5, 6, 8)
FLOATS = "F16 BF16 F32"


@dataclass(frozen=True)
class Mlx:
    """bits: of a code. group_size: columns under one scale and bias."""

    shape: Shape
    bits: int
    group_size: int
    packed: StoredTensor
    scale: StoredTensor
    bias: StoredTensor

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scale)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        groups = (last - first, -1, self.group_size)
        grouped = out.reshape(groups)
        codes = unpack(store.rows(self.packed, first, last), self.bits, self.shape[-1])
        scale, bias = (to_f32(store.rows(part, first, last), part.dtype) for part in (self.scale, self.bias))
        np.multiply(codes.reshape(groups), scale[:, :, None], out=grouped)
        grouped += bias[:, :, None]


def build(asked: SchemeInputs) -> Mlx:
    """Malformed or Unsupported if the tensors and the config do not fit together."""
    packed, scale = asked.main, asked.part("scale")
    if len(packed.shape) not in (2, 3) or len(scale.shape) != len(packed.shape) or 0 in (*packed.shape, *scale.shape):
        raise asked.wrong(
            f"{list(packed.shape)} words and {list(scale.shape)} scales are not matrices, or stacks of them"
        )
    settings: dict[str, Any] = {**asked.settings, **asked.settings.mapping(packed.name.removesuffix(".weight"))}
    mode = settings.get("mode", "affine")
    if mode != "affine":
        raise asked.unsupported(f"mode {mode!r}", "affine")
    bits, size = settings.get("bits"), settings.get("group_size")
    if bits not in BITS or not isinstance(size, int) or size <= 0:
        raise asked.wrong(f"the config gives {bits!r} bits in groups of {size!r}", f"Bits are {BITS}.")
    rows, words, groups = packed.shape[:-1], packed.shape[-1], scale.shape[-1]
    if 32 * words != groups * size * bits:
        raise asked.wrong(f"{words} words do not hold {groups} groups of {size} codes of {bits} bits")
    asked.expect("scale", FLOATS, (*rows, groups))
    return Mlx((*rows, groups * size), bits, size, packed, scale, asked.expect("bias", FLOATS, scale.shape))


MLX = Scheme(
    "MLX",
    "affine; 2, 3, 4, 5, 6, 8 bits; any group size; other bits for single modules; stacked experts",
    methods=("mlx",),
    main=(".weight",),
    dtypes=("U32",),
    companions={"scale": (".scales",), "bias": (".biases",)},
    required=("scale",),
    build=build,
)
