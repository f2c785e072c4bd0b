"""`ggufsmith eval`: what files, or recipes, have lost against the model that they were made from."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import MakeOptions, Request, SourceOptions, TextOptions

if TYPE_CHECKING:
    from ggufsmith.evaluate.evaluation import EvalTask
    from ggufsmith.evaluate.judged import Evaluation, Judged
    from ggufsmith.evaluate.quality import Comparison, Quality


@with_records("model", "file", only="text context chunks device recipes imatrix lora revision token stream")
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
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the numbers, of every domain too, as CSV.")
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
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what quantized files, or recipes that have not been written yet, have lost against their source.

    All of them run over the same text, and the second half of every window is scored, as in llama-perplexity:
    perplexity; Kullback-Leibler divergence from the source, its mean and its worst tokens; how often both think the
    same token the most probable. A star marks files for which no other is both smaller and closer to the source.
    """

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.container.apart import check_all_apart
        from ggufsmith.container.replace import check_place, replace_bytes, replace_text
        from ggufsmith.convert.inputs import files_of
        from ggufsmith.evaluate.evaluation import EvalTask, check_task
        from ggufsmith.evaluate.judged import csv_of
        from ggufsmith.evaluate.plot import check_plot, picture
        from ggufsmith.evaluating import evaluated
        from ggufsmith.reads import files_read
        from ggufsmith.report import as_dict

        task = EvalTask(
            Request(Path(against), source, make),
            tuple(files or ()),
            reading,
            engine,  # type: ignore[arg-type]  # checked below
            (compare,) if compare else (),
        )
        check_task(task)
        if plot is not None:
            check_plot(plot)
        for path in (csv, plot):
            check_place(path)
        if card:
            _check_card(task)
        check_all_apart((csv, plot), [*files_read(task.request, reading.text), *chain(*map(files_of, task.files))])
        found = evaluated(task, against, render.display(quiet or as_json))
        if csv is not None:
            replace_text(csv, csv_of(found.files))
        if plot is not None:
            title = f"{found.source}: {found.scored_tokens} tokens of {', '.join(found.texts)}"
            replace_bytes(plot, picture(found.files, title=title, suffix=plot.suffix))
        written = [("csv", csv), ("picture", plot), ("card", _write_card(task, found, against) if card else None)]
        if as_json:
            render.as_json(as_dict(found))
        elif not quiet:
            _show(found, [(label, str(path)) for label, path in written if path is not None])

    guarded(work, as_json)


# ---- what a person sees ----


def _show(found: "Evaluation", written: Sequence[tuple[str, str]]) -> None:
    from ggufsmith.cli import render

    render.table([_row(each) for each in found.files], _heads(found.files))
    domains = [quality.domain for quality in found.source_quality[1:]]
    for number, domain in enumerate(domains, 1):
        rows = [(_name(each), *_losses(each.quality[number])) for each in found.files]
        render.table(rows, ("file", "perplexity ", "divergence ", "99.9 % ", "same "), f"domain {domain}")
    render.lines(_summary(found, written))
    for note in found.notes:
        render.paragraph(f"note: {note}", indent=6)


def _heads(rows: Sequence["Judged"]) -> tuple[str, ...]:
    if any(row.speed for row in rows):
        return "file", "size ", "perplexity ", "divergence ", "same ", "prompt/s ", "tokens/s "
    return "file", "size ", "bits ", "perplexity ", "divergence ", "99.9 % ", "same "


def _row(row: "Judged") -> tuple[str, ...]:
    from ggufsmith.cli import render

    perplexity, divergence, worst, same = _losses(row.whole)
    size = render.size(row.bytes)
    if row.speed:
        return _name(row), size, perplexity, divergence, same, f"{row.speed.prompt:.0f}", f"{row.speed.generation:.1f}"
    return _name(row), size, f"{row.bits_per_weight:.2f}", perplexity, divergence, worst, same


def _name(row: "Judged") -> str:
    return f"{row.label} *" if row.pareto else row.label


def _losses(quality: "Quality") -> tuple[str, str, str, str]:
    return (
        _with_error(quality.perplexity, quality.perplexity_error),
        _with_error(quality.divergence, quality.divergence_error),
        f"{quality.divergence_999:.3g}",
        f"{100 * quality.same_top:.1f} %",
    )


def _with_error(value: float, error: float) -> str:
    """As many places as the error has two digits of; very small numbers by their exponent."""
    from math import floor, log10

    places = max(1 - floor(log10(error)), 0) if error > 0 else 0
    return f"{value:.{places}f} ±{error:.{places}f}" if places <= 6 else f"{value:.2e} ±{error:.0e}"


def _summary(found: "Evaluation", written: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    from ggufsmith.container.text import counted

    own = found.source_quality[0]
    yield "source", f"{found.source}, perplexity {_with_error(own.perplexity, own.perplexity_error)}"
    windows = f"{counted(found.windows, 'window')} of {found.context}"
    yield "text", f"{', '.join(found.texts)}: {windows}, {found.scored_tokens} tokens scored"
    for pair in found.comparisons:
        yield "compared", _compared(pair, {row.name: row.label for row in found.files})
    yield from written
    yield "done", f"in {found.seconds:.1f} s, {found.engine} on {found.device}"


def _compared(pair: "Comparison", labels: Mapping[str, str]) -> str:
    first, second, ratio = labels[pair.first], labels[pair.second], pair.divergence_ratio
    better = f"{labels[pair.better]} is closer to the source" if pair.better else "no difference can be told"
    return (
        f"{second} diverges {ratio.value:.3g} times as much as {first} ({ratio.low:.3g} to {ratio.high:.3g}, from "
        f"{pair.windows} windows): {better}"
    )


# ---- the card ----


def _card_path(task: "EvalTask") -> Path:
    return task.files[0].parent / "README.md"


def _check_card(task: "EvalTask") -> None:
    """Before the work: Usage without a file that has a card, OutputConflict for a README.md that is not ours."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.naming.filecard import check_card

    if not task.files or task.request.make.recipes:
        raise Usage("a model card is of files, and a recipe has none yet", fix="Leave out --card, or name files only.")
    check_card(_card_path(task), fix="Leave out --card, and take the table from --csv.")


def _write_card(task: "EvalTask", found: "Evaluation", against: str) -> Path:
    from ggufsmith.container.provenance import file_sha256
    from ggufsmith.convert.hub.names import hub_model
    from ggufsmith.evaluate.card import command_of, with_table
    from ggufsmith.naming.cardfacts import Publisher
    from ggufsmith.naming.filecard import card_of, write_card

    path = _card_path(task)
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
        text = card_of(task.files, Publisher(None, None, None), digest=file_sha256)
    source = Path(against).resolve().name if Path(against).exists() or not hub_model(against, None) else against
    command = command_of([path.name for path in task.files], source, task.reading, task.engine)
    write_card(path, with_table(text, found, command))
    return path
