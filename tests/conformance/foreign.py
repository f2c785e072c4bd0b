"""Parts of the libraries that write quantized checkpoints, in build/oracles, where `make conformance` puts them.

Only single modules are wanted: the packages themselves import GPU kernels, or other versions of transformers, when they
are imported. So a package is entered without running its __init__. transformers and peft look which of these libraries
there are, and would use them: so they are in sys.modules only for as long as a test works with them.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from needed import ORACLES, need

SKIPPED = ("auto_gptq", "auto_gptq.nn_modules", "awq", "awq.utils", "awq.modules", "awq.modules.linear")
SKIPPED += ("gptqmodel", "gptqmodel.quantization")

_entered: dict[str, ModuleType] = {}  # outside of `module`, the only place that names them


@contextmanager
def module(name: str) -> Iterator[Any]:
    """A module of build/oracles, the same one every time, for use inside the block: it may import more when it runs.

    What the project itself has installed comes first.
    """
    need("quantizers")
    for package in SKIPPED:
        if name.split(".")[0] == package.split(".")[0] and package not in _entered:
            _entered[package] = bare = ModuleType(package)
            vars(bare)["DEBUG_ON"] = False  # all that its own modules ask of gptqmodel's __init__
            bare.__path__ = [str(ORACLES.joinpath(*package.split(".")))]
    sys.modules.update(_entered)
    sys.path.append(str(ORACLES))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(ORACLES))
        _entered.update({name: found for name, found in sys.modules.items() if _is_foreign(found)})
        for entered in _entered:
            sys.modules.pop(entered, None)


def _is_foreign(found: ModuleType) -> bool:
    # Not by getattr: some of torch's modules make up whatever attribute they are asked for.
    places = [vars(found).get("__file__"), *(vars(found).get("__path__") or ())]
    return any(Path(place).is_relative_to(ORACLES) for place in places if place)
