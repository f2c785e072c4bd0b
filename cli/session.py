"""One run of gguf-convert or gguf-quant: measure, plan, show, work, report, publish. The only place that does."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ggufsmith.cli import render
from ggufsmith.cli.calibrated import with_imatrix
from ggufsmith.cli.publish import Beside
from ggufsmith.cli.report import as_dict, output_report, run_report, tensor_reports

if TYPE_CHECKING:
    from ggufsmith.pipeline.outputs import OutputFile, Written
    from ggufsmith.pipeline.passes import Pass
    from ggufsmith.pipeline.request import PublishOptions, Request


def run_request(
    request: "Request",
    open_pass: "Callable[[Request], Pass]",
    publish: "PublishOptions",
    *,
    dry_run: bool,
    machine: bool,
    quiet: bool,
) -> None:
    """Do what a request asks for. open_pass: plans it. machine: report as JSON, and nothing else."""
    with with_imatrix(request, open_pass, dry_run=dry_run, silent=quiet or machine) as (weighed, notes):

        def noting(request: "Request") -> "Pass":
            planned = open_pass(request)
            return replace(planned, notes=(*notes, *planned.notes))

        _run(weighed, noting, publish, dry_run=dry_run, machine=machine, quiet=quiet)


def _run(
    request: "Request",
    open_pass: "Callable[[Request], Pass]",
    publish: "PublishOptions",
    *,
    dry_run: bool,
    machine: bool,
    quiet: bool,
) -> None:
    """As `run_request`, of a request that leaves no importance matrix to be made."""
    from ggufsmith.quantize.measured import with_budgets

    def measuring(weights: int) -> AbstractContextManager[Callable[[int], None]]:
        return render.progress("measuring", weights, silent)

    silent = quiet or machine
    solved_request, solved = with_budgets(request, open_pass, measuring)
    planned = open_pass(solved_request)
    beside = Beside(publish, overwrite=request.write.overwrite, machine=machine, silent=silent)
    with planned:
        planned.check_apart()
        recipes = _recipe_files(request, planned, [each.text for each in solved], dry_run=dry_run)
        if dry_run:
            _show_plan(planned, machine)
        else:
            beside.check(planned.outputs)
            _work(planned, solved_request, beside, machine=machine, silent=silent)
        for path, text in recipes:
            _save_recipe(path, text, silent)


def _work(planned: "Pass", request: "Request", beside: Beside, *, machine: bool, silent: bool) -> None:
    if not silent:
        for note in planned.notes:
            render.paragraph(f"note: {note}", render.err, indent=6)
    names = [output.path.name for output in planned.outputs]
    with render.progress(names, planned.weights, silent) as shown:
        written = planned.run(
            request.write,
            advance=shown.advance,
            compiling=partial(shown.phase, "compiling kernels"),
            loaded=(lambda seconds: None) if silent else render.kernels,
        )
    entries, lines = beside.publish(planned, [output_report(planned, output) for output in planned.outputs])
    if machine:
        render.as_json(as_dict(run_report(planned, entries, written)))
    elif not silent:
        render.lines(chain(_summary(planned, written), lines))


def _show_plan(planned: "Pass", machine: bool) -> None:
    """Every tensor of every output, its types and exact sizes."""
    if machine:
        entries = [output_report(planned, output, tensors=True) for output in planned.outputs]
        render.as_json(as_dict(run_report(planned, entries)))
        return
    for output in planned.outputs:
        render.table(
            [
                (
                    each.name,
                    " x ".join(map(str, each.shape)),
                    each.source_type,
                    each.type,
                    render.size(each.bytes),
                    each.op,
                    each.reason or _sources(each.sources),
                )
                for each in tensor_reports(planned, output)
            ]
        )
        render.lines(_facts(output))
    render.lines(_model(planned))
    for note in planned.notes:
        render.paragraph(f"note: {note}", indent=6)


def _sources(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _facts(output: "OutputFile") -> Iterator[tuple[str, str]]:
    for path in output.paths:
        yield "output", str(path)
    yield "size", f"{render.size(output.size)} ({output.size} bytes)"
    if output.types:
        types = ", ".join(f"{number} {name}" for name, number in output.types.items())
        count = len(output.shards.whole.tensors)
        yield "tensors", f"{count} ({types}), {output.bits_per_weight:.2f} bits per weight"
    for note in output.notes:
        yield "note", note


def _model(planned: "Pass") -> Iterator[tuple[str, str]]:
    yield "model", f"{planned.info.architecture}, {render.count(planned.weights)} weights"


def _summary(planned: "Pass", written: "Written") -> Iterator[tuple[str, str]]:
    for output in planned.outputs:
        yield from _facts(output)
    yield from _model(planned)
    for note in written.notes:
        yield "note", note
    rate = planned.weights / max(written.seconds, math.ulp(1.0))
    yield "done", f"verified, in {written.seconds:.1f} s ({render.count(rate)} weights/s)"


def _recipe_files(request: "Request", planned: "Pass", texts: list[str], *, dry_run: bool) -> list[tuple[Path, str]]:
    """Where the recipes that were found are saved; a dry run saves one only where it was asked to.

    OutputConflict if one may not replace what is there, Usage if its folder does not exist.
    """
    from ggufsmith.container.errors import OutputConflict, Usage

    wanted = request.make.save_recipe
    if dry_run and wanted is None:
        return []
    found = []
    for output, text in zip(planned.outputs, texts, strict=False):
        path = wanted or output.path.with_name(f"{output.path.name.removesuffix('.gguf')}.toml")
        if wanted and not path.parent.is_dir():
            raise Usage(
                "the folder for the recipe file does not exist",
                where=path.parent,
                fix="Choose another with --save-recipe.",
            )
        if not request.write.overwrite and path.exists():
            raise OutputConflict("the recipe file already exists", where=path, fix="Choose another with --save-recipe.")
        found.append((path, text))
    return found


def _save_recipe(path: Path, text: str, silent: bool) -> None:
    """Write the recipe that was found (see `replace_text`)."""
    from ggufsmith.container.replace import replace_text

    replace_text(path, text)
    if not silent:
        render.lines(iter([("recipe", str(path))]))
