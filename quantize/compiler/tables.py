"""What the look-up of kernels/tables.py compiles to."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from ggufsmith.quantize.compiler import vectors
from ggufsmith.quantize.kernels import tables
from ggufsmith.quantize.kernels.tables import ENTRIES
from ggufsmith.quantize.simd import W


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
    halves = []
    for i in (0, 16):
        table = builder.load(builder.bitcast(builder.gep(data, [ir.Constant(word, i)]), half.as_pointer()))
        table.align = 4
        halves.append(table)
    kind = ir.FunctionType(half, [half, ir.VectorType(word, 16), half])
    look_up = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.ps.512")
    parts = []
    for start in (0, 16):
        lanes = ir.Constant(ir.VectorType(word, 16), list(range(start, start + 16)))
        index = builder.shuffle_vector(args[1], args[1], lanes)
        parts.append(builder.call(look_up, [halves[0], index, halves[1]]))
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(word, W), list(range(W))))


vectors.define(tables.entry, type_entry, emit_entry, 2)
