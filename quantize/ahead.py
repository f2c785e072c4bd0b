"""Every kernel of the package, compiled ahead of time.

    GGUFSMITH_CPU=LEVEL python -m ggufsmith.quantize.ahead FOLDER

puts their machine code for a level into FOLDER/LEVEL. The level may be of another CPU than this one. What the cache has
is taken from there; the rest is compiled on all cores.
"""

import pkgutil
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ggufsmith.quantize import cpu, kernels
from ggufsmith.quantize.cache import Kernel
from ggufsmith.quantize.machine_code import Unusable, file_in, folder, read_code
from ggufsmith.quantize.workers import compiled_apart


def all_kernels() -> dict[str, Kernel]:
    """Every kernel of the package, by name."""
    found = {}
    for _, name, _ in pkgutil.iter_modules(kernels.__path__):
        module = import_module(f"{kernels.__name__}.{name}")
        for value in vars(module).values():
            if isinstance(value, Kernel) and value.py_func.__module__ == module.__name__:
                found[value.name] = value
    return found


def missing(found: Sequence[Kernel], place: Path) -> list[Kernel]:
    """Those of the kernels that have no code in a folder."""

    def there(kernel: Kernel) -> bool:
        try:
            return bool(read_code(file_in(place, kernel.name), kernel.key))
        except Unusable:
            return False

    return [kernel for kernel in found if not there(kernel)]


def main() -> None:
    """See the module's docstring. RuntimeError if a kernel cannot be compiled."""
    target, wanted, level = Path(sys.argv[1]) / cpu.level().name, list(all_kernels().values()), cpu.level().name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as passing:
        place = folder() or Path(passing)
        todo = missing(wanted, place)
        with compiled_apart([kernel.name for kernel in todo], place) as files:
            for done, _ in enumerate(files, 1):
                print(f"\r{level}: compiling kernels {done} of {len(todo)}", end="", flush=True)
        if failed := missing(wanted, place):
            raise RuntimeError(f"not compiled for {level}: {', '.join(kernel.name for kernel in failed)}")
        for kernel in wanted:
            shutil.copyfile(file_in(place, kernel.name), file_in(target, kernel.name))
    print(f"\r{level}: {len(wanted)} kernels, {len(todo)} of them compiled now")


if __name__ == "__main__":
    main()
