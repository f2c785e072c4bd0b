"""Compiled kernels, kept on disk so that the second run starts at once.

A kernel is compiled for one signature, on its first call or by `compile`. The machine code goes to the user's cache
folder, under the version of ggufsmith and the CPU that it is for; a change in the sources of kernels makes it stale.
Where that folder cannot be written, kernels are compiled anew in every process; a damaged or half-deleted cache is the
same as none. Processes may share the cache: files appear by rename, and one index never holds two signatures, which
Numba could mix up.

Code of many processes meets in one, so no name may mean two things. Numba names the functions that a kernel is made of
by a number that it counts up in each process, and lets the linker take any function of that name. Here a kernel is
sealed instead (`KernelLibrary`): all that it is made of is its own, and what others see of it is named by the digest of
the sources.
"""

import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.runtime import _nrt_python

INT = types.intp
COMPILING = threading.RLock()  # Numba refuses a thread that waited until another had compiled the same


def read(scalar: types.Type) -> types.Array:
    """A C-contiguous 1-D array at any address that the kernel does not change; it may be read-only."""
    return types.Array(scalar, 1, "C", readonly=True, aligned=False)


def write(scalar: types.Type) -> types.Array:
    """A C-contiguous 1-D array at any address that the kernel may change."""
    return types.Array(scalar, 1, "C", aligned=False)


READ_F32, READ_U8, READ_U16 = read(types.float32), read(types.uint8), read(types.uint16)
WRITE_F32, WRITE_U8, WRITE_U16 = write(types.float32), write(types.uint8), write(types.uint16)


def user_cache() -> Path:
    """The folder that the system gives programs for caches, for this user."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@cache
def folder() -> Path | None:
    """Where this version's kernels for this CPU lie; None if it cannot be written."""
    name = config.CPU_NAME or binding.get_host_cpu_name()
    features = config.CPU_FEATURES if config.CPU_FEATURES is not None else binding.get_host_cpu_features().flatten()
    cpu = f"{name}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
    try:
        path = user_cache() / "ggufsmith" / version("ggufsmith") / "kernels" / cpu
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    return path


def source_stamp() -> str:
    """A digest of the sources that kernels are made of."""
    here = Path(__file__).parent
    made_of = ("kernels", "cache.py", "grids.py", "simd.py", "vectors.py", "../container/formats.py")
    digest = hashlib.sha256()
    for path in (file for name in made_of for file in sorted((here / name).rglob("*.py")) or [here / name]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# Taken while the sources are being imported, so that a process never stores its code as that of a later edit.
STAMP = source_stamp()


@cache
def stamp_of(file: str) -> str:
    """The digest of all that decides the code of kernels in this file."""
    own = Path(file).read_bytes() if Path(file).is_file() else b""
    return hashlib.sha256(STAMP.encode() + own).hexdigest()


class CacheLocator:
    """Tells Numba where the files of a function lie and what makes them stale (numba.core.caching._CacheLocator)."""

    def __init__(self, function: Any, file: str) -> None:
        self._py_file, self._lineno = file, function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Any, file: str) -> "CacheLocator | None":
        """None if nothing can be kept."""
        return cls(function, file) if folder() else None

    def get_cache_path(self) -> str:
        """The folder of all kernels."""
        return str(folder())

    def ensure_cache_path(self) -> None:
        """Make the folder again, if someone removed it."""
        os.makedirs(self.get_cache_path(), exist_ok=True)

    def get_source_stamp(self) -> str:
        """What an index must have been written with to count."""
        return stamp_of(self._py_file)

    def get_disambiguator(self) -> str:
        """A constant: names are unique in a module. Numba's own locators give the line number."""
        return "kernel"


class CacheFiles(CompileResultCacheImpl):  # type: ignore[misc]
    """The files of one kernel, where `CacheLocator` says."""

    _locator_classes = (CacheLocator,)


@cache
def link_runtime() -> None:
    """Make known the functions of Numba's runtime that machine code from the disk calls."""
    for name, address in _nrt_python.c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class KernelCache(FunctionCache):  # type: ignore[misc]
    """One kernel on the disk. What cannot be read or written there is as if it were not there."""

    _impl_class = CacheFiles

    def load_overload(self, signature: Any, context: Any) -> Any:
        """As the original, without what only a compilation needs."""
        link_runtime()
        with self._guard_against_spurious_io_errors():
            return self._load_overload(signature, context)

    def holds(self, signature: Any, context: Any) -> bool:
        """Whether there is code for this CPU, of these sources."""
        index: Mapping[Any, str] = {}
        with self._guard_against_spurious_io_errors():
            index = self._cache_file._load_index()
        return self._index_key(signature, context.codegen()) in index

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # a full disk only costs a compilation
            pass
        except Exception:  # so does a damaged file, which can make pickle raise anything; start a new one
            with suppress(OSError):
                self.flush()


class KernelLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The machine code of one kernel, of which only the kernel itself can be seen from outside.

    The functions that it calls have been linked in as weak symbols by the time that it is optimized. Made internal
    then, they are inlined or emitted as this kernel's own, under names that no other code can refer to.
    """

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self.enable_object_caching()
        self.own: set[str] = set()

    def add_ir_module(self, module: Any) -> None:
        """Numba adds the kernel and its wrappers in this way, and what they call in another."""
        self.own |= {value.name for value in module.global_values if is_defined(value)}
        super().add_ir_module(module)

    def _optimize_final_module(self) -> None:
        values = [*self._final_module.functions, *self._final_module.global_variables]
        for i, value in enumerate(value for value in values if not value.is_declaration and value.name not in self.own):
            value.linkage, value.name = "internal", f"part.{i}"
        super()._optimize_final_module()


def is_defined(value: ir.GlobalValue) -> bool:
    """Whether a module has the contents of this function or variable."""
    return not value.is_declaration if isinstance(value, ir.Function) else value.initializer is not None


class KernelCompiler(Compiler):  # type: ignore[misc]
    """Compiles a kernel into a `KernelLibrary`, under a name that is the same in every process."""

    def define_pipelines(self) -> Any:
        """Numba's own passes, which take up a library that is there and number functions by `unique_id`."""
        function = self.state.func_id
        function.unique_id = stamp_of(function.filename)[:16]
        self.state.library = KernelLibrary(self.state.targetctx.codegen(), function.func_qualname)
        return super().define_pipelines()


compiler = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, pipeline_class=KernelCompiler)


class Kernel:
    """A function over the vocabulary of simd.py, compiled for one signature; it releases the GIL.

    Arrays that `read` and `write` describe may be writable or not and lie at any address: there is one compiled form.

    py_func: the same function in plain Python, on NumPy arrays.
    """

    def __init__(self, function: Callable[..., Any], signature: tuple[types.Type, ...]) -> None:
        self.py_func = function
        self.signature = signature
        self.dispatcher = compiler(function)
        self.compiled = False
        if folder():
            self.dispatcher._cache = KernelCache(function)

    def compile(self) -> None:
        """Compile, or load from the cache. Any number of threads may call this."""
        with COMPILING:
            if not self.compiled:
                self.dispatcher.compile(self.signature)
                self.dispatcher.disable_compile()  # or other kinds of arrays would have machine code of their own
                self.compiled = True

    @property
    def stored(self) -> bool:
        """Whether the cache has the code, so that `compile` will only load it."""
        kept = self.dispatcher._cache
        return isinstance(kept, KernelCache) and kept.holds(self.signature, self.dispatcher.targetctx)

    @property
    def cached(self) -> bool:
        """Whether the code of this process came from the disk."""
        return bool(self.dispatcher.stats.cache_hits)

    def __call__(self, *args: Any) -> Any:
        if not self.compiled:
            self.compile()
        return self.dispatcher(*args)


def kernel(*signature: types.Type) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a kernel with the types of its arguments."""
    return lambda function: Kernel(function, signature)


def compile_all(kernels: Iterable[Kernel], advance: Callable[[int, int], None] = lambda done, total: None) -> float:
    """Make kernels ready: load those that the cache has, then compile the others one by one.

    advance: told how many are compiled, of how many that have to be: (0, total) before the first, (total, total) after
             the last. It is not called if there are none.

    Returns the seconds that compiling took: 0 if there was nothing to compile.
    """
    waiting = [kernel for kernel in dict.fromkeys(kernels) if not kernel.compiled]
    missing = [kernel for kernel in waiting if not kernel.stored]
    for kernel in waiting:
        if kernel not in missing:
            kernel.compile()
    if not missing:
        return 0.0
    started = time.perf_counter()
    for done, kernel in enumerate(missing):
        advance(done, len(missing))
        kernel.compile()
    advance(len(missing), len(missing))
    return time.perf_counter() - started
