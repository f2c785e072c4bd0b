"""Ctrl-C where a program of ours has begun nothing yet, or is done: it ends at once, with the usual exit code.

Imported before all else: the imports of a command take a while, in which Python would answer with a traceback. While a
command works, `cli.guard` has the signal. Programs of others that import ggufsmith are left alone.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

PROGRAMS = ("gguf-convert", "gguf-quant", "ggufsmith")
CODE = 130


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process. There is nothing to clean up."""
    os.write(2, b"interrupted\n")
    os._exit(CODE)


# A shell that starts a program in the background has it ignore the signal, which stays so.
if Path(sys.argv[0] if sys.argv else "").stem in PROGRAMS and signal.getsignal(signal.SIGINT) is (
    signal.default_int_handler
):
    signal.signal(signal.SIGINT, leave)
