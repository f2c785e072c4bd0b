"""Parts of the libraries that write quantized checkpoints, in build/oracles, where `make conformance` puts them.

Only single modules are wanted: the packages themselves import GPU kernels, or other versions of transformers, when they
are imported. So a package is entered without running its __init__.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ORACLES = Path(__file__).resolve().parents[2] / "build" / "oracles"
SKIPPED = ("auto_gptq", "auto_gptq.nn_modules", "awq", "awq.utils", "awq.modules", "awq.modules.linear")
SKIPPED += ("gptqmodel", "gptqmodel.quantization")


def module(name: str) -> Any:
    """A module of build/oracles. What the project itself has installed comes first, and nobody else sees the folder."""
    for package in SKIPPED:
        if name.split(".")[0] == package.split(".")[0] and package not in sys.modules:
            bare = ModuleType(package)
            vars(bare)["DEBUG_ON"] = False  # all that its own modules ask of gptqmodel's __init__
            bare.__path__ = [str(ORACLES.joinpath(*package.split(".")))]
            sys.modules[package] = bare
    sys.path.append(str(ORACLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ORACLES))
