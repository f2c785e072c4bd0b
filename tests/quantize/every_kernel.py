"""All that is compiled, for tests of what holds for every kernel."""

import pkgutil
from importlib import import_module

from ggufsmith.quantize import kernels
from ggufsmith.quantize.cache import Kernel


def all_kernels() -> dict[str, Kernel]:
    """Every kernel of the package, by module and name."""
    modules = {
        name: import_module(f"{kernels.__name__}.{name}") for _, name, _ in pkgutil.iter_modules(kernels.__path__)
    }
    return {
        f"{module}.{name}": value
        for module, found in modules.items()
        for name, value in vars(found).items()
        if isinstance(value, Kernel) and value.py_func.__module__ == found.__name__
    }
