"""One run: measure, plan, work, publish, report. The only place that does, for every command and every call."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ggufsmith.beside import Beside
from ggufsmith.calibrated import with_calibration
from ggufsmith.progress import Display
from ggufsmith.pushing import Pushing
from ggufsmith.reads import files_read
from ggufsmith.report import RunReport, output_report, run_report

if TYPE_CHECKING:
    from ggufsmith.pipeline.outputs import Written
    from ggufsmith.pipeline.passes import Pass
    from ggufsmith.pipeline.publish import PublishOptions
    from ggufsmith.pipeline.request import Request


@dataclass(frozen=True)
class RunOutcome:
    """What a run has made, or, after a dry run, would make.

    written: None after a dry run. beside: (label, text) of what was left beside the outputs. recipes: the recipe files
    that were written.
    """

    planned: "Pass"
    report: RunReport
    written: "Written | None" = None
    beside: Sequence[tuple[str, str]] = ()
    recipes: Sequence[Path] = ()


def run_request(
    request: "Request",
    open_pass: "Callable[[Request], Pass]",
    publish: "PublishOptions",
    display: Display,
    *,
    dry_run: bool,
    hashes: bool = False,
) -> RunOutcome:
    """Do what a request asks for. open_pass: plans it. hashes: report those of all files and tensors."""
    check_named(request)
    pushing = Pushing.of(publish, request.source.token)
    keeps = request.make.keep_imatrix  # which is done with, when the request is ready
    with with_calibration(request, open_pass, display, dry_run=dry_run) as (ready, opener):
        return _run(ready, opener, publish, pushing, display, dry_run=dry_run, hashes=hashes, keeps=keeps)


def _run(
    request: "Request",
    open_pass: "Callable[[Request], Pass]",
    publish: "PublishOptions",
    pushing: Pushing,
    display: Display,
    *,
    dry_run: bool,
    hashes: bool,
    keeps: bool,
) -> RunOutcome:
    """As `run_request`, of a request that leaves no importance matrix to be made. keeps: it was kept."""
    from ggufsmith.container.apart import check_all_apart, check_distinct
    from ggufsmith.container.replace import replace_text
    from ggufsmith.container.writer import noting_complete
    from ggufsmith.quantize.measured import with_budgets

    def measuring(weights: int) -> AbstractContextManager[Callable[[int], None]]:
        return display.progress("measuring", weights)

    solved_request, solved = with_budgets(request, open_pass, measuring)
    planned = open_pass(solved_request)
    beside = Beside(publish, request.write.overwrite, hashes, display)
    with planned:
        planned.check_apart()
        recipes = _recipe_files(request, planned, [each.text for each in solved], dry_run=dry_run)
        saved = [path for path, _ in recipes]
        read = [*files_read(request), *([publish.card_template] if publish.card_template else [])]
        check_all_apart([*_files(planned), *saved, *beside.records(planned.outputs)], read)
        check_distinct([*_files(planned), *saved, *beside.paths(planned.outputs)])
        if dry_run:
            entries = [output_report(planned, output, tensors=True) for output in planned.outputs]
            outcome = RunOutcome(planned, run_report(planned, entries))
        else:
            beside.check(planned.outputs)
            pushing.check([output.paths for output in planned.outputs])
            outcome = _work(planned, solved_request, beside, display)
            kept = _kept(planned, request) if keeps else []
            files = _files(planned)
            with noting_complete(files):
                lines = pushing.push(files, kept, display)
            named = [("imatrix", str(path)) for path in kept]
            report = replace(outcome.report, kept_imatrix=str(kept[0]) if kept else None)
            outcome = replace(outcome, report=report, beside=[*outcome.beside, *named, *lines])
        for path, text in recipes:
            replace_text(path, text)
    return replace(outcome, recipes=[path for path, _ in recipes])


def check_named(request: "Request") -> None:
    """OutputConflict, before anything is planned or run, if a file that the options name for writing is one that they
    name for reading, or if two of those are one.
    """
    from ggufsmith.container.apart import check_all_apart

    write = request.write
    split = write.split_max_size or write.split_max_tensors or write.keep_split  # what is written is called otherwise
    recipe = request.make.save_recipe  # with another ending it is refused for that
    named = [None if split else write.outfile, recipe if recipe and recipe.suffix == ".toml" else None]
    check_all_apart(named, files_read(request))


def _files(planned: "Pass") -> list[Path]:
    """All files of all outputs."""
    return [path for output in planned.outputs for path in output.paths]


def _kept(planned: "Pass", request: "Request") -> list[Path]:
    """The importance matrix that was kept beside the outputs."""
    if request.make.imatrix is None:
        return []
    path = planned.outputs[0].paths[0].parent / request.make.imatrix.name
    return [path] if path.is_file() else []


def _work(planned: "Pass", request: "Request", beside: Beside, display: Display) -> RunOutcome:
    for note in planned.notes:
        display.note(note)
    names = [output.path.name for output in planned.outputs]
    with display.progress(names, planned.weights) as shown:
        written = planned.run(
            request.write,
            advance=shown.advance,
            compiling=partial(shown.phase, "compiling kernels"),
            loaded=display.compiled,
        )
    entries, lines = beside.publish(planned, [output_report(planned, output) for output in planned.outputs])
    return RunOutcome(planned, run_report(planned, entries, written), written, lines)


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
