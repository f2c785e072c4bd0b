"""Look-ups in a table of 32 numbers, one for each lane, and the decoding of four-bit codes by it."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from ggufsmith.quantize import vectors
from ggufsmith.quantize.kernels.blocks import get, put
from ggufsmith.quantize.simd import W, gather, jitable, to_i32

ENTRIES = 32


def entry(table: Any, index: Any) -> Any:
    """table[index & 31] for each lane; table: 32 float32."""
    return gather(table, index & (ENTRIES - 1))


def type_entry(table: Any, index: Any) -> Any:
    """The Numba type of `entry` for these types of arguments; None if they do not fit."""
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
def decode_nibbles(block: Any, byte: int, n: int, table: Any, scale: Any, s: Any, to: int) -> None:
    """The n / 2 bytes of each block from `byte` on -> numbers `to` to `to + n - 1` of s: the table's entries times
    `scale`, low halves first.
    """
    for i in range(n // 2):
        codes = to_i32(get(block, byte + i))
        put(s, to + i, entry(table, codes & 15) * scale)
        put(s, to + i + n // 2, entry(table, codes >> 4) * scale)
