"""Kernels: functions over the vocabulary of simd.py that run as machine code.

Their code comes from files (machine_code.py), which are loaded without Numba. Where there is none, kernels are compiled
for one signature, on their first call or by `compile_all`, and kept. Processes may share the cache, since files appear
complete.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ggufsmith.quantize import cpu, machine_code, workers
from ggufsmith.quantize.machine_code import folder as folder
from ggufsmith.quantize.signatures import INT as INT
from ggufsmith.quantize.signatures import READ_F32 as READ_F32
from ggufsmith.quantize.signatures import READ_U8 as READ_U8
from ggufsmith.quantize.signatures import READ_U16 as READ_U16
from ggufsmith.quantize.signatures import WRITE_F32 as WRITE_F32
from ggufsmith.quantize.signatures import WRITE_U8 as WRITE_U8
from ggufsmith.quantize.signatures import WRITE_U16 as WRITE_U16
from ggufsmith.quantize.signatures import Type as Type
from ggufsmith.quantize.signatures import packer
from ggufsmith.quantize.signatures import read as read
from ggufsmith.quantize.signatures import typeof as typeof
from ggufsmith.quantize.signatures import write as write

OURS = "ggufsmith."
READY = threading.RLock()


class Kernel:
    """A function over the vocabulary of simd.py, compiled for one signature; it releases the GIL.

    Arrays that `read` and `write` describe may be writable or not and lie at any address: there is one compiled form.

    py_func:  the same function in plain Python, on NumPy arrays.
    compiled: whether its machine code is ready. cached: whether that came from a file.
    """

    def __init__(self, function: Callable[..., Any], signature: tuple[Type, ...]) -> None:
        self.py_func = function
        self.signature = signature
        self.pack = packer(signature)
        self.compiled = self.cached = False
        self.entry: Any = None

    @property
    def name(self) -> str:
        """Of the kernel among those of the package; elsewhere with the whole name of the module."""
        module = self.py_func.__module__.removeprefix("ggufsmith.quantize.kernels.")
        return f"{module}.{self.py_func.__qualname__}"

    @property
    def named(self) -> bool:
        """Whether the name leads to this kernel, as it does not inside functions. Only then is its code kept."""
        module = sys.modules.get(self.py_func.__module__)
        return getattr(module, self.py_func.__qualname__, None) is self

    @property
    def key(self) -> bytes:
        """What its machine code is for; see `machine_code.key_of`."""
        return machine_code.key_of(self.name, self.py_func.__code__.co_filename)

    @property
    def symbol(self) -> str:
        """The name of its entry, which no other kernel has."""
        return f"ggufsmith_{self.key.hex()}"

    def load(self, file: Path | None = None) -> bool:
        """Whether there is machine code in a file, which is then ready. Any number of threads may call this.

        file: None looks where code is kept.
        """
        with READY:
            if not self.compiled and self.named:
                with suppress(machine_code.Unusable):
                    key = self.key
                    self._take(machine_code.read_code(file, key) if file else machine_code.find_code(self.name, key))
                    self.cached = True
            return self.compiled

    def make(self) -> bytes:
        """Its object file, compiled in this process."""
        found: bytes = import_module("ggufsmith.quantize.compiler.library").object_code(
            self.py_func, self.signature, self.symbol
        )
        return found

    def compile(self) -> None:
        """Make it ready: load it, or compile it in this process. Any number of threads may call this."""
        cpu.check_runs_here()
        with READY:
            if not self.load():
                code, place = self.make(), folder()
                self._take(code)
                if place is not None and self.named:
                    with suppress(OSError):  # a full disk only costs a compilation
                        machine_code.write_code(machine_code.file_in(place, self.name), self.key, code)

    def _take(self, code: bytes) -> None:
        self.entry = import_module("ggufsmith.quantize.loading").load(code, self.symbol)
        self.compiled = True

    def __call__(self, *args: Any) -> Any:
        if not self.compiled:
            self.compile()
        given = self.pack(args)
        if status := self.entry(given):
            raise RuntimeError(f"{self.name} failed with status {status}")
        return given[-1]


def kernel(*signature: Type) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a kernel with the types of its arguments."""
    return lambda function: Kernel(function, signature)


def compile_all(kernels: Iterable[Kernel], advance: Callable[[int, int], None] = lambda done, total: None) -> float:
    """Make kernels ready: load those that there is code for, then compile the others, on all cores.

    advance: told how many are compiled, of how many that have to be: (0, total) before the first, (total, total) after
             the last. It is not called if there are none.

    Returns the seconds that compiling took: 0 if there was nothing to compile. Unsupported if this CPU cannot run them.
    """
    cpu.check_runs_here()
    missing = [kernel for kernel in dict.fromkeys(kernels) if not kernel.load()]
    if not missing:
        return 0.0
    started, done = time.perf_counter(), 0
    if folder() is None:
        machine_code.remark(
            "cache", "no cache folder can be written, so that every run compiles the kernels that it needs"
        )
    advance(0, len(missing))
    apart = {kernel.name: kernel for kernel in missing if kernel.named and kernel.py_func.__module__.startswith(OURS)}
    with workers.compiled_apart(list(apart), folder()) as files:
        for file in files:
            done += apart[file.stem].load(file)
            advance(done, len(missing))
    for kernel in missing:
        if not kernel.compiled:  # no other process could do it
            kernel.compile()
            done += 1
            advance(done, len(missing))
    return time.perf_counter() - started
