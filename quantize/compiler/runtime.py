"""What counts the references of arrays that kernels make: a little of Numba's runtime, as part of every kernel.

The owner of an array is a cache line before its data: the number of references, and the address that the allocator
gave. One thread runs a kernel, so that counting needs no atomic instructions.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from ggufsmith.quantize.loading import ALLOCATOR

LINE = 64  # bytes of a cache line
WORD, ADDRESS = ir.IntType(64), ir.IntType(8).as_pointer()
ALLOCATE, RELEASE = ir.FunctionType(ADDRESS, [WORD]), ir.FunctionType(ir.VoidType(), [ADDRESS])


def _word_at(builder: Any, owner: Any, i: int) -> Any:
    """The address of word i of an owner."""
    return builder.gep(builder.bitcast(owner, WORD.as_pointer()), [ir.Constant(WORD, i)])


def allocate(builder: Any, size: Any) -> Any:
    """The owner of `size` uninitialised bytes, with one reference."""
    function = cgutils.get_or_insert_function(builder.module, ALLOCATE, ALLOCATOR[0])
    given = builder.call(function, [builder.add(size, ir.Constant(WORD, 2 * LINE))])
    address = builder.add(builder.ptrtoint(given, WORD), ir.Constant(WORD, LINE - 1))
    owner = builder.inttoptr(builder.and_(address, ir.Constant(WORD, -LINE)), ADDRESS)
    builder.store(ir.Constant(WORD, 1), _word_at(builder, owner, 0))
    builder.store(builder.ptrtoint(given, WORD), _word_at(builder, owner, 1))
    return owner


def data_of(builder: Any, owner: Any) -> Any:
    """The address of an owner's data."""
    return builder.gep(owner, [ir.Constant(WORD, LINE)])


def define(module: ir.Module) -> None:
    """Put NRT_incref and NRT_decref into a module, to which Numba leaves counting. An owner of 0 is nobody."""
    # Numba removes pairs of calls that cancel each other, so that they must not be inlined before.
    for name, step in (("NRT_incref", 1), ("NRT_decref", -1)):
        function = cgutils.get_or_insert_function(module, RELEASE, name)
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block())
        (owner,) = function.args
        with builder.if_then(builder.icmp_unsigned("!=", owner, ir.Constant(ADDRESS, None))):
            place = _word_at(builder, owner, 0)
            count = builder.add(builder.load(place), ir.Constant(WORD, step))
            builder.store(count, place)
            if step < 0:
                with builder.if_then(builder.icmp_unsigned("==", count, ir.Constant(WORD, 0))):
                    release = cgutils.get_or_insert_function(module, RELEASE, ALLOCATOR[1])
                    builder.call(release, [builder.inttoptr(builder.load(_word_at(builder, owner, 1)), ADDRESS)])
        builder.ret_void()
