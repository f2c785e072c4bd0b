"""bitsandbytes: NF4 and FP4 in blocks, with plain or quantized ("double", "nested") scales, and LLM.int8().

Four bits: weight, n / 2 bytes as any dtype (bnb_4bit_quant_storage), holds the flat matrix, the earlier weight in the
upper half of a byte; weight.absmax one scale for each block; weight.quant_map the sixteen values;
weight.quant_state.bitsandbytes__nf4 (or __fp4) a JSON text with shape and block sizes. With nested scales, absmax holds
codes, nested_quant_map[code] * nested_absmax + nested_offset of them, again in blocks.
Eight bits: weight (out, in) int8, SCB (out,): weight = value * SCB / 127.
Source: bitsandbytes 0.50, functional.py (QuantState, dequantize_4bit, int8_vectorwise_dequant), nn/modules.py.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import parse_json
from ggufsmith.convert.dequantize.scheme import Scheme, SchemeInputs, Shape
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

MAX_STATE = 1 << 16  # bytes of the JSON text; a real one has about two hundred
NOMINAL = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class FourBit:
    """blocksize, nested_blocksize: weights under one scale, scales under one scale of scales."""

    shape: Shape
    nominal: str
    blocksize: int
    codes: StoredTensor
    absmax: StoredTensor
    quant_map: StoredTensor
    nested_absmax: StoredTensor | None = None
    nested_map: StoredTensor | None = None
    nested_blocksize: int = 1
    nested_offset: float = 0.0

    granule = 1

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        begin, end = first * self.shape[-1], last * self.shape[-1]
        stored = store.flat(self.codes, begin // 2, -(-end // 2))
        codes = np.empty((stored.size, 2), np.uint8)
        np.right_shift(stored, 4, out=codes[:, 0])
        np.bitwise_and(stored, np.uint8(15), out=codes[:, 1])
        flat = out.reshape(-1)
        np.take(store.whole(self.quant_map), codes.reshape(-1)[begin % 2 :][: flat.size], out=flat, mode="clip")
        low, high = begin // self.blocksize, -(-end // self.blocksize)
        scales = self._scales(store, low, high)
        if begin % self.blocksize == end % self.blocksize == 0:
            flat.reshape(-1, self.blocksize)[:] *= scales[:, None]
        else:
            flat *= scales.repeat(self.blocksize)[begin - low * self.blocksize :][: flat.size]

    def _scales(self, store: Store, first: int, last: int) -> NDArray[np.float32]:
        stored = store.flat(self.absmax, first, last)
        if self.nested_absmax is None or self.nested_map is None:
            return stored
        block = np.arange(first, last) // self.nested_blocksize
        scales: NDArray[np.float32] = store.whole(self.nested_map)[stored] * store.whole(self.nested_absmax)[block]
        return scales + np.float32(self.nested_offset)


@dataclass(frozen=True)
class EightBit:
    """codes: (out, in) int8; scb: (out,), the largest absolute value of each row."""

    shape: Shape
    codes: StoredTensor
    scb: StoredTensor

    granule = 1
    nominal = "F16"

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        scales = to_f32(store.whole(self.scb), self.scb.dtype).reshape(-1)[first:last, None]
        np.multiply(store.rows(self.codes, first, last), scales, out=out)
        out *= np.float32(1 / 127)


def build_four(asked: SchemeInputs) -> FourBit:
    """Reads the quantization state, for the shape and the block sizes."""
    state, codes = _state(asked), replace(asked.main, dtype="U8", shape=(asked.main.nbytes,))
    shape = tuple(state["shape"])
    weights, block = math.prod(shape), state["blocksize"]
    if asked.main.nbytes != -(-weights // 2):
        raise asked.wrong(f"{asked.main.nbytes} bytes of codes for a weight of shape {list(shape)}")
    blocks = -(-weights // block)
    quant_map = asked.expect("quant_map", "F32", (16,))
    nominal = NOMINAL.get(state.get("dtype", ""), "BF16")
    if "nested_absmax" not in asked.parts:
        absmax = asked.expect("absmax", "F32", (blocks,))
        return FourBit(shape, nominal, block, codes, absmax, quant_map)
    absmax = asked.expect("absmax", "U8", (blocks,))
    nested_block = state.get("nested_blocksize")
    if not isinstance(nested_block, int) or nested_block <= 0:
        raise asked.wrong(f"its quantization state has a nested_blocksize of {nested_block!r}")
    nested = asked.expect("nested_absmax", "F32", (-(-blocks // nested_block),))
    nested_map = asked.expect("nested_quant_map", "F32", (256,))
    offset = state.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float):
        raise asked.wrong(f"its quantization state has a nested_offset of {offset!r}")
    return FourBit(shape, nominal, block, codes, absmax, quant_map, nested, nested_map, nested_block, float(offset))


def _state(asked: SchemeInputs) -> dict[str, Any]:
    """The JSON text, with a usable shape and block size."""
    source = asked.part("state")
    try:
        if source.nbytes > MAX_STATE or source.dtype != "U8":
            raise ValueError(f"{source.nbytes} bytes of {source.dtype}")
        state = parse_json(asked.store.whole(source).tobytes(), source.name)
        shape, block = state["shape"], state["blocksize"]
        numbers = [*shape, block]
        if len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 40 for n in numbers):
            raise ValueError(f"shape {shape}, blocksize {block}")
    except (Malformed, ValueError, TypeError, KeyError) as error:
        raise asked.wrong(f"its quantization state cannot be used: {error}") from None
    return dict(state)


def build_eight(asked: SchemeInputs) -> EightBit:
    """Reads weight_format, where it is stored."""
    codes = asked.main
    asked.matrix("main")
    stated = asked.parts.get("format")
    if stated is not None and (stated.nbytes > 8 or asked.store.whole(stated).any()):
        raise asked.unsupported("weights in the layout of a GPU kernel", "rows (weight_format 0)")
    return EightBit(codes.shape, codes, asked.expect("scb", "F32 F16 BF16", codes.shape[:1]))


BNB_4BIT = Scheme(
    "bitsandbytes 4-bit",
    "NF4 and FP4, with plain or double-quantized scales, stored as any dtype",
    methods=("bitsandbytes",),
    main=(".weight",),
    dtypes=("U8", "BF16", "F16", "F32"),
    fits=lambda parts: parts["main"].dtype == "U8" or "state" in parts,
    companions={
        "absmax": (".weight.absmax",),
        "quant_map": (".weight.quant_map",),
        "nested_absmax": (".weight.nested_absmax",),
        "nested_quant_map": (".weight.nested_quant_map",),
        "state": (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"),
    },
    required=("absmax", "quant_map", "state"),
    build=build_four,
)
BNB_8BIT = Scheme(
    "bitsandbytes 8-bit",
    "LLM.int8() with its SCB scales",
    methods=("bitsandbytes",),
    main=(".weight",),
    dtypes=("I8",),
    companions={"scb": (".SCB",), "format": (".weight_format",)},
    required=("scb",),
    build=build_eight,
)
