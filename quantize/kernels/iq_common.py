"""What the IQ kernels share: integers from floats, look-ups in a small table, the scales of blocks."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from ggufsmith.quantize import vectors
from ggufsmith.quantize.simd import (
    MAGIC,
    W,
    bits,
    f32,
    gather,
    half_to_f32,
    jitable,
    load,
    scratch,
    select,
    store,
    to_i32,
)

ENTRIES = 32


@jitable
def nearest_integer(x: Any) -> Any:
    """simd.nearest as i32."""
    return to_i32(bits(x + MAGIC) & 0x007FFFFF) - 0x00400000


@jitable
def reciprocal(d: Any) -> Any:
    """1 / d, and 0 for 0."""
    return select(d != f32(0), f32(1) / d, f32(0))


def entry(table: Any, index: Any) -> Any:
    """table[index & 31] for each lane; table: 32 float32."""
    return gather(table, index & (ENTRIES - 1))


def type_entry(table: Any, index: Any) -> Any:
    return vectors.F32 if vectors.of_array(table) == vectors.F32 and index in (vectors.I32, vectors.U32) else None


def emit_entry(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """With AVX-512 the table lies in two registers, and one instruction looks up 16 lanes; else memory is read."""
    if W != ENTRIES:
        masked = builder.and_(args[1], vectors.splat(builder, ir.Constant(ir.IntType(32), ENTRIES - 1)))
        return vectors.emit_gather(context, builder, sig, (args[0], masked))
    half, word = ir.VectorType(ir.FloatType(), 16), ir.IntType(32)
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    tables = []
    for i in (0, 16):
        table = builder.load(builder.bitcast(builder.gep(data, [ir.Constant(word, i)]), half.as_pointer()))
        table.align = 4
        tables.append(table)
    kind = ir.FunctionType(half, [half, ir.VectorType(word, 16), half])
    look_up = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.ps.512")
    parts = []
    for start in (0, 16):
        lanes = ir.Constant(ir.VectorType(word, 16), list(range(start, start + 16)))
        index = builder.shuffle_vector(args[1], args[1], lanes)
        parts.append(builder.call(look_up, [tables[0], index, tables[1]]))
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(word, W), list(range(W))))


vectors.define(entry, type_entry, emit_entry, 2)


@jitable
def load_scales(blocks: Any, at: int, size: int, scales: Any) -> None:
    """The float16 scales at the start of W blocks of `size` bytes from `at` on, as float32."""
    halves = scratch(W, np.uint16)
    for lane in range(W):
        here = at + lane * size
        halves[lane] = blocks[here] | (blocks[here + 1] << 8)
    store(scales, 0, half_to_f32(load(halves, 0)))


@jitable
def decode_nibbles(block: Any, byte: int, n: int, table: Any, scale: Any, lanes: Any, to: int) -> None:
    """n / 2 bytes of blocks in lanes -> n weights in lanes, the table's entries times `scale`, low halves first."""
    for i in range(n // 2):
        codes = to_i32(load(block, (byte + i) * W))
        store(lanes, (to + i) * W, entry(table, codes & 15) * scale)
        store(lanes, (to + i + n // 2) * W, entry(table, codes >> 4) * scale)
