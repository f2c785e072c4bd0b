"""What the functions of simd.py compile to."""

from numba import types

from ggufsmith.quantize import simd
from ggufsmith.quantize.compiler import vectors

vectors.define(simd.scratch, vectors.type_scratch, vectors.emit_scratch, 2)
vectors.define(simd.lanes, lambda: vectors.I32, vectors.emit_lanes, 0)
vectors.define(
    simd.broadcast, vectors.type_broadcast, lambda context, builder, sig, args: vectors.splat(builder, args[0]), 1
)
vectors.define(simd.load, vectors.of_array, vectors.emit_load, 2)
vectors.define(simd.load_one, vectors.of_array, vectors.emit_load_one, 2)
vectors.define(simd.store, vectors.type_store, vectors.emit_store, 3)
vectors.define(simd.gather, vectors.type_gather, vectors.emit_gather, 2)
vectors.define(simd.transpose, vectors.type_transpose, vectors.emit_transpose, 6)

vectors.define(simd.select, vectors.type_select, lambda context, builder, sig, args: builder.select(*args), 3)
vectors.define(simd.any_lane, lambda mask: types.boolean if mask == vectors.MASK else None, vectors.emit_any, 1)
vectors.lift(simd.minimum, lambda b, vec, x, y: b.select(vectors.comparison("<")(b, vec, x, y), x, y), "fiu")
vectors.lift(simd.maximum, lambda b, vec, x, y: b.select(vectors.comparison(">")(b, vec, x, y), x, y), "fiu")

vectors.define(simd.multiply_add, vectors.type_multiply_add, vectors.emit_multiply_add, 3)
vectors.unary(simd.absolute, vectors.llvm_unary("fabs"), "f")
vectors.unary(simd.sqrt, vectors.llvm_unary("sqrt"), "f")
vectors.define_cast(simd.bits, ("f32",), "u32", lambda b, vec, x, kind: b.bitcast(x, kind))
vectors.define_cast(simd.from_bits, ("u32", "i32"), "f32", lambda b, vec, x, kind: b.bitcast(x, kind))
vectors.define_cast(
    simd.to_f32,
    vectors.INTEGERS,
    "f32",
    lambda b, vec, x, kind: (b.sitofp if vec.element[0] == "i" else b.uitofp)(x, kind),
)
vectors.define_cast(simd.truncate, ("f32",), "i32", vectors.emit_truncate)
for _function, _target in (
    (simd.to_u8, "u8"),
    (simd.to_i8, "i8"),
    (simd.to_u16, "u16"),
    (simd.to_i16, "i16"),
    (simd.to_u32, "u32"),
    (simd.to_i32, "i32"),
):
    _floats = ("f32",) if _function is simd.to_i32 else ()
    vectors.define_cast(_function, (*vectors.INTEGERS, "mask", *_floats), _target, vectors.resize)
