"""Which of many grid points is nearest: sixteen candidates of one lane at once.

The searches of IQ1, IQ2 and IQ3 compare every candidate by sum(w[i] * (scale * q[i] - x[i])**2), added in the order of
i. As q[i] is one of few levels, the terms are computed once, into two tables of 16 entries (`Row`), and a candidate is
sixteen lanes' worth of look-ups by its nibbles (grids.Candidates.packed) and additions in ggml's order. So the lanes
are candidates here, not blocks; the minimum over them is exact, and of equal candidates the first wins, as in ggml.

Like simd.py, everything runs compiled inside a kernel and, on NumPy arrays of 16, outside.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import signature
from numba.extending import models, register_model
from numpy.typing import NDArray

from ggufsmith.quantize import vectors
from ggufsmith.quantize.grids import CHUNK
from ggufsmith.quantize.simd import W, jitable
from ggufsmith.quantize.vectors import define

WORST = (1 << 63) - 1


class Row(types.Type):  # type: ignore[misc]
    """The Numba type of 16 numbers: candidates, or entries of a table."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(name=f"Row({element})")


FLOATS, INTS = Row("f32"), Row("i32")
KINDS = {FLOATS: ir.VectorType(ir.FloatType(), CHUNK), INTS: ir.VectorType(ir.IntType(32), CHUNK)}
OF_SCALAR = {types.float32: FLOATS, types.int32: INTS}


@register_model(Row)
class RowModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, row: Row) -> None:
        super().__init__(manager, row, KINDS[row])


def row(array: Any, at: int) -> Any:
    """array[at : at + 16] of float32 or int32."""
    return array[at : at + CHUNK].copy()


def fill(x: Any) -> Any:
    """A float32 sixteen times."""
    return np.full(CHUNK, x, np.float32)


def look_up(table: Any, index: Any) -> Any:
    """table[index & 15] for each lane of `index`."""
    return table[index & 15]


def pick(table: Any, packed: Any, i: int) -> Any:
    """The table's entry for nibble i of each lane."""
    return table[(packed >> (4 * i)) & 15]


def least(distance: Any, slot: int) -> int:
    """The smallest of 16 distances (never negative) and where it is first: its bits << 32 | slot + lane.

    Of two such keys the smaller is the better candidate, and of equally good ones the earlier.
    """
    pattern = distance.view(np.uint32) & 0x7FFFFFFF
    return (int(pattern.min()) << 32) | (slot + int(pattern.argmin()))


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def constant(value: int, like: ir.Type) -> ir.Constant:
    return ir.Constant(like, [value] * CHUNK if isinstance(like, ir.VectorType) else value)


def permute(builder: Any, table: Any, index: Any) -> Any:
    """One instruction with AVX-512; else the table goes to memory and sixteen loads fetch the entries."""
    if W == 2 * CHUNK:
        return call(builder, "llvm.x86.avx512.permvar.sf.512", table.type, table, index)
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
    value = builder.load(vectors.pointer(context, builder, sig, args, 0, 1, KINDS[sig.return_type]))
    value.align = 4
    return value


def emit_fill(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = KINDS[FLOATS]
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, constant(0, KINDS[INTS]))


def emit_pick(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    table, packed, i = args
    shift = builder.mul(builder.trunc(i, ir.IntType(32)), ir.Constant(ir.IntType(32), 4))
    kind = KINDS[INTS]
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), shift, ir.Constant(ir.IntType(32), 0))
    return permute(builder, table, builder.lshr(packed, builder.shuffle_vector(first, first, constant(0, kind))))


def emit_least(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    word, long = ir.IntType(32), ir.IntType(64)
    pattern = builder.bitcast(args[0], KINDS[INTS])
    pattern = builder.and_(pattern, constant(0x7FFFFFFF, pattern.type))
    smallest = call(builder, f"llvm.vector.reduce.umin.v{CHUNK}i32", word, pattern)
    first = builder.insert_element(ir.Constant(pattern.type, ir.Undefined), smallest, ir.Constant(word, 0))
    equal = builder.icmp_unsigned("==", pattern, builder.shuffle_vector(first, first, constant(0, KINDS[INTS])))
    lane = builder.cttz(builder.zext(builder.bitcast(equal, ir.IntType(CHUNK)), long), ir.Constant(ir.IntType(1), 1))
    high = builder.shl(builder.zext(smallest, long), ir.Constant(long, 32))
    return builder.or_(high, builder.add(args[1], lane))


def type_row(array: Any, at: Any) -> Any:
    return OF_SCALAR.get(array.dtype) if isinstance(array, types.Array) and array.layout == "C" else None


def type_pick(table: Any, packed: Any, i: Any) -> Any:
    return signature(FLOATS, FLOATS, INTS, types.int64) if (table, packed) == (FLOATS, INTS) else None


define(row, type_row, emit_row, 2)
define(fill, lambda x: signature(FLOATS, types.float32), emit_fill, 1)
define(look_up, lambda t, i: FLOATS if (t, i) == (FLOATS, INTS) else None, lambda c, b, s, a: permute(b, *a), 2)
define(pick, type_pick, emit_pick, 3)
define(least, lambda d, slot: signature(types.int64, FLOATS, types.int64), emit_least, 2)
for _op, _method in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    define(
        _op,
        lambda x, y: FLOATS if (x, y) == (FLOATS, FLOATS) else None,
        lambda context, builder, sig, args, method=_method: getattr(builder, method)(*args),
        2,
        Row,
    )


def nearest_point(dims: int, levels: int) -> Callable[..., int]:
    """The search for grids of this shape, to be called as

    nearest(packed, start, stop, near, far) -> slot

    packed: the grid's Candidates.packed; start, stop: the chunks to compare. near, far: rows with the terms of the
    first 16 // levels positions, and of the others, in the order of packed's nibbles.
    """
    split = CHUNK // levels

    def nearest(packed: Any, start: int, stop: int, near: Any, far: Any) -> int:
        best = WORST
        for chunk in range(start, stop):
            codes = row(packed, chunk * CHUNK)
            distance = pick(near, codes, 0)
            for i in range(1, split):
                distance = distance + pick(near, codes, i)
            for i in range(split, dims):
                distance = distance + pick(far, codes, i)
            best = min(best, least(distance, chunk * CHUNK))
        return best & 0xFFFFFFFF

    return jitable(nearest)  # type: ignore[no-any-return]


def table_entries(dims: int, levels: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Of the 32 entries of the two tables: which position each is for (int32), and its level 2 * code + 1 (float32)."""
    split = CHUNK // levels
    entry = np.arange(2 * CHUNK)
    position = entry // CHUNK * split + np.minimum(entry % CHUNK // levels, split - 1)
    return np.minimum(position, dims - 1).astype(np.int32), (2 * (entry % CHUNK % levels) + 1).astype(np.float32)
