"""What the look-up of kernels/tables.py compiles to."""

from typing import Any

from llvmlite import ir

from ggufsmith.quantize.compiler import lookups, vectors
from ggufsmith.quantize.kernels import tables
from ggufsmith.quantize.kernels.tables import ENTRIES


def type_entry(table: Any, index: Any) -> Any:
    """The Numba type of `entry` for these types of arguments; None if they do not fit."""
    return vectors.F32 if vectors.of_array(table) == vectors.F32 and index in (vectors.I32, vectors.U32) else None


def emit_entry(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """From registers if an instruction looks up in those; else memory is read."""
    if not lookups.SIZE:
        masked = builder.and_(args[1], vectors.splat(builder, ir.Constant(ir.IntType(32), ENTRIES - 1)))
        return vectors.emit_gather(context, builder, sig, (args[0], masked))
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    table = builder.load(builder.bitcast(data, ir.VectorType(ir.FloatType(), ENTRIES).as_pointer()))
    table.align = 4
    return lookups.look_up(builder, lookups.registers(builder, table), args[1])


vectors.define(tables.entry, type_entry, emit_entry, 2)
