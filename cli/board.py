"""What is shown while a batch runs: a live table in a terminal, plain lines in a log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ggufsmith.cli import render
from ggufsmith.cli.progress import Logged, Task, bars, live
from ggufsmith.container.summary import shown
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.report import Outcome
from ggufsmith.convert.batch.run import Draft, Watcher

EVERY = 30.0  # seconds between lines about one model in a log
FEW = 3  # outputs of a model that are named on its bar


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
        if (kept := outcome.model.kept_imatrix) and kept.is_file():
            yield f"  {shown(kept.name)}"
        yield from (f"  note: {shown(warning, 500)}" for warning in outcome.warnings)


class Lines(Watcher):
    """For logs."""

    def __init__(self) -> None:
        self.tasks: dict[Path, Logged] = {}

    def begun(self, draft: Draft) -> None:
        """Names the outputs, once."""
        labels = ", ".join(made.label for made in draft.made)
        render.line(f"{draft.model.name}: making {labels} ({render.size(draft.size)})", render.err)
        task = Task(shown(draft.model.name), draft.weights, render.weights_per_second)
        self.tasks[draft.model.key] = Logged(task, render.err, EVERY)

    def advanced(self, model: JobModel, weights: int) -> None:
        """Says every now and then how far a model is."""
        self.tasks[model.key].advance(weights)

    @contextmanager
    def step(self, model: JobModel, what: str, weights: int) -> Iterator[Callable[[int], None]]:
        """Says that it is run, and every now and then how far that is."""
        title = shown(f"{model.name}: {what}")
        render.line(title, render.err)
        yield Logged(Task(title, weights, render.weights_per_second), render.err, EVERY).advance

    def loaded(self, seconds: float) -> None:
        """Says why a first run takes longer."""
        render.kernels(seconds)

    def ended(self, outcome: Outcome) -> None:
        """Says what was made, or why not."""
        self.tasks.pop(outcome.model.key, None)
        for line in described(outcome):
            render.line(line)


class Board(Watcher):
    """For a terminal: a bar for each model that runs, and one for the job; what ended is printed above them."""

    def __init__(self) -> None:
        self.whole = Task("all models", 0, render.weights_per_second)
        self.tasks: dict[Path, Task] = {}
        self.runs: dict[Path, Task] = {}

    def rows(self) -> list[Task]:
        """What is on the screen, from top to bottom."""
        return [self.whole, *(self.runs.get(key, task) for key, task in self.tasks.items())]

    def planned(self, draft: Draft) -> None:
        """The bar of the job grows."""
        self.whole.grow(draft.weights)

    def begun(self, draft: Draft) -> None:
        """A bar for one model more."""
        title = shown(f"{draft.model.name}: {_labels(draft)}")
        self.tasks[draft.model.key] = Task(title, draft.weights, render.weights_per_second)

    def advanced(self, model: JobModel, weights: int) -> None:
        """Moves two bars."""
        self.tasks[model.key].advance(weights)
        self.whole.advance(weights)

    @contextmanager
    def step(self, model: JobModel, what: str, weights: int) -> Iterator[Callable[[int], None]]:
        """For as long, its bar shows that."""
        task = self.runs[model.key] = Task(shown(f"{model.name}: {what}"), weights, render.weights_per_second)
        try:
            yield task.advance
        finally:
            self.runs.pop(model.key, None)

    def ended(self, outcome: Outcome) -> None:
        """Replaces a bar by lines that stay."""
        self.tasks.pop(outcome.model.key, None)
        for line in described(outcome):
            render.line(line, render.err)


def _labels(draft: Draft) -> str:
    labels = [made.label for made in draft.made]
    return ", ".join(labels) if len(labels) <= FEW else f"{len(labels)} files"


@contextmanager
def board(quiet: bool) -> Iterator[Watcher]:
    """What watches a batch for the user."""
    if quiet:
        yield Watcher()
    elif live(render.err):
        watch = Board()
        with bars(render.err, watch.rows):
            yield watch
    else:
        yield Lines()
