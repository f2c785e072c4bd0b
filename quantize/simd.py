"""A small vocabulary of vectors, for kernels that read like scalar code and move W blocks at once.

    x = load(s, i * W)                  # W float32, one per lane
    q = nearest(x * inverse)            # operators and functions act on every lane
    q = minimum(maximum(q, 0), 15)      # scalars are spread over the lanes
    store(s, i * W, select(x < 0, -q, q))

**The rule.** Lane l belongs to block l, for the whole kernel. A lane does exactly the scalar algorithm's float32
operations in the scalar algorithm's order, so results do not depend on W, on the CPU or on how rows are cut into
chunks. Nothing here reduces across lanes except `any_lane`, which may only decide whether work can be skipped.

**Two ways to run it.** Inside `kernel` (quantize/cache.py) every call becomes one or a few machine instructions (LLVM
vectors, through Numba's extension interface). Outside, the same functions work on NumPy arrays of shape (W,), so that
`some_kernel.py_func(...)` is the readable twin that the tests compare with. Functions made of the vocabulary are
decorated with `jitable`: plain Python outside, compiled inside.

**Types.** A vector has the element type of the array that it was loaded from: float32 `f32`, integers `i8 u8 i16 u16
i32 u32`; comparisons give masks. Operators: + - * / (floats), + - * & | ^ ~ << >> (integers; >> shifts in zeros for
unsigned elements and copies of the sign for signed), comparisons, & | ^ ~ on masks. Both sides have the same type, or
one is a Python or NumPy scalar, which takes the vector's type. Write constants that matter as `f32(0.1)`. A variable
keeps its type: start an accumulator with `broadcast(f32(0))`, not with 0.

**Floats** behave as IEEE 754 says: no contraction to FMA, no reassociation, denormals kept.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.core.typeconv import Conversion
from numba.core.typing.templates import signature
from numba.extending import lower_builtin, lower_cast, models, register_jitable, register_model, type_callable

f32 = np.float32
Function = TypeVar("Function", bound=Callable[..., Any])


def jitable(function: Function) -> Function:
    """A function made of the vocabulary: plain Python outside kernels, compiled inside."""
    return register_jitable(function)  # type: ignore[no-any-return]


def host_lanes() -> int:
    """Lanes per vector: two registers' worth, which hides the latency of chains of additions.

    NUMBA_CPU_FEATURES, where set, says what the CPU has.
    """
    if config.CPU_FEATURES is not None:
        features = set(config.CPU_FEATURES.split(","))
    else:
        features = {f"+{name}" for name, present in binding.get_host_cpu_features().items() if present}
    return 32 if "+avx512f" in features else 16 if "+avx2" in features else 8


W = host_lanes()
TILE = min(W, 16)  # side of the square that `transpose` moves


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
    return ir.VectorType(SCALARS[element][0], lanes)


@register_model(Vec)
class VecModel(models.PrimitiveModel):  # type: ignore[misc]
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
    lower_builtin(function, *[first] * arity)(emit)


def splat(builder: Any, scalar: Any) -> Any:
    """A scalar LLVM value in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, W), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), W), [0] * W))


@lower_cast(types.Number, Vec)  # type: ignore[untyped-decorator]
def spread(context: Any, builder: Any, source: Any, target: Vec, value: Any) -> Any:
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
    def typer(x: Any) -> Any:
        return x if isinstance(x, Vec) and x.element[0] in accepts else None

    define(op, typer, lambda context, builder, sig, args: emit(builder, sig.args[0], *args), 1, Vec)


unary(operator.neg, lambda builder, vec, x: builder.fneg(x) if vec.element == "f32" else builder.neg(x), "fi")
unary(operator.invert, lambda builder, vec, x: builder.not_(x), "ium")


def llvm_unary(name: str) -> Callable[[Any, Vec, Any], Any]:
    def emit(builder: Any, vec: Vec, x: Any) -> Any:
        kind = ir.FunctionType(x.type, [x.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{W}f32"), [x])

    return emit


# ---- lanes and memory ----


@jitable
def scratch(n: int, dtype: Any) -> Any:
    """An uninitialised 1-D array that starts at a cache line."""
    raw = np.empty(n + 64, dtype)
    start = -raw.ctypes.data % 64 // raw.itemsize
    return raw[start : start + n]


def lanes() -> Any:
    """0, 1, …, W-1 as i32."""
    return np.arange(W, dtype=np.int32)


def broadcast(x: Any) -> Any:
    """A scalar in every lane: f32 from floats, u32 from uint32, i32 from other integers."""
    dtype = np.float32 if isinstance(x, float | np.floating) else np.uint32 if isinstance(x, np.uint32) else np.int32
    return np.full(W, x, dtype)


def load(array: Any, at: int) -> Any:
    """array[at : at + W] of a C-contiguous 1-D array, any alignment. Nothing is checked."""
    return array[at : at + W].copy()


def store(array: Any, at: int, v: Any) -> None:
    """array[at : at + W] = v; the element types are the same."""
    array[at : at + W] = v


def gather(array: Any, index: Any) -> Any:
    """array[index] for an i32 or u32 vector of indices into a C-contiguous 1-D array. Nothing is checked."""
    return array[index]


def transpose(source: Any, at: int, stride: int, target: Any, to: int, step: int) -> None:
    """Move a square of TILE x TILE elements: target[to + j * step + i] = source[at + i * stride + j]."""
    square = np.lib.stride_tricks.as_strided(source[at:], (TILE, TILE), (stride * source.itemsize, source.itemsize))
    for j, column in enumerate(square.T.copy()):
        target[to + j * step : to + j * step + TILE] = column


def of_array(array: Any, *indices: Any) -> Vec | None:
    plain = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    integers = all(isinstance(i, types.Integer) for i in indices)
    return VEC_OF_SCALAR.get(array.dtype) if plain and integers and array.dtype != types.boolean else None


def pointer(context: Any, builder: Any, sig: Any, args: Any, array: int, at: int, kind: ir.Type) -> Any:
    """The address of element args[at] of array args[array], as a pointer to `kind`."""
    data = context.make_array(sig.args[array])(context, builder, args[array]).data
    offset = context.cast(builder, args[at], sig.args[at], types.intp)
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def unaligned(value: Any, vec: Any) -> Any:
    value.align = max(1, SCALARS[vec.element][1].bitwidth // 8)
    return value


def emit_load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    vec = sig.return_type
    return unaligned(builder.load(pointer(context, builder, sig, args, 0, 1, vector_of(vec.element))), vec)


def emit_store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    vec = sig.args[2]
    unaligned(builder.store(args[2], pointer(context, builder, sig, args, 0, 1, vector_of(vec.element))), vec)
    return context.get_dummy_value()


def emit_gather(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """llvm.masked.gather over a vector of addresses; 8- and 16-bit elements, which no CPU gathers, lane by lane."""
    element = sig.return_type.element
    scalar = SCALARS[element][0]
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    wide = builder.sext if sig.args[1].element[0] == "i" else builder.zext
    index = wide(args[1], ir.VectorType(ir.IntType(64), W))
    result = ir.Constant(vector_of(element), ir.Undefined)
    for lane in range(W):
        here = ir.Constant(ir.IntType(32), lane)
        address = builder.gep(data, [builder.extract_element(index, here)])
        value = builder.load(builder.bitcast(address, scalar.as_pointer()))
        result = builder.insert_element(result, value, here)
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

    rows = [unaligned(builder.load(row(source, intp[0], intp[1], i)), vec) for i in range(TILE)]
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
        unaligned(builder.store(value, row(target, intp[2], intp[3], i)), vec)
    return context.get_dummy_value()


def type_broadcast(x: Any) -> Any:
    if isinstance(x, types.Float):
        return signature(F32, types.float32)
    if isinstance(x, types.Integer):
        return signature(U32, types.uint32) if x == types.uint32 else signature(I32, types.int32)
    return None


def type_store(array: Any, at: Any, v: Any) -> Any:
    vec = of_array(array, at)
    return signature(types.void, array, at, vec) if vec is not None and same(vec, v) else None


def type_gather(array: Any, index: Any) -> Any:
    return of_array(array) if index in (I32, U32) else None


def type_transpose(source: Any, at: Any, stride: Any, target: Any, to: Any, step: Any) -> Any:
    return types.void if of_array(source, at, stride) and of_array(source) == of_array(target, to, step) else None


def emit_lanes(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return ir.Constant(vector_of("i32"), list(range(W)))


define(lanes, lambda: I32, emit_lanes, 0)
define(broadcast, type_broadcast, lambda context, builder, sig, args: splat(builder, args[0]), 1)
define(load, of_array, emit_load, 2)
define(store, type_store, emit_store, 3)
define(gather, type_gather, emit_gather, 2)
define(transpose, type_transpose, emit_transpose, 6)


# ---- choosing ----


def select(mask: Any, x: Any, y: Any) -> Any:
    """x where the mask is set, else y; one of them may be a scalar."""
    dtype = x.dtype if isinstance(x, np.ndarray) else y.dtype
    return np.where(mask, x, y).astype(dtype)


def minimum(x: Any, y: Any) -> Any:
    """x where x < y, else y; so y where either is NaN."""
    return select(x < y, x, y)


def maximum(x: Any, y: Any) -> Any:
    """x where x > y, else y; so y where either is NaN."""
    return select(x > y, x, y)


def any_lane(mask: Any) -> bool:
    """Whether the mask is set in some lane; only to skip work that would change nothing."""
    return bool(mask.any())


def type_select(mask: Any, x: Any, y: Any) -> Any:
    vec = same(x, y)
    return signature(vec, MASK, vec, vec) if mask == MASK and vec is not None else None


def emit_any(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    whole = builder.bitcast(args[0], ir.IntType(W))
    return builder.icmp_unsigned("!=", whole, ir.Constant(whole.type, 0))


define(select, type_select, lambda context, builder, sig, args: builder.select(*args), 3)
define(any_lane, lambda mask: types.boolean if mask == MASK else None, emit_any, 1)
lift(minimum, lambda b, vec, x, y: b.select(comparison("<")(b, vec, x, y), x, y), "fiu")
lift(maximum, lambda b, vec, x, y: b.select(comparison(">")(b, vec, x, y), x, y), "fiu")


# ---- one lane's arithmetic ----


def absolute(x: Any) -> Any:
    """|x| of f32: the sign bit cleared."""
    return np.abs(x)


def sqrt(x: Any) -> Any:
    """The correctly rounded square root of f32."""
    return np.sqrt(x)


def bits(x: Any) -> Any:
    """The bits of f32 as u32."""
    return x.view(np.uint32)


def from_bits(x: Any) -> Any:
    """f32 from its bits in u32 or i32."""
    return x.view(np.float32)


unary(absolute, llvm_unary("fabs"), "f")
unary(sqrt, llvm_unary("sqrt"), "f")


def define_cast(
    function: Any, sources: tuple[str, ...], target: str, emit: Callable[[Any, Vec, Any, Any], Any]
) -> None:
    def typer(x: Any) -> Any:
        return VECS[target] if isinstance(x, Vec) and x.element in sources else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, sig.args[0], args[0], vector_of(target))

    define(function, typer, lower, 1, Vec)


def resize(builder: Any, vec: Vec, x: Any, kind: Any) -> Any:
    """An integer vector widened (by its sign or by zeros) or cut to its low bits, as C converts; floats cut to integers."""
    if vec.element == "f32":
        return builder.fptosi(x, kind)
    have, want = x.type.element.width, kind.element.width
    if have == want:
        return x
    return builder.trunc(x, kind) if have > want else (builder.sext if vec.element[0] == "i" else builder.zext)(x, kind)


INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32")


def to_f32(x: Any) -> Any:
    """Integers to f32, rounded to nearest even."""
    return x.astype(np.float32)


def to_u8(x: Any) -> Any:
    """The low 8 bits of each integer."""
    return x.astype(np.uint8)


def to_i8(x: Any) -> Any:
    """The low 8 bits of each integer, as a signed number."""
    return x.astype(np.int8)


def to_u16(x: Any) -> Any:
    """Integers as u16: zeros or copies of the sign in front, or the low 16 bits."""
    return x.astype(np.uint16)


def to_i16(x: Any) -> Any:
    """Integers as i16: zeros or copies of the sign in front, or the low 16 bits."""
    return x.astype(np.int16)


def to_u32(x: Any) -> Any:
    """Integers (and masks: 0 or 1) as u32."""
    return x.astype(np.uint32)


def to_i32(x: Any) -> Any:
    """Integers (and masks: 0 or 1) as i32; f32 towards zero, which must fit (`truncate` takes anything)."""
    return x.astype(np.int32)


def truncate(x: Any) -> Any:
    """f32 to i32 towards zero; -2**31 for NaN and for what does not fit, as the x86 instruction does."""
    fits = absolute(x) < f32(2147483648.0)
    return np.where(fits, np.where(fits, x, 0).astype(np.int32), -2147483648).astype(np.int32)


def emit_truncate(builder: Any, vec: Vec, x: Any, kind: Any) -> Any:
    magnitude = llvm_unary("fabs")(builder, vec, x)
    limit, zero = (ir.Constant(x.type, [value] * W) for value in (2147483648.0, 0.0))
    lowest = ir.Constant(kind, [-2147483648] * W)
    fits = builder.fcmp_ordered("<", magnitude, limit)
    return builder.select(fits, builder.fptosi(builder.select(fits, x, zero), kind), lowest)


define_cast(bits, ("f32",), "u32", lambda b, vec, x, kind: b.bitcast(x, kind))
define_cast(from_bits, ("u32", "i32"), "f32", lambda b, vec, x, kind: b.bitcast(x, kind))
define_cast(to_f32, INTEGERS, "f32", lambda b, vec, x, kind: (b.sitofp if vec.element[0] == "i" else b.uitofp)(x, kind))
define_cast(truncate, ("f32",), "i32", emit_truncate)
for _function, _target in (
    (to_u8, "u8"),
    (to_i8, "i8"),
    (to_u16, "u16"),
    (to_i16, "i16"),
    (to_u32, "u32"),
    (to_i32, "i32"),
):
    define_cast(_function, (*INTEGERS, "mask", *(("f32",) if _function is to_i32 else ())), _target, resize)


# ---- made of the above ----

MAGIC = f32(12582912.0)  # 1.5 * 2**23: the sum with it has the nearest integer (ties to even) in its low mantissa bits


@jitable
def nearest(x: Any) -> Any:
    """The nearest integer of f32, ties to even, as f32; for |x| > 2**22 whatever `nearest_int` of ggml-quants.c gives.

    The mantissa of x + 1.5 * 2**23 is read as an integer: here it is put below the exponent of 2**23 instead.
    """
    return from_bits((bits(x + MAGIC) & 0x007FFFFF) | 0x4B000000) - MAGIC


@jitable
def nearest_small(x: Any) -> Any:
    """`nearest` for |x| < 2**22, in two operations."""
    return (x + MAGIC) - MAGIC


@jitable
def clamp(x: Any, low: Any, high: Any) -> Any:
    """x kept between low and high."""
    return maximum(minimum(x, high), low)


@jitable
def round_away(x: Any) -> Any:
    """C's roundf, for |x| < 2**22: the nearest integer, ties away from zero, as i32.

    0.49999997, the number below a half, is added: a half itself would lift 0.49999997 to 1.
    """
    return to_i32(x + from_bits((bits(x) & 0x80000000) | 0x3EFFFFFF))


@jitable
def half_to_f32(h: Any) -> Any:
    """float16 bits in u16 to f32, exactly; integer operations, so equal on every CPU."""
    h = to_u32(h)
    magnitude = h & 0x7FFF
    shifted = magnitude << 13
    normal = shifted + select(magnitude >= 0x7C00, broadcast(np.uint32(0x70000000)), 0x38000000)
    tiny = bits(from_bits(magnitude | 0x3F000000) - f32(0.5))
    return from_bits(select(magnitude < 0x0400, tiny, normal) | ((h & 0x8000) << 16))


@jitable
def f32_to_half(x: Any) -> Any:
    """f32 to float16 bits in u16, to nearest even; 65520 and above become infinite, NaN keeps its sign: 0x7E00."""
    b = bits(x)
    magnitude = b & 0x7FFFFFFF
    normal = minimum((magnitude + 0x0FFF + ((magnitude >> 13) & 1) - 0x38000000) >> 13, 0x7C00)
    normal = select(magnitude > 0x7F800000, 0x7E00, normal)
    tiny = bits(from_bits(magnitude) + f32(0.5)) - 0x3F000000
    return to_u16(select(magnitude < 0x38800000, tiny, normal) | ((b >> 16) & 0x8000))


@jitable
def bf16_to_f32(h: Any) -> Any:
    """bfloat16 bits in u16 to f32, exactly."""
    return from_bits(to_u32(h) << 16)


@jitable
def f32_to_bf16(x: Any) -> Any:
    """f32 to bfloat16 bits in u16, to nearest even; NaN stays NaN, made quiet."""
    b = bits(x)
    rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16
    return to_u16(select((b & 0x7FFFFFFF) > 0x7F800000, (b >> 16) | 0x0040, rounded))
