"""How far long work is: what it reports to, and the callback of a program that wants to know."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["weights", "bytes", "windows"]


class Progress:
    """What long work reports to, from any thread. This one shows nothing.

    It can be called like its `advance`.
    """

    def advance(self, amount: int) -> None:
        """So many more weights, or bytes, are done."""

    def phase(self, text: str, done: int, total: int) -> None:
        """Another step, such as compiling kernels or verifying files, has done `done` of `total`.

        It ends when done reaches total. Its time does not count in the speed or the time left.
        """

    def __call__(self, amount: int) -> None:
        self.advance(amount)


class Display:
    """Where a run shows what it does. This one shows nothing."""

    def progress(
        self, title: str | Sequence[str], total: int | None, unit: Unit = "weights"
    ) -> AbstractContextManager[Progress]:
        """Show work within a `with`.

        title: of the work, or the names of the files that it makes. total: how much there is; None if it is not known.
        """
        return nullcontext(Progress())

    def note(self, text: str) -> None:
        """Show a sentence before the work begins."""

    def compiled(self, seconds: float) -> None:
        """The kernels are ready; compiling or loading them took so long."""


@dataclass(frozen=True)
class ProgressEvent:
    """How far a run is, as a callback is told.

    step:  what is done: "converting", "downloading org/name", "compiling kernels", "hashing", "running the model", ...
    done:  how much of it is done, of total; both in the unit. total: None if it is not known.
    unit:  "weights", "bytes", "windows", or "kernels".
    files: the names of the files that the step makes.
    """

    step: str
    done: int
    total: int | None
    unit: str
    files: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """The part that is done, from 0 to 1; None if it is not known."""
        return None if self.total is None else min(self.done / self.total, 1.0) if self.total else 1.0


Callback = Callable[[ProgressEvent], None]


@dataclass(frozen=True)
class CallbackDisplay(Display):
    """Tells a callback, never from two threads at once. What the callback raises ends the run."""

    callback: Callback
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def progress(self, title: str | Sequence[str], total: int | None, unit: Unit = "weights") -> Iterator[Progress]:
        """See Display."""
        step, files = (title, ()) if isinstance(title, str) else ("converting", tuple(title))
        yield _Counted(self, step, total, unit, files)

    def tell(self, event: ProgressEvent) -> None:
        """Call the callback."""
        with self.lock:
            self.callback(event)


class _Counted(Progress):
    """Adds up what is done of one step."""

    def __init__(self, told: CallbackDisplay, step: str, total: int | None, unit: str, files: tuple[str, ...]) -> None:
        self.told, self.step, self.total, self.unit, self.files = told, step, total, unit, files
        self.done, self.lock = 0, threading.Lock()

    def advance(self, amount: int) -> None:
        with self.lock:
            self.done += amount
            self.told.tell(ProgressEvent(self.step, self.done, self.total, self.unit, self.files))

    def phase(self, text: str, done: int, total: int) -> None:
        self.told.tell(ProgressEvent(text, done, total, "kernels"))
