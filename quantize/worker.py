"""A process that compiles kernels, whose names it reads line by line, into a folder, and answers each with its name."""

import sys
from importlib import import_module
from pathlib import Path

from ggufsmith.quantize import machine_code
from ggufsmith.quantize.cache import Kernel


def kernel_named(name: str) -> Kernel:
    """A kernel of the package."""
    module, _, attribute = name.partition(".")
    found = getattr(import_module(f"ggufsmith.quantize.kernels.{module}"), attribute)
    if not isinstance(found, Kernel):
        raise TypeError(f"{name} is not a kernel")
    return found


def main() -> None:
    """Serve until the input ends. An error ends it, too: who asked does without."""
    for line in sys.stdin:
        kernel = kernel_named(line.strip())
        machine_code.write_code(machine_code.file_in(Path(sys.argv[1]), kernel.name), kernel.key, kernel.make())
        print(kernel.name, flush=True)
