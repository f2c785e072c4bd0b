"""The process that llama.cpp runs in: what becomes of it when it does not live to the end."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from ggufsmith.container.errors import Failure, Unsupported
from ggufsmith.evaluate.engine import check_llama_cpp, run_apart

TOKENS = np.ones((2, 8), np.int32)
ENDS = {
    "os.kill(os.getpid(), signal.SIGILL)": "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install",
    "os.abort()": "ended with SIGABRT",
    "print('a window?'); print('out of luck', file=sys.stderr, flush=True); os._exit(3)": "ended with exit code 3",
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama_cpp of one module, before every other."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    return tmp_path / "llama_cpp.py"


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.skipif(sys.platform == "win32", reason="processes end otherwise there")
def test_a_process_that_is_ended(library: Path, end: str) -> None:
    library.write_text(f"import os, signal, sys\n{end}\n", encoding="utf-8")
    told: list[int] = []
    with pytest.raises(Failure, match=ENDS[end]) as raised:
        run_apart(Path("a.gguf"), [Path("b.gguf")], TOKENS, threads=1, advance=told.append)
    assert not told  # what the library prints is no window
    assert ("out of luck" in str(raised.value)) == ("out of luck" in end)


def test_an_error_there_is_raised_here(library: Path) -> None:
    library.write_text("raise ImportError('libllama.so is not there')\n", encoding="utf-8")
    with pytest.raises(Unsupported, match=r"libllama\.so is not there") as raised:
        run_apart(Path("a.gguf"), [Path("b.gguf")], TOKENS, threads=1)
    assert raised.value.code == 3 and "pip install llama-cpp-python" in str(raised.value)


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(Unsupported, match="is not installed"):
        check_llama_cpp()
