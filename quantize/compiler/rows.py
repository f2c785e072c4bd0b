"""What the functions of kernels/iq_rows.py compile to."""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import signature
from numba.extending import models, register_model

from ggufsmith.quantize.compiler import lookups, vectors
from ggufsmith.quantize.compiler.lookups import call
from ggufsmith.quantize.compiler.vectors import define
from ggufsmith.quantize.grids import CHUNK
from ggufsmith.quantize.kernels import iq_rows


class Row(types.Type):  # type: ignore[misc]
    """The Numba type of 16 numbers."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(name=f"Row({element})")


FLOATS, INTS = Row("f32"), Row("i32")
KINDS = {FLOATS: ir.VectorType(ir.FloatType(), CHUNK), INTS: ir.VectorType(ir.IntType(32), CHUNK)}
OF_SCALAR = {types.float32: FLOATS, types.int32: INTS}


@register_model(Row)
class RowModel(models.PrimitiveModel):  # type: ignore[misc]
    """A row is one LLVM vector."""

    def __init__(self, manager: Any, row: Row) -> None:
        super().__init__(manager, row, KINDS[row])


def constant(value: int, like: ir.Type) -> ir.Constant:
    """The integer as a constant of this type, in every lane of a vector."""
    return ir.Constant(like, [value] * CHUNK if isinstance(like, ir.VectorType) else value)


def permute(builder: Any, table: Any, index: Any) -> Any:
    """table[index & 15] for each lane; where no instruction looks up, sixteen loads do."""
    if lookups.SIZE:
        return lookups.look_up(builder, lookups.registers(builder, table), index)
    memory = cgutils.alloca_once(builder, table.type)
    builder.store(table, memory)
    entries = builder.bitcast(memory, ir.FloatType().as_pointer())
    index = builder.and_(index, constant(CHUNK - 1, index.type))
    result = ir.Constant(table.type, ir.Undefined)
    for lane in range(CHUNK):
        here = ir.Constant(ir.IntType(32), lane)
        value = builder.load(builder.gep(entries, [builder.extract_element(index, here)]))
        result = builder.insert_element(result, value, here)
    return result


def emit_row(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `row`; at the alignment of one number."""
    value = builder.load(vectors.pointer(context, builder, sig, args, 0, 1, KINDS[sig.return_type]))
    value.align = 4
    return value


def spread(builder: Any, scalar: Any) -> Any:
    """A scalar LLVM value in every lane."""
    kind = ir.VectorType(scalar.type, CHUNK)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, constant(0, KINDS[INTS]))


def word(builder: Any, value: Any) -> Any:
    """The low 32 bits of an integer."""
    return builder.trunc(value, ir.IntType(32))


def emit_put(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `put_row`."""
    builder.store(args[2], vectors.pointer(context, builder, sig, args, 0, 1, KINDS[sig.args[2]])).align = 4
    return context.get_dummy_value()


def emit_fill(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `fill`."""
    return spread(builder, word(builder, args[0]) if sig.return_type == INTS else args[0])


def as_bits(builder: Any, mask: Any) -> Any:
    """A mask as an integer, lane 0 in the lowest bit."""
    return builder.zext(builder.bitcast(mask, ir.IntType(CHUNK)), ir.IntType(64))


def emit_lanes_less(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `lanes_less`."""
    return as_bits(builder, builder.fcmp_ordered("<", *args))


def emit_lanes_equal(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `lanes_equal`."""
    return as_bits(builder, builder.icmp_signed("==", args[0], spread(builder, word(builder, args[1]))))


def emit_choose_lanes(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `choose_lanes`."""
    mask = builder.trunc(args[0], ir.IntType(CHUNK))
    return builder.select(builder.bitcast(mask, ir.VectorType(ir.IntType(1), CHUNK)), args[1], args[2])


def emit_pick(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `pick`."""
    table, packed, i = args
    shift = builder.mul(word(builder, i), ir.Constant(ir.IntType(32), 4))
    return permute(builder, table, builder.lshr(packed, spread(builder, shift)))


def emit_least(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See `least`."""
    long = ir.IntType(64)
    pattern = builder.bitcast(args[0], KINDS[INTS])
    pattern = builder.and_(pattern, constant(0x7FFFFFFF, pattern.type))
    smallest = call(builder, f"llvm.vector.reduce.umin.v{CHUNK}i32", ir.IntType(32), pattern)
    equal = builder.icmp_unsigned("==", pattern, spread(builder, smallest))
    lane = builder.cttz(as_bits(builder, equal), ir.Constant(ir.IntType(1), 1))
    high = builder.shl(builder.zext(smallest, long), ir.Constant(long, 32))
    return builder.or_(high, builder.add(args[1], lane))


def type_row(array: Any, at: Any) -> Any:
    """The type of `row` for an array; None if it has none."""
    return OF_SCALAR.get(array.dtype) if isinstance(array, types.Array) and array.layout == "C" else None


def type_pick(table: Any, packed: Any, i: Any) -> Any:
    """The signature of `pick`; None for other types."""
    return signature(FLOATS, FLOATS, INTS, long) if (table, packed) == (FLOATS, INTS) else None


def type_fill(x: Any) -> Any:
    """The signature of `fill`."""
    return signature(FLOATS, types.float32) if isinstance(x, types.Float) else signature(INTS, types.int64)


def type_choose(a: Any, b: Any) -> Any:
    """The type of `choose_lanes`; None for rows of two types."""
    return a if a == b and isinstance(a, Row) else None


long = types.int64
define(iq_rows.row, type_row, emit_row, 2)
define(iq_rows.put_row, lambda array, at, x: types.void if isinstance(x, Row) else None, emit_put, 3)
define(iq_rows.fill, type_fill, emit_fill, 1)
define(iq_rows.lanes_less, lambda x, y: long if (x, y) == (FLOATS, FLOATS) else None, emit_lanes_less, 2)
define(iq_rows.lanes_equal, lambda x, value: signature(long, INTS, long), emit_lanes_equal, 2)
define(
    iq_rows.choose_lanes,
    lambda lanes, a, b: signature(a, long, a, a) if type_choose(a, b) else None,
    emit_choose_lanes,
    3,
)
define(
    iq_rows.lowest_bit,
    lambda lanes: signature(long, long),
    lambda context, builder, sig, args: builder.cttz(args[0], ir.Constant(ir.IntType(1), 1)),
    1,
)
define(iq_rows.look_up, lambda t, i: FLOATS if (t, i) == (FLOATS, INTS) else None, lambda c, b, s, a: permute(b, *a), 2)
define(iq_rows.pick, type_pick, emit_pick, 3)
define(iq_rows.least, lambda d, slot: signature(long, FLOATS, long), emit_least, 2)
for _op, _method in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    define(
        _op,
        lambda x, y: FLOATS if (x, y) == (FLOATS, FLOATS) else None,
        lambda context, builder, sig, args, method=_method: getattr(builder, method)(*args),
        2,
        Row,
    )
