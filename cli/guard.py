"""Where every program starts and every command runs: all output can be encoded, and errors and signals become one
message and an exit code."""

import codecs
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from ggufsmith.interrupts import leave

if TYPE_CHECKING:
    from ggufsmith.container.errors import Failure

# What our texts and rich's contain beyond ASCII, for encodings without it.
PLAIN = {"…": "...", "→": "->", "×": "x", "•": "*"}


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `with` on the way out cleans up."""


def start(app: Callable[[], object]) -> None:
    """Run a program: with output that any encoding can take, or one error if nothing takes it, from its help on."""
    show_anything()
    try:
        try:
            app()
        finally:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()  # now, and not when Python ends
    except BrokenPipeError:  # who read the output has left
        drop_output()
        sys.exit(1)
    except OSError as error:
        from ggufsmith.cli import render

        failure = failure_of(error)
        render.failure(failure, machine=False)
        drop_output()
        sys.exit(failure.code)


def failure_of(error: OSError) -> "Failure":
    """The error that people are told; NoSpace for a full disk, also that to which standard output goes."""
    from ggufsmith.container.errors import Failure, NoSpace
    from ggufsmith.container.writer import FULL

    if error.errno in FULL:
        where = error.filename or ("standard output" if _cannot_print() else None)
        return NoSpace(f"cannot write: {error.strerror}", where=where, fix="Free some space.")
    return Failure(error.strerror or str(error), where=error.filename)


def _cannot_print() -> bool:
    """Whether standard output still holds what it could not write."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        return True
    return False


def show_anything() -> None:
    """Characters that the encoding of the screen, or of the file behind it, lacks are replaced or escaped.

    Python's default is to end the run with UnicodeEncodeError.
    """
    codecs.register_error("ggufsmith", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ggufsmith")


def drop_output() -> None:
    """What standard output could not take is not tried again when Python ends, which would change the exit code."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with suppress(OSError, ValueError, AttributeError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(PLAIN.get(each) or _escaped(each) for each in error.object[error.start : error.end])
    return text, error.end


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """The signal that ended a command, also if cleaning up after it met an error of its own."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, Terminated)):
        error = error.__context__
    return error


@contextmanager
def _signals() -> Iterator[None]:
    """While a command works, signals are exceptions, so that it cleans up. Before and after, they end the process."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(signal.SIGTERM, terminate)
        if before[signal.SIGINT] is leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it is not Python's, and cannot be put back
                signal.signal(number, handler)


def guarded(command: Callable[[], None], machine: bool) -> None:
    """Run a command; turn errors and signals into one message and an exit code.

    command: what to do. machine: report errors as JSON on standard output.
    Raises typer.Exit with the code of the error (see container/errors.py), 130 for SIGINT or 143 for SIGTERM.
    """
    from ggufsmith.cli import render
    from ggufsmith.container.errors import Failure

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here needs BLAS, whose idle threads would spin
    try:
        with _signals():
            command()
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()  # a full disk is an error of the command, not of Python's end
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if stopped := _interrupt_behind(error):
            clean = "no partial files were left" if error is stopped else f"cleaning up failed: {error!r}"
            render.line(f"interrupted; {'; '.join(getattr(stopped, '__notes__', [clean]))}", render.err)
            code = 130 if isinstance(stopped, KeyboardInterrupt) else 143
        elif isinstance(error, BrokenPipeError):  # who read the output has left, and wants to hear no more
            raise
        elif isinstance(error, Failure):
            render.failure(error, machine)
            code = error.code
        elif isinstance(error, OSError):
            failure = failure_of(error)
            render.failure(failure, machine)
            code = failure.code
        else:  # a bug: never a traceback for the user, unless asked for
            if os.environ.get("GGUFSMITH_DEBUG"):
                raise
            what = f"internal error: {type(error).__name__}: {error}"
            render.failure(Failure(what, fix="Please report it, with the output of GGUFSMITH_DEBUG=1."), machine)
            code = Failure.code
    else:
        return
    drop_output()
    raise typer.Exit(code)
