"""ggufsmith: Hugging Face checkpoints to GGUF files, converted and quantized in one pass.

    import ggufsmith

    report = ggufsmith.convert("./Qwen3-0.6B", recipes=["q4_K_M", "q6_K"], outdir="out")
    print([each.output for each in report.outputs])

See docs/api.md. Only the names in `__all__` are meant for other programs.
"""

from typing import TYPE_CHECKING

# First the packages whose names are calls too: importing one later would put it in the place of the call. And what ends
# programs that are interrupted while they import the rest.
import ggufsmith.convert
import ggufsmith.evaluate
import ggufsmith.interrupts
import ggufsmith.quantize  # noqa: F401
from ggufsmith.calls import convert, evaluate, imatrix, inspect, quantize, sensitivity, verify
from ggufsmith.container.errors import Failure, Malformed, NoSpace, OutputConflict, Unsupported, Usage
from ggufsmith.keywords import WrongArgument
from ggufsmith.progress import ProgressEvent

__version__: str

__all__ = [
    "Failure",
    "Malformed",
    "NoSpace",
    "OutputConflict",
    "ProgressEvent",
    "Unsupported",
    "Usage",
    "WrongArgument",
    "__version__",
    "convert",
    "evaluate",
    "imatrix",
    "inspect",
    "quantize",
    "sensitivity",
    "verify",
]


if not TYPE_CHECKING:  # to which every name would be a str

    def __getattr__(name: str) -> str:
        """`__version__`, which takes a while to look up."""
        if name == "__version__":
            from importlib.metadata import version

            return version("ggufsmith")
        raise AttributeError(f"module 'ggufsmith' has no attribute {name!r}")
