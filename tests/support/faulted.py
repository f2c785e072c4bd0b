"""Runs commands in a process where calls of the system fail, as faulty.py has it."""

import multiprocessing
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

import faulty
from ggufsmith.cli.app import app

FAULTY = Path(__file__).with_name("faulty.py")


def command(*arguments: object) -> list[str]:
    """The command line for FAULT PLACE CALL COMMAND ARGUMENTS."""
    return [sys.executable, str(FAULTY), *map(str, arguments)]


@cache
def server() -> Any:
    """Forks the processes, with the imports done: those take longer than the work."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["faulty", "ggufsmith.convert.batch.run", "ggufsmith.cli.board"])
    return context


def run_faulty(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """What became of FAULT PLACE CALL COMMAND ARGUMENTS. Without a fault (`none`) this process runs the command."""
    words = [str(argument) for argument in arguments]
    if words[0] == "none":
        done = CliRunner().invoke(app, words[3:], prog_name="ggufsmith")
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
    with TemporaryDirectory() as name:
        streams = [Path(name, each) for each in ("out", "err")]
        process = server().Process(target=faulty.run, args=(words, *map(str, streams)))
        process.start()
        process.join(120)
        code = process.exitcode
        if code is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, 120)
        out, err = (stream.read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess(words, code, out, err)
