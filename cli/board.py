"""What is shown while a batch runs: a live table in a terminal, plain lines in a log."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ggufsmith.cli import render
from ggufsmith.container.summary import shown
from ggufsmith.convert.batch.jobfile import JobModel
from ggufsmith.convert.batch.report import Outcome
from ggufsmith.convert.batch.run import Draft, Watcher

EVERY = 30.0  # seconds between lines about one model in a log


def described(outcome: Outcome) -> Iterator[str]:
    """The lines about a model that ended."""
    name = shown(outcome.model.name)
    if outcome.error:
        first, *rest = str(outcome.error).split("\n")
        yield f"{name}: failed: {shown(first, 1000)}"
        yield from (f"  {shown(line, 1000)}" for line in rest)
    elif outcome.status != "done":
        yield f"{name}: {outcome.status}"
    else:
        rate = render.weights_per_second(outcome.rate)
        yield f"{name}: done and verified, in {outcome.seconds:.1f} s ({rate})"
        for made in outcome.made:
            if made.label in outcome.new:
                for file in made.files:
                    yield f"  {shown(file.name)}  {render.size(file.bytes)}  {made.bits_per_weight:.2f} bits per weight"
        yield from (f"  note: {shown(warning, 500)}" for warning in outcome.warnings)


class Lines(Watcher):
    """For logs."""

    def __init__(self) -> None:
        self.said: dict[Path, float] = {}
        self.done: dict[Path, int] = {}
        self.drafts: dict[Path, Draft] = {}
        self.lock = threading.Lock()

    def begun(self, draft: Draft) -> None:
        with self.lock:
            self.drafts[draft.model.key] = draft
            self.done[draft.model.key] = 0
            self.said[draft.model.key] = time.monotonic()
        labels = ", ".join(made.label for made in draft.made)
        self.say(f"{draft.model.name}: making {labels} ({render.size(draft.size)})")

    def advanced(self, model: JobModel, weights: int) -> None:
        with self.lock:
            self.done[model.key] += weights
            if time.monotonic() - self.said[model.key] < EVERY:
                return
            self.said[model.key] = time.monotonic()
            share = 100 * self.done[model.key] // max(self.drafts[model.key].weights, 1)
        self.say(f"{model.name}: {share} %")

    def loaded(self, seconds: float) -> None:
        render.kernels(seconds)

    def ended(self, outcome: Outcome) -> None:
        for line in described(outcome):
            render.out.print(line, markup=False)

    def say(self, line: str) -> None:
        render.err.print(shown(line, 500), markup=False)


class Board(Watcher):
    """For a terminal: a bar for each model that runs, and one for the job; what ended is printed above them."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.whole = progress.add_task("all models", total=0)
        self.tasks: dict[Path, TaskID] = {}
        self.weights = 0

    def planned(self, draft: Draft) -> None:
        self.weights += draft.weights
        self.progress.update(self.whole, total=self.weights)

    def begun(self, draft: Draft) -> None:
        labels = ", ".join(made.label for made in draft.made)
        title = shown(f"{draft.model.name}: {labels}", 60)
        self.tasks[draft.model.key] = self.progress.add_task(title, total=draft.weights)

    def advanced(self, model: JobModel, weights: int) -> None:
        self.progress.update(self.tasks[model.key], advance=weights)
        self.progress.update(self.whole, advance=weights)

    def ended(self, outcome: Outcome) -> None:
        task = self.tasks.pop(outcome.model.key, None)
        if task is not None:
            self.progress.remove_task(task)
        for line in described(outcome):
            self.progress.console.print(line, markup=False)


@contextmanager
def board(quiet: bool) -> Iterator[Watcher]:
    """What watches a batch for the user."""
    if quiet:
        yield Watcher()
    elif render.err.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=render.err, transient=True) as progress:
            yield Board(progress)
    else:
        yield Lines()
