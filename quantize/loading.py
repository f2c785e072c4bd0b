"""Machine code from an object file into this process, by LLVM's loader alone."""

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from llvmlite import binding

LOADING = threading.Lock()
# What machine code may call beyond the C library: the allocator, which needs no GIL, has these names on every system.
ALLOCATOR = ("PyMem_RawMalloc", "PyMem_RawFree")

Entry = Callable[[Any], int]


@cache
def engine() -> Any:
    """The loader."""
    with suppress(RuntimeError):  # newer ones have done it, and object to being asked
        binding.initialize()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    for name in ALLOCATOR:
        binding.add_symbol(name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value)
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


def load(code: bytes, name: str) -> Entry:
    """The function of this name in an object file, which must be sound. It lets go of the GIL.

    RuntimeError if it is no object file, or has no such function.
    """
    with LOADING:
        engine().add_object_file(binding.ObjectFileRef.from_data(code))
        engine().finalize_object()
        address = engine().get_function_address(name)
    if not address:
        raise RuntimeError(f"the object file has no {name}")
    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(address)
