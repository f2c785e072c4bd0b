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


if __name__ == "__main__":
    arm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    del sys.argv[1:4]
    main()
