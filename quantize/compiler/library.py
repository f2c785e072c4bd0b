"""Kernels to object files, for any level.

Numba makes LLVM's intermediate code of a kernel and of all that it calls; here that is sealed, optimized for the level
and made an object file. Code of many processes meets in one, so no name may mean two things: Numba names the functions
that a kernel is made of by a number that it counts up in each process. All but the kernel's entry is internal here, so
that the same sources give the same file in every process and on every machine.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import register_jitable
from numba.np import numpy_support

from ggufsmith.quantize import cpu, simd
from ggufsmith.quantize.compiler import runtime
from ggufsmith.quantize.signatures import Array, FieldTypes, Type

COMPILING = threading.RLock()
# What teaches Numba the functions of simd.py and of single kernels.
MEANINGS = ("vocabulary", "rows", "tables")
REGISTERED: set[Any] = set()
# x86: vfmadd132ps, vfnmsub231ss…; ARM: fmla, fmls, fmadd, fnmsub…
FUSED = re.compile(r"^\s+(v?fn?m(?:add|sub|la|ls)\w*)", re.MULTILINE)


class FunctionLibrary(CPUCodeLibrary):  # type: ignore[misc]
    """The code of one function, to be linked into that of a kernel."""

    def _finalize_specific(self) -> None:
        pass

    def add_linking_library(self, library: Any) -> None:
        """All but Numba's own runtime, for which there is runtime.py."""
        if library.name != "nrt":
            super().add_linking_library(library)

    def get_pointer_to_function(self, name: str) -> int:
        """There is none: nothing runs in this process."""
        return 0


class KernelLibrary(FunctionLibrary):
    """The code of a kernel with all that it calls. Only the entry can be seen from outside."""

    def __init__(self, codegen: Any, name: str, entry: str) -> None:
        super().__init__(codegen, name)
        self.entry = entry

    def _optimize_final_module(self) -> None:
        module = self._final_module
        module.triple, module.data_layout = triple(cpu.level()), self._codegen._data_layout
        values = [*module.functions, *module.global_variables]
        for i, value in enumerate(value for value in values if not value.is_declaration and value.name != self.entry):
            value.linkage, value.name = "internal", f"part.{i}"
        super()._optimize_final_module()


def triple(level: cpu.Level) -> str:
    """LLVM's name of the system that code of this level is for: this one, if need be with another architecture."""
    rest = binding.get_process_triple().partition("-")[2]
    return f"{level.arch}-{rest}"


def machine(level: cpu.Level) -> Any:
    """LLVM's description of a CPU."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    # The loader puts code and constants where there is room, so that they must not reach each other by short offsets.
    options = {"opt": 3, "codemodel": "large", "reloc": "static" if level.arch == "x86_64" else "default"}
    return binding.Target.from_triple(triple(level)).create_target_machine(level.cpu, level.features, **options)


@contextmanager
def parts_only(target: Any) -> Iterator[Any]:
    """Numba's code generator, which meanwhile makes code for the level at hand, and none to be run here."""
    codegen = cpu_target.target_context.codegen()
    layout = str(target.target_data)
    there = {
        "_library_class": FunctionLibrary,
        "_tm": target,
        "_data_layout": layout,
        "_add_module": lambda module: None,
        "set_env": lambda name, env: None,
    }
    before = {name: vars(codegen)[name] for name in there if name in vars(codegen)}
    vars(codegen).update(there)
    try:
        yield codegen
    finally:
        for name in there:
            del vars(codegen)[name]
        vars(codegen).update(before)


def object_code(function: Any, signature: tuple[Type, ...], entry: str) -> bytes:
    """A kernel's object file, in which `entry` takes the words that `signatures.packer` makes.

    function: the kernel in Python. RuntimeError if the code fuses multiplications and additions, which rounds once
    instead of twice, where the kernel does not ask for it.
    """
    with COMPILING, global_compiler_lock:
        teach()
        target = machine(cpu.level())
        with parts_only(target) as codegen:
            flags = Flags()
            flags.nrt = flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            flags.error_model = "numpy"
            context, arguments = cpu_target.target_context, tuple(map(numba_type, signature))
            part = compile_extra(cpu_target.typing_context, context, function, arguments, None, flags, {})
            library = KernelLibrary(codegen, function.__qualname__, entry)
            library.add_ir_module(entry_module(context, part.fndesc, entry))
            library.add_linking_library(part.library)
            library.finalize()
            asked = "@llvm.fma." in str(library._final_module)  # by simd.multiply_add
            if not asked and (fused := FUSED.search(target.emit_assembly(library._final_module))):
                raise RuntimeError(f"{function.__qualname__} would be compiled with {fused[1]}")
            declared = [each.name for each in library._final_module.functions if each.is_declaration]
            if lacking := [name for name in declared if name.startswith(("NRT_", "numba_"))]:  # LLVM would abort
                raise RuntimeError(
                    f"{function.__qualname__} needs {', '.join(lacking)} of Numba's runtime; see scratch"
                )
            code: bytes = target.emit_object(library._final_module)
            return code


def teach() -> None:
    """Tell Numba all that is new to it of what kernels are made of."""
    for name in MEANINGS:
        import_module(f"ggufsmith.quantize.compiler.{name}")
    for function in simd.JITABLE:
        if function not in REGISTERED:
            register_jitable(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")(function)
            REGISTERED.add(function)


def numba_type(kind: Type) -> types.Type:
    """A type of an argument, as Numba has it."""
    if isinstance(kind, Array):
        scalar = numpy_support.from_dtype(kind.dtype)
        return types.Array(scalar, kind.ndim, "C", readonly=kind.write is False, aligned=False)
    if isinstance(kind, FieldTypes):
        fields = [numba_type(field) for field in kind.fields]
        same = len(set(fields)) == 1
        return types.NamedUniTuple(fields[0], len(fields), kind.kind) if same else types.NamedTuple(fields, kind.kind)
    return numpy_support.from_dtype(kind)


def entry_module(context: Any, kernel: Any, name: str) -> ir.Module:
    """A function that unpacks the words of `signatures.packer`, calls the kernel, and stores its result behind them."""
    module = context.create_module(name)
    runtime.define(module)
    convention = context.call_conv
    callee = ir.Function(module, convention.get_function_type(kernel.restype, kernel.argtypes), kernel.llvm_func_name)
    kind = ir.FunctionType(ir.IntType(32), [runtime.WORD.as_pointer()])
    function = ir.Function(module, kind, name)
    builder = ir.IRBuilder(function.append_basic_block())
    words = Words(builder, function.args[0])
    arguments = [unpack(context, builder, type, words) for type in kernel.argtypes]
    status, result = convention.call_function(builder, callee, kernel.restype, kernel.argtypes, arguments)
    if isinstance(kernel.restype, types.Integer):
        builder.store(context.cast(builder, result, kernel.restype, types.int64), words.next_place())
    elif kernel.restype != types.none:
        raise TypeError(f"a kernel returns an integer or nothing, not {kernel.restype}")
    builder.ret(status.code)
    return module


class Words:
    """Reads 64-bit words one after the other."""

    def __init__(self, builder: Any, address: Any) -> None:
        self.builder, self.address, self.i = builder, address, 0

    def next_place(self) -> Any:
        """The address of the next word."""
        self.i += 1
        return self.builder.gep(self.address, [ir.Constant(runtime.WORD, self.i - 1)])

    def next(self) -> Any:
        """The next word."""
        return self.builder.load(self.next_place())


def unpack(context: Any, builder: Any, kind: types.Type, words: Words) -> Any:
    """The next argument, of this type, as Numba represents it."""
    if isinstance(kind, types.BaseNamedTuple):
        return context.make_tuple(builder, kind, [unpack(context, builder, field, words) for field in kind.types])
    if isinstance(kind, types.Array):
        return unpack_array(context, builder, kind, words)
    word = words.next()
    if kind == types.float32:
        return builder.bitcast(builder.trunc(word, ir.IntType(32)), ir.FloatType())
    if kind == types.boolean:
        return builder.trunc(word, ir.IntType(1))
    return context.cast(builder, word, types.int64, kind)


def unpack_array(context: Any, builder: Any, kind: types.Array, words: Words) -> Any:
    """An array that nobody counts the references of."""
    array = context.make_array(kind)(context, builder)
    array.data = builder.inttoptr(words.next(), array.data.type)
    shape = [words.next() for _ in range(kind.ndim)]
    size = ir.Constant(runtime.WORD, numpy_support.as_dtype(kind.dtype).itemsize)
    strides = [size]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    count = shape[0]
    for length in shape[1:]:
        count = builder.mul(count, length)
    array.nitems, array.itemsize = count, size
    array.shape = ir.Constant(array.shape.type, ir.Undefined)
    array.strides = ir.Constant(array.strides.type, ir.Undefined)
    for i, (length, stride) in enumerate(zip(shape, strides, strict=True)):
        array.shape = builder.insert_value(array.shape, length, i)
        array.strides = builder.insert_value(array.strides, stride, i)
    array.meminfo, array.parent = ir.Constant(array.meminfo.type, None), ir.Constant(array.parent.type, None)
    return array._getvalue()
