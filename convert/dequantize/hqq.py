"""HQQ: codes of 8, 4, 3, 2 or 1 bit with zero points that are no whole numbers, grouped along either axis.

The matrix, seen as (groups, group_size) for axis 1 or (group_size, groups) for axis 0, is cut into 8 / bits parts of
rows; a byte of W_q holds one code of each part, the first part highest. Of 3 bits a 32-bit word holds ten, and the
parts are padded. scale and zero have one number for each group:
weight = (code - zero) * scale. What else describes the layout is stored beside them, as small tensors.
Source: hqq 0.2.8, core/quantize.py (Quantizer, HQQLinear.state_dict), core/bitpack.py, core/utils.py.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.scheme import Scheme, SchemeInputs, Shape, floats
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

# Packing -> bits of a code, bits that are used of a byte or word, and its dtype.
PACKINGS = {
    "8bit_u8": (8, 8, "U8"),
    "4bit_u8": (4, 8, "U8"),
    "3bit_32": (3, 30, "I32"),
    "2bit_u8": (2, 8, "U8"),
    "1bit_u8": (1, 8, "U8"),
}
MAX_TEXT = 64  # bytes of a small tensor that describes the layout


@dataclass(frozen=True)
class Hqq:
    """used: bits of a byte or word. width: columns of the matrix as packed; axis: along which groups lie in it."""

    shape: Shape
    bits: int
    used: int
    axis: int
    width: int
    packed: StoredTensor
    scale: StoredTensor
    zero: StoredTensor

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scale)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        flat, begin = out.reshape(-1), first * self.shape[1]
        each = math.prod(self.packed.shape)  # weights in a part
        span = self.width if self.axis == 0 else each  # what is contiguous in W_q, and under scales in turn
        while len(flat):
            part, place = divmod(begin, each)
            count = min(len(flat), each - place, span - place % span)
            stored = store.flat(self.packed, place, place + count)
            codes = stored >> (self.used - self.bits * (part + 1)) & ((1 << self.bits) - 1)
            scale, zero = (self._numbers(store, source, begin, count) for source in (self.scale, self.zero))
            np.subtract(codes, zero, out=flat[:count])
            flat[:count] *= scale
            flat, begin = flat[count:], begin + count

    def _numbers(self, store: Store, source: StoredTensor, begin: int, count: int) -> NDArray[np.float32]:
        """The scale or zero point of each of `count` weights from `begin` on."""
        if self.axis == 0:
            first = begin % self.width
            return to_f32(store.flat(source, first, first + count), source.dtype)
        first = begin // self.width
        stored = to_f32(store.flat(source, first, -(-(begin + count) // self.width)), source.dtype)
        return stored.repeat(self.width)[begin - first * self.width :][:count]


def _number(asked: SchemeInputs, role: str, default: int) -> int:
    source = asked.parts.get(role)
    if source is None:
        return default
    if source.dtype not in ("I32", "I64", "U8") or source.nbytes > 8:
        raise asked.wrong(f"{role} is {source.dtype} {list(source.shape)}, not a whole number")
    return int(asked.store.whole(source).reshape(-1)[0])


def build(asked: SchemeInputs) -> Hqq:
    """Reads the small tensors."""
    packed, stated, text = asked.main, asked.expect("shape", "I64 I32", (2,)), asked.part("packing")
    packing = asked.store.whole(text).tobytes().decode("ascii", "replace") if text.nbytes <= MAX_TEXT else "?"
    if packing not in PACKINGS or _number(asked, "view_as_float", 0):
        raise asked.unsupported(f"packing {packing!r}", ", ".join(PACKINGS))
    if _number(asked, "quant_scale", 0) or _number(asked, "quant_zero", 0):
        raise asked.unsupported("quantized scales and zero points", "plain ones")
    (bits, used, dtype), axis = PACKINGS[packing], _number(asked, "axis", 0)
    shape = tuple(int(n) for n in asked.store.whole(stated))
    weights, width = math.prod(shape), packed.shape[-1] if packed.shape else 0
    if (
        axis not in (0, 1)
        or min(shape) <= 0
        or packed.dtype != dtype
        or len(packed.shape) != 2
        or 0 in packed.shape
        or weights % width
        or packed.shape[0] != -(-weights // width * bits // used)
    ):
        raise asked.wrong(
            f"{packed.dtype} {list(packed.shape)} of {bits} bits along axis {axis} does not hold {list(shape)}"
        )
    groups = (1, width) if axis == 0 else (weights // width, 1)
    scale, zero = (asked.expect(role, "F16 BF16 F32", groups) for role in ("scale", "zero"))
    return Hqq(shape, bits, used, axis, width, packed, scale, zero)


STATED = (
    *("shape", "packing", "axis", "view_as_float", "quant_scale", "quant_zero", "nbits", "group_size", "channel_wise"),
    *("unpack_view_dtype", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config"),
    *("optimize", "round_zero"),
)
HQQ = Scheme(
    "HQQ",
    "8, 4, 3, 2, 1 bits; any group size along either axis",
    methods=("hqq",),
    main=(".W_q",),
    dense=".weight",
    dtypes=("U8", "I32"),
    companions={role: (f".{role}",) for role in ("scale", "zero", *STATED)},
    required=("scale", "zero", "shape", "packing", "axis"),
    build=build,
)
