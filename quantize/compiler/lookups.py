"""Look-ups in tables of 16 or 32 float32 that lie in registers.

AVX-512 looks up 16 lanes in one or two registers with one instruction. AVX2 looks up eight lanes in one register of
eight, and bits 3 and 4 of the index choose among what they find in two or four. NEON looks up bytes, in four registers
at once. Other CPUs have nothing of the kind.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from ggufsmith.quantize import cpu
from ggufsmith.quantize.simd import W

WORD, BYTES = ir.IntType(32), ir.VectorType(ir.IntType(8), 16)
NEON = cpu.level().arch == "aarch64"
SIZE = {32: 16, 16: 8}.get(W, 4 if NEON else 0)  # numbers in a register; 0: tables stay in memory


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def part(builder: Any, vector: Any, first: int, count: int) -> Any:
    """The lanes first to first + count - 1."""
    lanes = ir.Constant(ir.VectorType(WORD, count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def joined(builder: Any, parts: list[Any]) -> Any:
    """Vectors of one type, a power of two of them, one after the other."""
    while len(parts) > 1:
        lanes = ir.Constant(ir.VectorType(WORD, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [builder.shuffle_vector(one, two, lanes) for one, two in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def registers(builder: Any, table: Any) -> list[Any]:
    """A table that is one LLVM vector, in registers."""
    return [part(builder, table, first, SIZE) for first in range(0, table.type.count, SIZE)]


def look_up(builder: Any, table: list[Any], index: Any) -> Any:
    """table[index] for each lane of 32-bit indices; the bits above those that number entries do not count."""
    find = in_wide if W == 32 else in_bytes if NEON else in_octets
    lanes = range(0, index.type.count, SIZE)
    return joined(builder, [find(builder, table, part(builder, index, first, SIZE)) for first in lanes])


def in_wide(builder: Any, table: list[Any], index: Any) -> Any:
    """With AVX-512."""
    if len(table) == 1:
        return call(builder, "llvm.x86.avx512.permvar.sf.512", table[0].type, table[0], index)
    return call(builder, "llvm.x86.avx512.vpermi2var.ps.512", table[0].type, table[0], index, table[1])


def in_octets(builder: Any, table: list[Any], index: Any) -> Any:
    """With AVX2."""
    found = [call(builder, "llvm.x86.avx2.permps", each.type, each, index) for each in table]
    bit = 3
    while len(found) > 1:
        shifted = builder.shl(index, ir.Constant(index.type, [31 - bit] * SIZE))
        upper = builder.icmp_signed("<", shifted, ir.Constant(index.type, [0] * SIZE))
        found = [builder.select(upper, two, one) for one, two in zip(found[::2], found[1::2], strict=True)]
        bit += 1
    return found[0]


def in_bytes(builder: Any, table: list[Any], index: Any) -> Any:
    """With NEON: byte k of lane l is byte 4 * index + k of the table. What is beyond four registers is 0, or kept."""
    masked = builder.and_(index, ir.Constant(index.type, [SIZE * len(table) - 1] * SIZE))
    places = builder.mul(masked, ir.Constant(index.type, [0x04040404] * SIZE))
    places = builder.bitcast(builder.add(places, ir.Constant(index.type, [0x03020100] * SIZE)), BYTES)
    parts = [builder.bitcast(each, BYTES) for each in table]
    found = call(builder, "llvm.aarch64.neon.tbl4.v16i8", BYTES, *parts[:4], places)
    if len(parts) > 4:
        beyond = builder.sub(places, ir.Constant(BYTES, [64] * 16))
        found = call(builder, "llvm.aarch64.neon.tbx4.v16i8", BYTES, found, *parts[4:], beyond)
    return builder.bitcast(found, table[0].type)
