"""compressed-tensors, pack-quantized: integers of a few bits, dense in 32-bit words along the input dimension.

weight_packed (out, ceil(in * bits / 32)) int32; weight_scale (out, groups), (out, 1) or one number; weight_shape, two
numbers; weight_zero_point (ceil(out * bits / 32), groups), packed along the rows, where the weights are not symmetric;
weight_g_idx (in,) where groups do not lie in turn. Codes and packed zero points are stored with 2^(bits - 1) added.
Its other formats, one number per element, are in `blocks`. Source: compressed-tensors 0.20, compressors/pack_quantized.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.bitpacking import Codes, scale_codes, unpack, words_for
from ggufsmith.convert.dequantize.lossless_blocks import Q4_0, fill_q4_0
from ggufsmith.convert.dequantize.scheme import Exact, Scheme, SchemeInputs, Shape, floats
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

FORMATS = (
    "dense pack-quantized int-quantized float-quantized naive-quantized mxfp4-pack-quantized nvfp4-pack-quantized "
    "mixed-precision".split()
)


@dataclass(frozen=True)
class Packed:
    """groups: scales of a row. group_size: columns of a group in turn; `g_idx` gives the group of each instead."""

    shape: Shape
    bits: int
    groups: int
    group_size: int
    packed: StoredTensor
    scale: StoredTensor
    zero: StoredTensor | None
    g_idx: StoredTensor | None

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scale)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        codes, scales = self._parts(store, first, last)
        order: Any = self.group_size if self.g_idx is None else store.whole(self.g_idx)
        scale_codes(codes, scales, self._zeros(store, first, last), order, out)

    def q4_0(self, store: Store, first: int, last: int, out: NDArray[np.uint8]) -> bool:
        """Fill `out` with the rows as Q4_0. False if they are not that after all."""
        return fill_q4_0(*self._parts(store, first, last), out)

    def _parts(self, store: Store, first: int, last: int) -> tuple[Codes, NDArray[np.float32]]:
        """Codes (last - first, width) and scales (last - first, groups)."""
        codes = unpack(store.rows(self.packed, first, last), self.bits, self.shape[1])
        one = self.scale.nbytes // self.groups < 8 and self.scale.shape[0] == 1  # one scale for all
        stored = store.whole(self.scale).reshape(1, 1) if one else store.rows(self.scale, first, last)
        scales = to_f32(stored, self.scale.dtype).reshape(-1, self.groups)
        return codes, np.broadcast_to(scales, (len(codes), self.groups))

    def _zeros(self, store: Store, first: int, last: int) -> Any:
        """Zero points as codes are stored: (last - first, groups), or one number."""
        half = np.float32(1 << (self.bits - 1))
        if self.zero is None:
            return half
        if self.zero.dtype == "I8":
            return store.rows(self.zero, first, last).astype(np.float32) + half
        begin, end = first // 32 * 32, min(-(-last // 32) * 32, self.shape[0])  # whole words, whatever the bits
        words = store.rows(self.zero, begin * self.bits // 32, words_for(end, self.bits))
        codes = unpack(words.T, self.bits, end - begin)[:, first - begin : last - begin]
        return codes.T.astype(np.float32)


def check_settings(asked: SchemeInputs) -> None:
    """Unsupported for what would change the weights beyond scales and zero points."""
    settings = asked.settings
    if settings.first("quant_method") != "compressed-tensors":
        return
    form = settings.first("format")
    if form is not None and form not in FORMATS:
        raise asked.unsupported(f"compressed-tensors format {form!r}", ", ".join(FORMATS))
    sparsity = settings.mapping("sparsity_config").get("format", "dense")
    if sparsity != "dense":
        raise asked.unsupported(f"sparsity format {sparsity!r}", "dense")
    if settings.mapping("transform_config").get("config_groups"):
        raise asked.unsupported("weights rotated by a transform_config", "weights as they are")


def build(asked: SchemeInputs) -> Packed:
    """Reads weight_shape and weight_g_idx."""
    check_settings(asked)
    packed, scale, stated = asked.main, asked.part("scale"), asked.expect("shape", "I64 I32", (2,))
    shape = tuple(int(n) for n in asked.store.whole(stated))
    out, width = shape
    if width <= 0 or packed.shape[:1] != (out,) or len(packed.shape) != 2:
        raise asked.wrong(f"weight_shape says {list(shape)}, but the packed weights are {list(packed.shape)}")
    weights = asked.settings.of_weights
    claimed = {bits for bits in (group.get("num_bits") for group in weights) if isinstance(bits, int)}
    possible = [bits for bits in range(1, 9) if words_for(width, bits) == packed.shape[1]]
    bits = [n for n in possible if n in claimed] if claimed else possible
    if len(bits) != 1:
        said = f"; the config says {sorted(claimed)} bits" if claimed else ""
        raise asked.wrong(f"{packed.shape[1]} words do not hold {width} codes of 1 to 8 bits without gaps{said}")
    if scale.dtype not in ("F16", "BF16", "F32"):
        raise asked.unsupported(f"scales in {scale.dtype}", "F16, BF16, F32")
    if scale.shape not in ((1,), (1, 1), (out,)) and (len(scale.shape) != 2 or scale.shape[0] != out):
        raise asked.wrong(f"scales of shape {list(scale.shape)} do not cover weights of shape {list(shape)}")
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    size = _group_size(asked, width, groups, weights)
    zero, g_idx = asked.parts.get("zero"), asked.parts.get("g_idx")
    if zero is not None and zero.dtype == "I8":
        asked.expect("zero", "I8", (out, groups))
    elif zero is not None:
        asked.expect("zero", "I32", (words_for(out, bits[0]), groups))
    elif weights and not any(group.get("symmetric", True) for group in weights):
        raise asked.wrong("its weight_zero_point is missing, but the config says that the weights are not symmetric")
    if g_idx is not None:
        index = asked.store.whole(asked.expect("g_idx", "I32 I64", (width,)))
        if index.min() == index.max() == -1:  # how groups in turn are spelled
            g_idx = None
        elif index.min() < 0 or index.max() >= groups:
            raise asked.wrong(f"weight_g_idx names groups {index.min()} to {index.max()}, of {groups}")
    elif any(group.get("actorder") in ("group", "dynamic") for group in weights) and all(
        group.get("actorder") for group in weights
    ):
        raise asked.wrong("its weight_g_idx is missing, but the config says that the groups are not in order")
    return Packed(shape, bits[0], groups, size, packed, scale, zero, g_idx)


def _group_size(asked: SchemeInputs, width: int, groups: int, weights: Sequence[Mapping[str, Any]]) -> int:
    sizes = {size for size in (group.get("group_size") for group in weights) if isinstance(size, int) and size > 0}
    fitting = {size for size in sizes if -(-width // size) == groups}
    if len(fitting) == 1:
        return fitting.pop()
    if groups and width % groups == 0:
        return width // groups
    raise asked.wrong(f"{groups} groups for {width} inputs, and no group_size in the config fits")


def exact(weights: Packed) -> Exact | None:
    """Q4_0 for symmetric codes of 4 bits in order, whose groups are whole blocks; else None."""
    even = weights.g_idx is None and weights.group_size % Q4_0.weights == weights.shape[1] % weights.group_size == 0
    return Exact(Q4_0, weights.q4_0) if weights.bits == 4 and weights.zero is None and even else None


PACK_QUANTIZED = Scheme(
    "pack-quantized",
    "compressed-tensors; 1 to 8 bits (int4, int8); per tensor, per row or any group size; symmetric or not; act-order; "
    "symmetric 4-bit without act-order maps exactly to Q4_0",
    methods=("compressed-tensors",),
    main=(".weight_packed",),
    dense=".weight",
    dtypes=("I32",),
    companions={
        "scale": (".weight_scale",),
        "shape": (".weight_shape",),
        "zero": (".weight_zero_point",),
        "g_idx": (".weight_g_idx",),
    },
    required=("scale", "shape"),
    unused=(".input_scale", ".output_scale", ".input_zero_point", ".input_global_scale"),
    build=build,
    exact=exact,
)
