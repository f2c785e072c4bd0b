"""Where every command runs: errors and signals become one message and an exit code."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import typer


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `with` on the way out cleans up."""


def guarded(command: Callable[[], None], machine: bool) -> None:
    """Run a command; turn errors and signals into one message and an exit code."""
    from ggufsmith.cli import render
    from ggufsmith.container.errors import Failure

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here needs BLAS, whose idle threads would spin
    signal.signal(signal.SIGTERM, terminate)
    render.show_anything()
    try:
        command()
    except Failure as error:
        render.failure(error, machine)
        code = error.code
    except BrokenPipeError:  # who read the output has left, and wants to hear no more
        raise
    except OSError as error:
        render.failure(Failure(error.strerror or str(error), where=error.filename), machine)
        code = Failure.code
    except Exception as error:  # a bug: never a traceback for the user, unless asked for
        if os.environ.get("GGUFSMITH_DEBUG"):
            raise
        what = f"internal error: {type(error).__name__}: {error}"
        render.failure(Failure(what, fix="Please report it, with the output of GGUFSMITH_DEBUG=1."), machine)
        code = Failure.code
    except (KeyboardInterrupt, Terminated) as error:
        render.line(f"interrupted; {' '.join(getattr(error, '__notes__', ['nothing was left behind']))}", render.err)
        code = 130 if isinstance(error, KeyboardInterrupt) else 143
    else:
        return
    raise typer.Exit(code)
