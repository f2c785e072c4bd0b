"""Compiles llama-imatrix, llama-perplexity and llama-quantize into build/reference/build/bin.

    python tests/conformance/build_tools.py

The sources are those that `fetch.py` unpacked into build/reference. Only a C++ compiler is needed; cmake comes with the
Python package of that name where the system has none. No network, no GPU, no server, no tests: what is left takes about
eight CPU minutes, and half an hour is the limit. Nothing is changed but that the tools print all that they have to say.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "build" / "reference"
BUILD = SOURCE / "build"
COMPLETE = ".complete"  # what the Makefile looks at
TOOLS = ("llama-imatrix", "llama-perplexity", "llama-quantize")
LIMIT = 1800  # seconds
# The tools end without waiting for the thread that writes what they print, and on a busy machine the results are lost.
LOG = SOURCE / "common" / "log.cpp"
FLUSHED = """
static struct flushed_at_exit {
    ~flushed_at_exit() { common_log_flush(common_log_main()); }
} flushed_at_exit_instance;
"""
LEFT_OUT = """
LLAMA_BUILD_TESTS LLAMA_BUILD_EXAMPLES LLAMA_BUILD_SERVER LLAMA_BUILD_APP LLAMA_BUILD_UI LLAMA_USE_PREBUILT_UI
LLAMA_OPENSSL LLAMA_CURL GGML_CCACHE GGML_METAL BUILD_SHARED_LIBS
""".split()


def cmake() -> str:
    """The program: of this environment, or else of the system."""
    here = str(Path(sys.executable).parent)
    found = shutil.which("cmake", path=os.pathsep.join([here, os.environ.get("PATH", "")]))
    if found is None:
        raise SystemExit("cmake is missing. Install it with: pip install cmake")
    return found


def configure(program: str) -> Sequence[str]:
    """The command that prepares the build."""
    options = [f"-D{name}=OFF" for name in LEFT_OUT]
    return [program, "-S", str(SOURCE), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release", *options]


def compiling(program: str) -> Sequence[str]:
    """The command that compiles."""
    cores = str(os.cpu_count() or 1)
    return [program, "--build", str(BUILD), "--config", "Release", "--parallel", cores, "--target", *TOOLS]


def main() -> None:
    program = cmake()
    shutil.rmtree(BUILD, ignore_errors=True)
    text = LOG.read_text(encoding="utf-8")
    if FLUSHED not in text:
        LOG.write_text(text + FLUSHED, encoding="utf-8", newline="\n")
    subprocess.run(configure(program), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(compiling(program), check=True, stdout=subprocess.DEVNULL, timeout=LIMIT)
    (BUILD / COMPLETE).touch()


if __name__ == "__main__":
    main()
