"""How Numba sees vectors: a type whose values are LLVM vectors, and what operators and functions on it compile to.

The vocabulary is explained in simd.py.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.core.typing.templates import signature
from numba.extending import lower_builtin, lower_cast, models, register_model, type_callable

from ggufsmith.quantize.compiler import runtime
from ggufsmith.quantize.simd import TILE, W


class Vec(types.Type):  # type: ignore[misc]
    """The Numba type of a vector of W elements; "mask" has one bit per lane."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(name=f"Vec({element} x {W})")

    def can_convert_from(self, context: Any, other: Any) -> Conversion | None:
        """Numbers are spread over the lanes (the cast is `spread`)."""
        return Conversion.safe if isinstance(other, types.Number) and self.element != "mask" else None


SCALARS: dict[str, tuple[ir.Type, Any]] = {
    "f32": (ir.FloatType(), types.float32),
    "i8": (ir.IntType(8), types.int8),
    "u8": (ir.IntType(8), types.uint8),
    "i16": (ir.IntType(16), types.int16),
    "u16": (ir.IntType(16), types.uint16),
    "i32": (ir.IntType(32), types.int32),
    "u32": (ir.IntType(32), types.uint32),
    "mask": (ir.IntType(1), types.boolean),
}
VECS = {element: Vec(element) for element in SCALARS}
F32, I32, U16, U32, MASK = (VECS[name] for name in ("f32", "i32", "u16", "u32", "mask"))
VEC_OF_SCALAR = {scalar: VECS[element] for element, (_, scalar) in SCALARS.items()}


def vector_of(element: str, lanes: int = W) -> ir.VectorType:
    """The LLVM type of a vector of this element."""
    return ir.VectorType(SCALARS[element][0], lanes)


@register_model(Vec)
class VecModel(models.PrimitiveModel):  # type: ignore[misc]
    """A vector is one LLVM vector."""

    def __init__(self, manager: Any, vec: Vec) -> None:
        super().__init__(manager, vec, vector_of(vec.element))


# ---- how a Python function or operator gets a compiled meaning ----

Emit = Callable[..., Any]


def define(function: Any, typer: Callable[..., Any], emit: Emit, arity: int, first: Any = types.Any) -> None:
    """`function` means `emit(context, builder, sig, args)` when `typer(*argument types)` gives a type or a
    signature.
    """

    # Numba reads the number of arguments from the signature of the typer, so each arity has its own wrapper.
    wrappers: dict[int, Callable[[Any], Any]] = {
        0: lambda context: lambda: typer(),
        1: lambda context: lambda x: typer(x),
        2: lambda context: lambda x, y: typer(x, y),
        3: lambda context: lambda x, y, z: typer(x, y, z),
        6: lambda context: lambda a, b, c, d, e, f: typer(a, b, c, d, e, f),
    }
    type_callable(function)(wrappers[arity])

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # Vectors that find no register lie in one cache line each. llvmlite prints this only beside other attributes.
        builder.function.attributes.alignstack = 64
        builder.function.attributes.add("norecurse")
        return emit(context, builder, sig, args)

    lower_builtin(function, *[first] * arity)(lower)


def splat(builder: Any, scalar: Any) -> Any:
    """A scalar LLVM value in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, W), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), W), [0] * W))


@lower_cast(types.Number, Vec)  # type: ignore[untyped-decorator]
def spread(context: Any, builder: Any, source: Any, target: Vec, value: Any) -> Any:
    """The cast of a number to a vector: it is converted to the element type first."""
    return splat(builder, context.cast(builder, value, source, SCALARS[target.element][1]))


def same(*operands: Any) -> Vec | None:
    """The one vector type among operands that are vectors or numbers; None if there is none, or more than one."""
    vecs = {t for t in operands if isinstance(t, Vec)}
    fits = len(vecs) == 1 and all(isinstance(t, Vec | types.Number) for t in operands)
    return vecs.pop() if fits else None


def lift(op: Any, emit: Callable[[Any, Vec, Any, Any], Any], accepts: str, mask: bool = False) -> None:
    """Teach a binary operator or function to act on vectors. `accepts`: the letters f, i, u, m of its element types."""

    def typer(x: Any, y: Any) -> Any:
        vec = same(x, y)
        if vec is None or vec.element[0] not in accepts:
            return None
        return signature(MASK if mask else vec, vec, vec)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, sig.args[0], *args)

    define(op, typer, lower, 2, Vec)


def by_kind(floats: str, signed: str, unsigned: str = "") -> Callable[[Any, Vec, Any, Any], Any]:
    """Emit the builder's method of this name for the kind of element."""
    names = {"f": floats, "i": signed, "u": unsigned or signed, "m": unsigned or signed}
    return lambda builder, vec, x, y: getattr(builder, names[vec.element[0]])(x, y)


def comparison(symbol: str) -> Callable[[Any, Vec, Any, Any], Any]:
    """Emit an ordered comparison, as IEEE 754 and Python have it; masks result."""

    def emit(builder: Any, vec: Vec, x: Any, y: Any) -> Any:
        if vec.element == "f32":  # only != is true of a NaN
            return (builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered)(symbol, x, y)
        return (builder.icmp_signed if vec.element[0] == "i" else builder.icmp_unsigned)(symbol, x, y)

    return emit


for _name, _emit, _accepts in (
    ("add", by_kind("fadd", "add"), "fiu"),
    ("sub", by_kind("fsub", "sub"), "fiu"),
    ("mul", by_kind("fmul", "mul"), "fiu"),
    ("truediv", by_kind("fdiv", ""), "f"),
    ("and", by_kind("", "and_"), "ium"),
    ("or", by_kind("", "or_"), "ium"),
    ("xor", by_kind("", "xor"), "ium"),
    ("lshift", by_kind("", "shl"), "iu"),
    ("rshift", by_kind("", "ashr", "lshr"), "iu"),
):
    for _method in (f"__{_name}__", f"__i{_name}__"):  # x + y and x += y
        lift(getattr(operator, _method), _emit, _accepts)
for _op, _symbol in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    lift(_op, comparison(_symbol), "fiu", mask=True)


def unary(op: Any, emit: Callable[[Any, Vec, Any], Any], accepts: str) -> None:
    """Teach a function or operator of one vector. `accepts`: the letters f, i, u, m of its element types."""

    def typer(x: Any) -> Any:
        return x if isinstance(x, Vec) and x.element[0] in accepts else None

    define(op, typer, lambda context, builder, sig, args: emit(builder, sig.args[0], *args), 1, Vec)


unary(operator.neg, lambda builder, vec, x: builder.fneg(x) if vec.element == "f32" else builder.neg(x), "fi")
unary(operator.invert, lambda builder, vec, x: builder.not_(x), "ium")


def llvm_unary(name: str) -> Callable[[Any, Vec, Any], Any]:
    """Emit the LLVM intrinsic of this name on f32 vectors."""

    def emit(builder: Any, vec: Vec, x: Any) -> Any:
        kind = ir.FunctionType(x.type, [x.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{W}f32"), [x])

    return emit


def type_multiply_add(x: Any, y: Any, z: Any) -> Any:
    """See simd.multiply_add; None for other elements than f32."""
    return signature(F32, F32, F32, F32) if same(x, y, z) == F32 else None


def emit_multiply_add(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """One instruction where the CPU has it, else a call of C's fmaf for each lane."""
    kind = ir.FunctionType(args[0].type, [args[0].type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{W}f32"), args)


# ---- memory ----


def of_array(array: Any, *indices: Any) -> Vec | None:
    """The vector type of a C-contiguous 1-D array that is indexed by integers; None for other arguments."""
    plain = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    integers = all(isinstance(i, types.Integer) for i in indices)
    return VEC_OF_SCALAR.get(array.dtype) if plain and integers and array.dtype != types.boolean else None


def pointer(context: Any, builder: Any, sig: Any, args: Any, array: int, at: int, kind: ir.Type) -> Any:
    """The address of element args[at] of array args[array], as a pointer to `kind`."""
    data = context.make_array(sig.args[array])(context, builder, args[array]).data
    offset = context.cast(builder, args[at], sig.args[at], types.intp)
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def unaligned(value: Any) -> Any:
    """A load or store at an address of which nothing is known."""
    value.align = 1
    return value


def type_scratch(n: Any, dtype: Any) -> Any:
    """The type of `scratch`: an aligned array of this dtype."""
    plain = isinstance(n, types.Integer) and isinstance(dtype, types.NumberClass)
    return types.Array(dtype.dtype, 1, "C") if plain else None


def emit_scratch(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """An array whose owner is the cache line before it; see runtime.py."""
    n = context.cast(builder, args[0], sig.args[0], types.intp)
    size = sig.return_type.dtype.bitwidth // 8
    owner = runtime.allocate(builder, builder.mul(n, ir.Constant(n.type, size)))
    array = context.make_array(sig.return_type)(context, builder)
    array.meminfo, array.parent = owner, ir.Constant(array.parent.type, None)
    array.data = builder.bitcast(runtime.data_of(builder, owner), array.data.type)
    array.nitems, array.itemsize = n, ir.Constant(n.type, size)
    array.shape, array.strides = cgutils.pack_array(builder, [n]), cgutils.pack_array(builder, [array.itemsize])
    return array._getvalue()


def emit_load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See simd.load."""
    vec = sig.return_type
    return unaligned(builder.load(pointer(context, builder, sig, args, 0, 1, vector_of(vec.element))))


def emit_load_one(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See simd.load_one. Indexing, as Numba has it, would look for negative indices in every inner loop."""
    scalar = SCALARS[sig.return_type.element][0]
    return splat(builder, builder.load(pointer(context, builder, sig, args, 0, 1, scalar)))


def emit_store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See simd.store."""
    vec = sig.args[2]
    unaligned(builder.store(args[2], pointer(context, builder, sig, args, 0, 1, vector_of(vec.element))))
    return context.get_dummy_value()


def emit_gather(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """One instruction for 32-bit elements where the CPU has it; 8- and 16-bit elements lane by lane."""
    vec = sig.return_type
    scalar, size = SCALARS[vec.element][0], SCALARS[vec.element][1].bitwidth // 8
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    longs, flags = ir.VectorType(ir.IntType(64), W), vector_of("mask")
    index = (builder.sext if sig.args[1].element[0] == "i" else builder.zext)(args[1], longs)
    offset = builder.mul(index, ir.Constant(longs, [size] * W))
    address = builder.add(splat(builder, builder.ptrtoint(data, ir.IntType(64))), offset)
    undefined = ir.Constant(vector_of(vec.element), ir.Undefined)
    if size == 4:
        pointers = builder.inttoptr(address, ir.VectorType(data.type, W))
        name = f"llvm.masked.gather.v{W}{'f32' if vec.element == 'f32' else 'i32'}.v{W}p0"
        kind = ir.FunctionType(undefined.type, [pointers.type, ir.IntType(32), flags, undefined.type])
        call = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(call, [pointers, ir.Constant(ir.IntType(32), 1), ir.Constant(flags, [1] * W), undefined])
    result = undefined
    for lane in range(W):
        here = ir.Constant(ir.IntType(32), lane)
        value = builder.load(builder.inttoptr(builder.extract_element(address, here), scalar.as_pointer()))
        result = builder.insert_element(result, unaligned(value), here)
    return result


def emit_transpose(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """log2(TILE) rounds of two-input shuffles; each round swaps one bit of the row with the same bit of the column."""
    vec = of_array(sig.args[0])
    kind = vector_of(vec.element, TILE)  # type: ignore[union-attr]
    intp = [context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2, 4, 5)]
    source, target = (context.make_array(sig.args[i])(context, builder, args[i]).data for i in (0, 3))

    def row(data: Any, start: Any, stride: Any, i: int) -> Any:
        offset = builder.add(start, builder.mul(stride, ir.Constant(stride.type, i)))
        return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())

    rows = [unaligned(builder.load(row(source, intp[0], intp[1], i))) for i in range(TILE)]
    bit = 1
    while bit < TILE:
        low = [j if not j & bit else TILE + j - bit for j in range(TILE)]
        high = [j + bit if not j & bit else TILE + j for j in range(TILE)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), TILE), m) for m in (low, high)]
        for i in range(TILE):
            if not i & bit:
                pair = rows[i], rows[i + bit]
                rows[i], rows[i + bit] = (builder.shuffle_vector(*pair, m) for m in masks)
        bit *= 2
    for i, value in enumerate(rows):
        unaligned(builder.store(value, row(target, intp[2], intp[3], i)))
    return context.get_dummy_value()


def type_broadcast(x: Any) -> Any:
    """See simd.broadcast; None for what is not a number."""
    if isinstance(x, types.Float):
        return signature(F32, types.float32)
    if isinstance(x, types.Integer):
        return signature(U32, types.uint32) if x == types.uint32 else signature(I32, types.int32)
    return None


def type_store(array: Any, at: Any, v: Any) -> Any:
    """See simd.store; None if array and vector differ in their elements."""
    vec = of_array(array, at)
    return signature(types.void, array, at, vec) if vec is not None and same(vec, v) else None


def type_gather(array: Any, index: Any) -> Any:
    """See simd.gather."""
    return of_array(array) if index in (I32, U32) else None


def type_transpose(source: Any, at: Any, stride: Any, target: Any, to: Any, step: Any) -> Any:
    """See simd.transpose; None if the arrays differ in their elements."""
    return types.void if of_array(source, at, stride) and of_array(source) == of_array(target, to, step) else None


def emit_lanes(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See simd.lanes."""
    return ir.Constant(vector_of("i32"), list(range(W)))


def type_select(mask: Any, x: Any, y: Any) -> Any:
    """See simd.select; None if neither choice is a vector, or they differ."""
    vec = same(x, y)
    return signature(vec, MASK, vec, vec) if mask == MASK and vec is not None else None


def emit_any(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """See simd.any_lane: the mask as one integer, compared with 0."""
    whole = builder.bitcast(args[0], ir.IntType(W))
    return builder.icmp_unsigned("!=", whole, ir.Constant(whole.type, 0))


# ---- conversions ----

INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32")


def define_cast(
    function: Any, sources: tuple[str, ...], target: str, emit: Callable[[Any, Vec, Any, Any], Any]
) -> None:
    """Teach a conversion from each of the element types `sources` to `target`."""

    def typer(x: Any) -> Any:
        return VECS[target] if isinstance(x, Vec) and x.element in sources else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, sig.args[0], args[0], vector_of(target))

    define(function, typer, lower, 1, Vec)


def resize(builder: Any, vec: Vec, x: Any, kind: Any) -> Any:
    """Integers widened (by their sign or by zeros) or cut to their low bits, and floats to integers, as C converts."""
    if vec.element == "f32":
        return builder.fptosi(x, kind)
    have, want = x.type.element.width, kind.element.width
    if have == want:
        return x
    return builder.trunc(x, kind) if have > want else (builder.sext if vec.element[0] == "i" else builder.zext)(x, kind)


def emit_truncate(builder: Any, vec: Vec, x: Any, kind: Any) -> Any:
    """See simd.truncate: what does not fit is replaced before the instruction, which is undefined for it."""
    magnitude = llvm_unary("fabs")(builder, vec, x)
    limit, zero = (ir.Constant(x.type, [value] * W) for value in (2147483648.0, 0.0))
    lowest = ir.Constant(kind, [-2147483648] * W)
    fits = builder.fcmp_ordered("<", magnitude, limit)
    return builder.select(fits, builder.fptosi(builder.select(fits, x, zero), kind), lowest)
