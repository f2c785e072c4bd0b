"""Signals at any moment of a program: an exit code, and never a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "from ggufsmith.cli.app import main\nmain()\n"
# Sends itself a signal when a module is imported, or at the end of Python.
AT_IMPORT = """
import os, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{sign})
sys.meta_path.insert(0, Finder)
"""
AT_END = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.{sign})
"""
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to one process")


def started(tmp_path: Path, before: str, *words: str) -> "subprocess.CompletedProcess[str]":
    program = tmp_path / "ggufsmith"
    program.write_text(before + PROGRAM, encoding="utf-8")
    return subprocess.run(
        [sys.executable, program, *words], capture_output=True, text=True, encoding="utf-8", check=False, cwd=tmp_path
    )


# The first that is imported of the package itself, one of the app, one of a command, and one that shows errors.
@pytest.mark.parametrize("module", ["ggufsmith.calls", "ggufsmith.cli.batch", "ggufsmith.imatrices", "rich.console"])
@pytest.mark.parametrize(("sign", "codes"), [("SIGINT", {130}), ("SIGTERM", {143, -signal.SIGTERM})])
def test_a_signal_while_modules_are_imported(module: str, sign: str, codes: set[int], tmp_path: Path) -> None:
    done = started(tmp_path, AT_IMPORT.format(module=module, sign=sign), "imatrix", "--in", "absent", "-o", "x.gguf")
    assert done.returncode in codes, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and "Aborted" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("sign", "codes"), [("SIGINT", {130}), ("SIGTERM", {143, -signal.SIGTERM})])
def test_a_signal_when_all_is_done(sign: str, codes: set[int], tmp_path: Path) -> None:
    done = started(tmp_path, AT_END.format(sign=sign), "recipes")
    assert done.returncode in codes, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_signal_that_a_shell_has_us_ignore_is_ignored(tmp_path: Path) -> None:
    ignoring = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    at_import = AT_IMPORT.format(module="ggufsmith.calls", sign="SIGINT")
    assert started(tmp_path, ignoring + at_import, "recipes").returncode == 0


def test_programs_of_others_keep_their_signals() -> None:
    code = "import signal, ggufsmith, ggufsmith.cli; assert signal.getsignal(2) is signal.default_int_handler"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
