"""How far a run is: bars in a terminal, short lines in a log.

A terminal of any width shows the bar, the share that is done and the time left; the title gets the rest of the line.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from ggufsmith.container.text import printable
from ggufsmith.progress import Progress

EVERY = 10.0  # seconds between two lines in a log
WINDOW = 30.0  # seconds over which speed is measured
RESOLUTION = 0.5  # seconds between two measurements
SHORTEST = 1.0  # seconds of work that a speed needs
SHARE, LEFT, RATE = 5, 11, 24  # columns of "100 %", "59 min left", "123.4 thousand weights/s"
ENOUGH = 36  # columns of a title, before the speed is shown


@contextmanager
def shown_progress(
    console: Console,
    title: str | Sequence[str],
    total: int | None,
    rate: Callable[[float], str],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """A bar in a terminal, a line every ten seconds in a log (see `render.progress`)."""
    if not isinstance(title, str):
        if listing := listing_of(title):
            console.print(printable(listing), markup=False)
        title = title_of(title)
    task = Task(printable(title), total, rate, clock)
    if live(console):
        with bars(console, lambda: [task]):
            yield task
    else:
        yield Logged(task, console, EVERY)


def live(console: Console) -> bool:
    """Whether this is a terminal that can redraw a line."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def bars(console: Console, tasks: Callable[[], Sequence["Task"]]) -> Iterator[None]:
    """Show a line for each task until the work ends."""
    rows = ProgressRows(tasks)
    with Live(get_renderable=lambda: rows, console=console, transient=True, refresh_per_second=5):
        yield


@dataclass
class Task(Progress):
    """Work whose state can be shown at any time. All times are the clock's, in seconds."""

    title: str
    total: int | None
    rate: Callable[[float], str]
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    step: tuple[str, int, int] | None = None
    marks: deque[tuple[float, int]] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def advance(self, amount: int) -> None:
        """See Progress. The first call starts the clock: what came before it (compiling, opening) was other work."""
        now = self.clock()
        with self.lock:
            self.done += amount
            self.step = None
            if not self.marks or now - self.marks[-1][0] >= RESOLUTION:
                self.marks.append((now, self.done))
            while len(self.marks) > 2 and now - self.marks[1][0] >= WINDOW:
                self.marks.popleft()

    def phase(self, text: str, done: int, total: int) -> None:
        """See Progress."""
        with self.lock:
            self.step = (text, done, total) if done < total else None
            self.marks.clear()

    def grow(self, amount: int) -> None:
        """There is so much more to do."""
        with self.lock:
            self.total = (self.total or 0) + amount

    def speed(self) -> float | None:
        """Weights or bytes per second, lately; None if the work has not gone on for long enough to tell."""
        with self.lock:
            if not self.marks:
                return None
            seconds, amount = self.clock() - self.marks[0][0], self.done - self.marks[0][1]
        return amount / seconds if seconds >= SHORTEST and amount > 0 else None

    def line(self) -> str:
        """For a log."""
        if step := self.step:
            return f"{self.title}: {step[0]} {step[1]} of {step[2]}"
        speed = self.speed()
        facts = [] if self.total is None else [percent(self.done, self.total)]
        if speed and self.total is not None:
            facts.append(f"{duration((self.total - self.done) / speed)} left")
        return f"{self.title}: {', '.join([*facts, self.rate(speed)] if speed else facts) or 'begun'}"

    def row(self, width: int, ascii_only: bool = False) -> Text:
        """For a terminal: one line of at most so many columns."""
        if step := self.step:
            title, done, total = f"{step[0]} {step[1]} of {step[2]}", step[1], step[2]
            left = rate = ""
        else:
            title, done, total, speed = self.title, self.done, self.total or 0, self.speed()
            left = f"{duration((total - done) / speed)} left" if speed and total else ""
            rate = self.rate(speed) if speed else ""
        if not total:
            return Text(shortened(f"{title} {rate}".strip(), width))
        share, room = min(done / total, 1.0), min(max(width // 5, 4), 40)
        spare = width - room - SHARE - LEFT - 2
        shows_rate = step is None and spare - RATE - 1 > min(cell_len(title), ENOUGH)
        title = shortened(title, max(spare - 1 - (RATE + 1) * shows_rate, 0))
        full = int(share * room)
        row = Text(f"{title} " if title else "")
        row.append(("#" if ascii_only else "━") * full, "green")
        row.append(("-" if ascii_only else "─") * (room - full), "dim")
        row.append(f" {percent(done, total):>{SHARE}}")
        row.append(f" {left:>{LEFT}}" if spare >= 0 else "")
        row.append(f" {rate:>{RATE}}" if shows_rate else "")
        return row


class Logged(Progress):
    """A task that says every now and then how far it is."""

    def __init__(self, task: Task, console: Console, every: float) -> None:
        self.task, self.console, self.every = task, console, every
        self.last = task.clock()
        self.lock = threading.Lock()

    def advance(self, amount: int) -> None:
        """See Progress."""
        self.task.advance(amount)
        self.say()

    def phase(self, text: str, done: int, total: int) -> None:
        """See Progress."""
        self.task.phase(text, done, total)
        self.say()

    def say(self) -> None:
        """Print a line, if the last one is old enough."""
        now = self.task.clock()
        with self.lock:
            if now - self.last < self.every:
                return
            self.last = now
        self.console.print(self.task.line(), markup=False)


@dataclass(frozen=True)
class ProgressRows:
    """Tasks under one another, drawn anew whenever rich asks."""

    tasks: Callable[[], Sequence[Task]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for task in self.tasks():
            yield task.row(options.max_width - 1, options.ascii_only)  # a full line makes some terminals wrap


# ---- what is said of a task ----


def title_of(names: Sequence[str]) -> str:
    """A short name for files that are made together."""
    stem = _stem(names)
    many = f"{len(names)} files"
    return names[0] if len(names) == 1 else f"{stem}: {many}" if stem else many


def listing_of(names: Sequence[str]) -> str | None:
    """A sentence that names all files, without what is common to them; None for one file."""
    if len(names) < 2:
        return None
    stem = _stem(names)
    if not stem:
        return f"writing {len(names)} files: {', '.join(names)}"
    rests = (name.removesuffix(".gguf")[len(stem) + 1 :] for name in names)
    return f"writing {len(names)} files, {stem}-*.gguf: {', '.join(rests)}"


def _stem(names: Sequence[str]) -> str:
    """What all names begin with, up to a hyphen."""
    words = zip(*(name.removesuffix(".gguf").split("-")[:-1] for name in names), strict=False)
    return "-".join(same[0] for same in takewhile(lambda same: len(set(same)) == 1, words))


def percent(done: int, total: int) -> str:
    """The share that is done, rounded down: 100 % is said only when all is done."""
    return f"{min(100 * done // total, 100)} %" if total else "100 %"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, as precisely as a forecast deserves."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if (number := round(max(seconds, 0) / size)) < 100:
            return f"{number} {unit}"
    return f"{min(seconds / 86400, 9999):.0f} days"


def shortened(text: str, width: int) -> str:
    """The text in at most `width` columns of a terminal: cut in its middle, because names differ at their ends."""
    if cell_len(text) <= width:
        return text
    if width < 5:
        return ""
    head = _fitting(text, (width - 1) // 2)
    tail = _fitting(text[::-1], width - 1 - cell_len(head))[::-1]
    return f"{head}…{tail}"


def _fitting(text: str, width: int) -> str:
    """As many first characters as fit into so many columns."""
    used = 0
    for index, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return text[:index]
    return text
