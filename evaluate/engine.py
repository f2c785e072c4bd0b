"""llama.cpp in a process of its own, so that what ends it is an error here, and not the end of everything.

A build of llama-cpp-python that does not fit the processor is ended by the system at its first matrix product, and a
failed assertion of ggml aborts.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure, Unsupported
from ggufsmith.container.untrusted import shown
from ggufsmith.evaluate.judged import TokenSpeed
from ggufsmith.evaluate.token_scores import TokenScores

TASK, RESULT, SAID = "task", "result", "said"  # files in the folder that both processes know
SERVE = "from ggufsmith.evaluate.engine import serve; serve()"
REINSTALL = "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-cache-dir llama-cpp-python"
ILLEGAL = (-4, 0xC000001D)  # how a process ends at an instruction that the processor refuses: POSIX, Windows
LAST = 3  # lines of what llama.cpp said


INSTALL = "pip install llama-cpp-python, or leave out --engine llama.cpp."


def check_llama_cpp() -> None:
    """Unsupported where llama-cpp-python is not installed."""
    if find_spec("llama_cpp") is None:
        raise Unsupported("llama-cpp-python, which runs files in llama.cpp, is not installed", fix=INSTALL)


def run_apart(
    source: Path,
    files: Sequence[Path],
    tokens: NDArray[np.int32],
    *,
    cpu: bool = False,
    threads: int,
    advance: Callable[[int], None] = lambda windows: None,
) -> tuple[list[TokenScores], list[TokenSpeed]]:
    """`llamacpp.run_files` in another process. Failure, with its last words, if that does not live to the end."""
    with TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / TASK).write_bytes(pickle.dumps((source, list(files), tokens, cpu, threads)))
        command = [sys.executable, "-c", SERVE, name]
        with (
            (folder / SAID).open("wb") as said,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as child,
        ):
            try:
                assert child.stdout is not None
                while child.stdout.read(1):
                    advance(1)
                code = child.wait()
            finally:
                child.kill()
        if not (folder / RESULT).is_file():
            raise _ended(code, (folder / SAID).read_text(encoding="utf-8", errors="replace"))
        found: Any = pickle.loads((folder / RESULT).read_bytes())  # written by this program, a moment ago
    if isinstance(found, Failure):
        raise found
    scores, speeds = found
    return scores, speeds


def serve() -> None:
    """What the other process does: the task in the folder of its first argument, and a byte for each window."""
    from ggufsmith.evaluate.llamacpp import run_files

    folder = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    heard = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not count as windows
    source, files, tokens, cpu, threads = pickle.loads((folder / TASK).read_bytes())  # see above
    result: Any
    try:
        result = run_files(
            source, files, tokens, cpu=cpu, threads=threads, advance=lambda windows: _tell(heard, windows)
        )
    except Failure as failure:
        result = failure
    except (ImportError, OSError, RuntimeError) as error:  # how the library says that its own library cannot be loaded
        result = Unsupported(f"llama-cpp-python cannot be used: {shown(str(error))}", fix=INSTALL)
    (folder / RESULT).write_bytes(pickle.dumps(result))


def _tell(heard: int, windows: int) -> None:
    with suppress(OSError):
        os.write(heard, b"." * windows)


def _ended(code: int, said: str) -> Failure:
    if code in ILLEGAL:
        why = "llama.cpp was ended by the system: this build of llama-cpp-python does not fit the processor"
        return Failure(why, fix=f"Reinstall it: {REINSTALL}")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = [shown(line) for line in said.splitlines() if line.strip()][-LAST:]
    return Failure(f"llama.cpp ended with {how}", also=last, fix="Leave out --engine llama.cpp to measure the weights.")
