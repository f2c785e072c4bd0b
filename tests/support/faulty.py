"""Runs the real command line with one fault injected: python faulty.py FAULT PLACE CALL COMMAND ARGUMENTS...

At the CALL-th call (from 1) of the function PLACE of `os`, the FAULT happens: a signal by its name, `fail` (an I/O
error), `full` (no space), `truncate PATH` or `stop` (until someone sends SIGCONT). `after:` before PLACE lets the call
happen first. Of `pwrite`, only calls with data count, not the records of the journal, which may fail unnoticed, and are
written one by one here, so that a kill finds those of all data before it.
"""

import errno
import os
import signal
import sys
import threading
from typing import Any

from ggufsmith.cli.app import main
from ggufsmith.container import journal

JOURNAL = journal.HEAD.size  # bytes; no write of data is so small
journal.TOGETHER = 1


def arm(fault: str, place: str, call: int) -> None:
    name = place.removeprefix("after:")
    real, lock, calls = getattr(os, name), threading.Lock(), 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            counts = name != "pwrite" or len(arguments[1]) > JOURNAL
            calls += counts
            now = counts and calls == call
        if now and name == place:
            happen(fault)
        result = real(*arguments, **options)
        if now and name != place:
            happen(fault)
        return result

    setattr(os, name, faulty)


def happen(fault: str) -> None:
    kind, _, path = fault.partition(" ")
    if kind == "fail":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    if kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "truncate":
        os.truncate(path, os.path.getsize(path) // 4)
    else:
        os.kill(os.getpid(), getattr(signal, {"stop": "SIGSTOP"}.get(kind, kind)))


def run(arguments: list[str], out: str, err: str) -> None:
    """The command, with its output in two files."""
    for number, path in enumerate((os.devnull, out, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    start(arguments)


def start(arguments: list[str]) -> None:
    """FAULT PLACE CALL COMMAND ARGUMENTS."""
    arm(arguments[0], arguments[1], int(arguments[2]))
    sys.argv[1:] = arguments[3:]
    main()


if __name__ == "__main__":
    start(sys.argv[1:])
