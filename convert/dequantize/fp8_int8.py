"""Eight-bit weights under a grid of scales: FP8 as DeepSeek, Qwen, NVIDIA and compressed-tensors publish it, and int8.

weight = scale * (value - zero). The scale is one number, one per row, one per group of columns of a row, or one per
block (128 x 128 for DeepSeek); in every case a grid that covers the matrix evenly, its last blocks cut off at the edge.
Stacked experts (experts, rows, columns) have a grid each. "weight_scale_inv" multiplies as "weight_scale" does.
Sources: DeepSeek-V3's inference/kernel.py (weight_dequant), transformers' finegrained_fp8, compressed-tensors'
naive_quantized compressor and its quantization strategies, FBGEMM's and ModelOpt's per-row and per-tensor scales.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.compressed import check_settings
from ggufsmith.convert.dequantize.scheme import Scheme, SchemeInputs, Shape, floats
from ggufsmith.convert.dequantize.store import EIGHT_BITS, Store, to_f32
from ggufsmith.convert.stored import StoredTensor

SCALES = "F32 BF16 F16 F8_E8M0"


@dataclass(frozen=True)
class Blocks:
    """grid: (rows, columns) of scales for each matrix. block: (rows, columns) of weights under one scale."""

    shape: Shape
    grid: tuple[int, int]
    block: tuple[int, int]
    values: StoredTensor
    scale: StoredTensor
    zero: StoredTensor | None

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scale)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        stored = store.rows(self.values, first, last)
        if stored.dtype == np.uint8:
            np.take(EIGHT_BITS[self.values.dtype], stored, out=out, mode="clip")
        else:
            out[:] = stored
        matrix, row = np.divmod(np.arange(first, last), self.shape[-2])
        lines = matrix * self.grid[0] + row // self.block[0]
        if self.zero is not None:
            out -= self._spread(store.whole(self.zero).astype(np.float32), lines)
        out *= self._spread(to_f32(store.whole(self.scale), self.scale.dtype), lines)

    def _spread(self, grid: NDArray[np.float32], lines: NDArray[Any]) -> NDArray[np.float32]:
        """The numbers of a grid for these lines of it, one per column, or one for all."""
        numbers: NDArray[np.float32] = grid.reshape(-1, self.grid[1])[lines]
        return numbers if self.grid[1] == 1 else numbers.repeat(self.block[1], axis=1)[:, : self.shape[-1]]


def build(asked: SchemeInputs) -> Blocks:
    """Malformed or Unsupported if scales and zero points do not cover the weights."""
    check_settings(asked)
    values, scale = asked.main, asked.part("scale")
    if len(values.shape) not in (2, 3) or 0 in values.shape:
        raise asked.wrong(f"the weights have the shape {list(values.shape)}")
    if scale.dtype not in SCALES.split():
        raise asked.unsupported(f"scales in {scale.dtype}", SCALES)
    stack, (rows, columns) = values.shape[:-2], values.shape[-2:]
    shape = scale.shape
    if math.prod(shape) == 1 and not stack:
        grid: Shape = (1, 1)
    elif shape == (*stack, rows):
        grid = (rows, 1)
    elif len(shape) == len(values.shape) and shape[:-2] == stack:
        grid = shape[-2:]
    else:
        raise asked.wrong(f"scales of shape {list(shape)} do not cover weights of shape {list(values.shape)}")
    block = _block(asked, (rows, columns), (grid[0], grid[1]))
    zero = asked.parts.get("zero")
    if zero is not None:
        asked.expect("zero", "I8 U8 I32 F32", shape)
    return Blocks(values.shape, (grid[0], grid[1]), block, values, scale, zero)


def _block(asked: SchemeInputs, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """The block that a scale covers: the config's, if it fits the grid, else one that divides the matrix evenly.

    Without a config, blocks must be powers of two: any other even division may as well be a ragged grid of those.
    """
    known = {block for block in asked.settings.blocks if covers(size, grid, block)}
    if len(known) == 1:
        return known.pop()
    each = [m // n if n and m % n == 0 else 0 for m, n in zip(size, grid, strict=True)]
    if not known and all(b and (n == 1 or b & (b - 1) == 0) for b, n in zip(each, grid, strict=True)):
        return each[0], each[1]
    raise asked.wrong(f"{list(grid)} scales for {list(size)} weights, and no block size in the config fits")


def covers(size: tuple[int, int], grid: tuple[int, int], block: tuple[int, int]) -> bool:
    """Whether blocks of this size divide the matrix into just this grid, the last ones cut off."""
    return all(b > 0 and -(-m // b) == n for m, n, b in zip(size, grid, block, strict=True))


COMPANIONS: Mapping[str, tuple[str, ...]] = {"scale": ("{main}_scale_inv", "{main}_scale", ".qscale_weight", ".scale")}
ACTIVATIONS = (
    *(".input_scale", ".activation_scale", ".input_activation_scale", ".qscale_act", ".input_scale_ub"),
    *("{main}_activation_scale", ".output_scale", ".input_zero_point", ".input_global_scale"),
)
FP8 = Scheme(
    "FP8",
    "E4M3 and E5M2; scales per tensor, per row, per group or per block (128 × 128); stacked experts",
    methods=("fp8", "compressed-tensors", "fbgemm_fp8", "modelopt"),
    main=(".weight", ".gate_up_proj", ".down_proj"),
    dtypes=("F8_E4M3", "F8_E5M2"),
    companions=COMPANIONS,
    required=("scale",),
    unused=ACTIVATIONS,
    build=build,
)
INT8 = Scheme(
    "int-quantized",
    "int8 of compressed-tensors; scales per tensor, per row, per group or per block; symmetric or not",
    methods=("compressed-tensors",),
    main=(".weight",),
    dtypes=("I8",),
    companions={"scale": (".weight_scale",), "zero": (".weight_zero_point",)},
    required=("scale",),
    unused=ACTIVATIONS,
    build=build,
)
