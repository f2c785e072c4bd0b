"""`ggufsmith eval`: what files, or recipes, have lost against the model that they were made from."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.container.errors import Failure, OutputConflict, Usage
from ggufsmith.container.text import counted
from ggufsmith.pipeline.request import MakeOptions, Request, SourceOptions, TextOptions

if TYPE_CHECKING:
    from ggufsmith.evaluate.evaluation import EvalTask
    from ggufsmith.evaluate.judged import Evaluation, Judged
    from ggufsmith.evaluate.quality import Comparison, Quality

NO_CARD = "Leave out --card, and take the numbers from --csv."
NO_CARD_OF_RECIPES = "Leave out --card, or name files only."


@with_records(
    "model", "file", only="text context chunks device recipes imatrix imatrix_chunks lora revision token stream"
)
def evaluate(
    *,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE.gguf...", help="The files to judge. If one is split, name any one shard."),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="The model that they were made from: a folder, a GGUF file, or a model on a hub.",
        ),
    ],
    make: MakeOptions,
    reading: TextOptions,
    source: SourceOptions,
    engine: Annotated[
        str,
        typer.Option(
            metavar="torch|llama.cpp",
            help="What runs the models: torch, block by block, in float32; or llama.cpp, as users run them, with the "
            "speed. It needs llama-cpp-python.",
        ),
    ] = "torch",
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Compare two of the files or recipes, window by window, with an interval of 95 %.",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Write the numbers, of every domain too, as CSV. '-' prints them instead of the table.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", help="Draw divergence over size: .svg, .png or .html."),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Put the table into the model card beside the first file; if there is none, write it."
        ),
    ] = False,
    no_overwrite: Annotated[bool, typer.Option("--no-overwrite", help="Fail if an output already exists.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what quantized files, or recipes that have not been written yet, have lost against their source.

    All of them run over the same text, and the second half of every window is scored, as in llama-perplexity:
    perplexity; Kullback-Leibler divergence from the source, its mean and its worst tokens; how often both think the
    same token the most probable. A star marks files for which no other is both smaller and closer to the source.
    """
    unwritten: list[Exception] = []

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.evaluate.evaluation import EvalTask, check_task
        from ggufsmith.evaluating import evaluated

        task = EvalTask(
            Request(Path(against), source, make),
            tuple(files or ()),
            reading,
            engine,  # type: ignore[arg-type]  # checked below
            (compare,) if compare else (),
        )
        check_task(task)
        outputs = Outputs(csv, plot, _card_path(task) if card else None)
        _check_outputs(outputs, task, overwrite=not no_overwrite, as_json=as_json, quiet=quiet)
        found = evaluated(task, against, render.display(quiet or as_json))
        written: list[tuple[str, str]] = []
        try:
            for label, path, write in _writers(outputs, task, found, against):
                try:
                    write()
                    written.append((label, str(path)))
                except (Failure, OSError) as error:
                    unwritten.append(error)
        finally:  # what took hours to measure is shown, whatever became of the files
            _print(found, outputs, written, as_json=as_json, quiet=quiet)

    guarded(work, as_json)
    for error in unwritten:  # for people, even if the report was for a machine, which has it already
        guarded(partial(_raise, error), False)


def _raise(error: Exception) -> NoReturn:
    raise error


# ---- what is written ----


@dataclass(frozen=True)
class Outputs:
    """Where the numbers go besides the screen. csv: `-` is standard output."""

    csv: Path | None
    plot: Path | None
    card: Path | None

    @property
    def printed(self) -> bool:
        """Whether the CSV goes to standard output."""
        return self.csv == Path("-")

    @property
    def files(self) -> list[Path]:
        """All that are written."""
        return [path for path in (None if self.printed else self.csv, self.plot, self.card) if path is not None]


def _check_outputs(outputs: Outputs, task: "EvalTask", *, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Before the work: Usage where nothing would be kept, or nothing can be written; OutputConflict for what is in the
    way."""
    from ggufsmith.container.apart import check_all_apart, check_apart, check_distinct
    from ggufsmith.container.replace import check_place
    from ggufsmith.convert.inputs import files_of
    from ggufsmith.evaluate.judged import check_csv
    from ggufsmith.evaluate.plot import check_plot
    from ggufsmith.evaluate.texts import text_files
    from ggufsmith.reads import files_read

    if outputs.printed and as_json:
        raise Usage("--csv - and --json both go to standard output", fix="Leave out --json, or name a file with --csv.")
    if not outputs.files:
        keep = "Name a file for the numbers with --csv"
        if sys.stdout is None:
            raise Usage("standard output is closed, and the numbers would be lost", fix=f"{keep}.")
        if quiet and not as_json and not outputs.printed:
            raise Usage("nothing would be shown or written", where="--quiet", fix=f"{keep}, or leave out --quiet.")
    if outputs.plot is not None:
        check_plot(outputs.plot)
    for path in outputs.files:
        check_place(path)
    judged = list(chain(*map(files_of, task.files)))
    if outputs.card is not None:
        _check_card(outputs.card, task)
        check_apart(outputs.card, [*text_files(task.reading.text), *judged])
    tables = [path for path in outputs.files if path != outputs.card]
    check_all_apart(tables, [*files_read(task.request, task.reading.text), *judged])
    check_distinct(outputs.files)
    if outputs.csv in outputs.files:
        check_csv(outputs.csv)
    for path in () if overwrite else outputs.files:
        if path.exists():
            raise OutputConflict(
                "the output already exists", where=path, fix="Choose another name, or leave out --no-overwrite."
            )


def _writers(
    outputs: Outputs, task: "EvalTask", found: "Evaluation", against: str
) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """What each file is called in the summary, its path, and what writes it."""
    from ggufsmith.container.replace import replace_bytes, replace_text
    from ggufsmith.evaluate.judged import csv_of
    from ggufsmith.evaluate.plot import picture

    csv, plot, card = outputs.csv, outputs.plot, outputs.card
    if csv is not None and not outputs.printed:
        yield "csv", csv, lambda: replace_text(csv, csv_of(found.files))
    if plot is not None:
        title = f"{found.source}: {counted(found.scored_tokens, 'token')} of {', '.join(found.texts)}"
        yield "picture", plot, lambda: replace_bytes(plot, picture(found.files, title=title, suffix=plot.suffix))
    if card is not None:
        yield "card", card, lambda: _write_card(card, task, found, against)


def _print(
    found: "Evaluation", outputs: Outputs, written: Sequence[tuple[str, str]], *, as_json: bool, quiet: bool
) -> None:
    from ggufsmith.cli import render
    from ggufsmith.evaluate.judged import csv_of
    from ggufsmith.report import as_dict

    if as_json:
        render.as_json(as_dict(found))
    elif outputs.printed:
        render.document(csv_of(found.files))
    elif not quiet:
        _show(found, written)


# ---- what a person sees ----


def _show(found: "Evaluation", written: Sequence[tuple[str, str]]) -> None:
    from ggufsmith.cli import render
    from ggufsmith.evaluate.judged import HEADS

    heads = [f"{head} ".replace("KL ", "KL\n").replace("top ", "top\n") for head in HEADS]
    timed = any(row.speed for row in found.files)
    perplexity, divergence, _, same, _ = heads
    shown = (perplexity, divergence, same, "prompt\ntokens/s ", "tokens/s ") if timed else ("bits ", *heads)
    render.table([_row(each, timed) for each in found.files], ("file", "size ", *shown))
    domains = [quality.domain for quality in found.source_quality[1:]]
    for number, domain in enumerate(domains, 1):
        rows = [(_name(each), *_losses(each.quality[number])) for each in found.files]
        render.table(rows, ("file", *heads), f"domain {domain}")
    render.blank()
    render.lines(_summary(found, written))
    for note in found.notes:
        render.paragraph(f"note: {note}", indent=6)


def _row(row: "Judged", timed: bool) -> tuple[str, ...]:
    from ggufsmith.cli import render

    perplexity, divergence, worst, same, change = _losses(row.whole)
    size = render.size(row.bytes)
    if not timed:
        return _name(row), size, f"{row.bits_per_weight:.2f}", perplexity, divergence, worst, same, change
    speeds = (f"{row.speed.prompt:.0f}", f"{row.speed.generation:.1f}") if row.speed else ("", "")
    return _name(row), size, perplexity, divergence, same, *speeds


def _name(row: "Judged") -> str:
    return f"{row.label} *" if row.pareto else row.label


def _losses(quality: "Quality") -> tuple[str, str, str, str, str]:
    return (
        _with_error(quality.perplexity, quality.perplexity_error),
        _with_error(quality.divergence, quality.divergence_error),
        f"{quality.divergence_999:.3g}",
        f"{100 * quality.same_top:.1f} %",
        f"{100 * quality.change:.2f} %",
    )


def _with_error(value: float | None, error: float | None) -> str:
    """As many places as the error has two digits of; very small numbers by their exponent. An error that is not known,
    or is none, says nothing of the places."""
    from math import floor, log10

    from ggufsmith.evaluate.judged import TOO_LARGE

    if value is None:
        return TOO_LARGE
    if not error:
        return f"{value:.3g}" if error is None else f"{value:.3g} ±0"
    places = max(1 - floor(log10(error)), 0)
    return f"{value:.{places}f} ±{error:.{places}f}" if places <= 6 else f"{value:.2e} ±{error:.0e}"


def _summary(found: "Evaluation", written: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    own = found.source_quality[0]
    yield "source", f"{found.source}, perplexity {_with_error(own.perplexity, own.perplexity_error)}"
    windows = f"{counted(found.windows, 'window')} of {found.context}"
    yield "text", f"{', '.join(found.texts)}: {windows}, {counted(found.scored_tokens, 'token')} scored"
    for pair in found.comparisons:
        yield "compared", _compared(pair, {row.name: row.label for row in found.files})
    yield from written
    yield "done", f"in {found.seconds:.1f} s, {found.engine} on {found.device}"


def _compared(pair: "Comparison", labels: Mapping[str, str]) -> str:
    from ggufsmith.evaluate.quality import FEWEST_WINDOWS

    first, second, ratio = labels[pair.first], labels[pair.second], pair.divergence_ratio
    found = f"{second} diverges {ratio.value:.3g} times as much as {first}"
    windows = counted(pair.windows, "window")
    if ratio.low is None or ratio.high is None:
        return (
            f"{found} in {windows}, but an interval takes {FEWEST_WINDOWS} windows: which of them is closer to the "
            "source cannot be told"
        )
    better = f"{labels[pair.better]} is closer to the source" if pair.better else "no difference can be told"
    return f"{found} ({ratio.low:.3g} to {ratio.high:.3g}, from {windows}): {better}"


# ---- the card ----


def _card_path(task: "EvalTask") -> Path:
    if not task.files:
        raise Usage("a model card is of files, and a recipe has none yet", fix=NO_CARD_OF_RECIPES)
    return task.files[0].parent / "README.md"


def _check_card(path: Path, task: "EvalTask") -> None:
    """Before the work: Usage without a file that has a card, OutputConflict for a README.md that is not ours."""
    from ggufsmith.naming.filecard import check_card

    if task.request.make.recipes:
        raise Usage("a model card is of files, and a recipe has none yet", fix=NO_CARD_OF_RECIPES)
    check_card(path, fix=NO_CARD)


def _write_card(path: Path, task: "EvalTask", found: "Evaluation", against: str) -> None:
    from ggufsmith.container.provenance import file_sha256
    from ggufsmith.convert.hub.names import hub_model
    from ggufsmith.evaluate.card import command_of, with_table
    from ggufsmith.naming.cardfacts import Publisher
    from ggufsmith.naming.filecard import card_of, card_text_at, write_card

    text = card_text_at(path) or card_of(task.files, Publisher(None, None, None), digest=file_sha256)
    source = Path(against).resolve().name if Path(against).exists() or not hub_model(against, None) else against
    command = command_of([row.name for row in found.files], source, task.reading, task.engine)
    write_card(path, with_table(text, found, command), fix=NO_CARD)
