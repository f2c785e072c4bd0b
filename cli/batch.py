"""`ggufsmith batch`: many models, unattended."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import WriteOptions

if TYPE_CHECKING:
    from ggufsmith.batch_push import PushingWatcher
    from ggufsmith.calibrate.price import ModelRuns
    from ggufsmith.convert.batch.extras import Measures
    from ggufsmith.convert.batch.job import JobFile
    from ggufsmith.convert.batch.passes import JobPass
    from ggufsmith.convert.batch.price import Work
    from ggufsmith.convert.batch.report import Outcome
    from ggufsmith.convert.batch.run import BatchOptions, Calibrated, Draft, Imatrices, Watcher

EXAMPLES = """
[bold]Examples[/bold]

ggufsmith batch jobs.toml --dry-run
  shows what would be made: files, exact sizes, disk space and the estimated time

ggufsmith batch jobs.toml --max-memory 8G --report report.json --junit report.xml
  makes what is missing; run it again after an interruption, or when something has changed

ggufsmith batch jobs.toml --shard 2/4
  runs as the second of four runners that share the models

[bold]Exit codes[/bold]

0 all outputs exist and are verified, 101 to 125 the number of failed models plus 100 (the last line says why),
2 usage, 4 the job file is wrong and nothing was done, 5 no space for all outputs, 130 or 143 interrupted
"""

UPLOAD = "ggufsmith-upload"  # what the names of threads that upload begin with
LINE = 4000  # characters of the last line


@with_records("model", only="threads sync")
def batch(
    job: Annotated[Path, typer.Argument(metavar="JOBS.toml", help="The job file, TOML or YAML.")],
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the outputs, their exact sizes and the estimated time; write nothing."),
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run as the I-th of N runners that share the models.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", metavar="SIZE", help="The limit for the memory of the whole run, such as 8G."),
    ] = None,
    max_disk: Annotated[
        str | None,
        typer.Option(
            "--max-disk",
            metavar="SIZE",
            help="The limit for the total size of outputs that are being written at the same time, such as 50G.",
        ),
    ] = None,
    side_by_side: Annotated[
        int,
        typer.Option("--jobs", "-j", min=1, help="The maximum number of models that are converted at the same time."),
    ] = 2,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first model that fails.")] = False,
    verify_finished: Annotated[
        bool,
        typer.Option(
            "--verify-finished", help="Hash finished outputs again, even if their size and time are unchanged."
        ),
    ] = False,
    by_content: Annotated[
        bool,
        typer.Option(
            "--by-content", help="Recognise unchanged inputs by SHA-256 instead of size and time; for fresh checkouts."
        ),
    ] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write a JSON report to this file.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="Write a JUnit report to this file.")] = None,
    write: WriteOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert and quantize many models as a job file says, each read once for all its outputs.

    The job file is checked as a whole first. Outputs that are there and up to date are left alone, what is missing is
    made; a model that fails does not stop the others.
    """
    from ggufsmith.cli.guard import guarded

    code = 0

    def work() -> None:
        nonlocal code
        from ggufsmith.container.errors import Malformed, Usage
        from ggufsmith.container.output_names import check_name
        from ggufsmith.container.units import parse_size
        from ggufsmith.convert.batch.apart import check_reports
        from ggufsmith.convert.batch.jobfile import read_job
        from ggufsmith.convert.batch.report import problem_annotations
        from ggufsmith.convert.batch.run import BatchOptions

        options = BatchOptions(
            memory=parse_size(max_memory) if max_memory else None,
            disk=parse_size(max_disk) if max_disk else None,
            side_by_side=side_by_side,
            threads=write.threads,
            sync=write.sync,
            by_content=by_content,
            verify=verify_finished,
            fail_fast=fail_fast,
        )
        for path in (report, junit):
            if path and not path.absolute().parent.is_dir():
                raise Usage(f"the report's folder does not exist: {path.parent}")
            if path and path.is_dir():
                raise Usage(f"the report cannot be written: {path} is a folder")
            if path:
                check_name(path, fix="Choose another name for the report.")
        try:
            read = read_job(job, os.environ, _shard_of(shard))
        except Malformed as error:
            _annotate(problem_annotations(error.also, Path.cwd()), as_json)
            raise
        check_reports(read, (report, junit))
        with _imatrices(read, write.threads) as imatrices:
            options = replace(options, imatrices=imatrices, measures=_measures(read), calibrated=_calibrated(read))
            code = _price(read, options, as_json) if dry_run else _run(read, options, report, junit, as_json, quiet)

    try:
        guarded(work, as_json)
    except typer.Exit as exit:
        _leave(exit.exit_code)
        raise
    if code:
        raise typer.Exit(code)


@contextmanager
def _imatrices(job: "JobFile", threads: int | None) -> "Iterator[Imatrices | None]":
    """What makes the importance matrices that the job leaves to us, if it does."""
    from ggufsmith.pipeline.request import AUTO

    if not any(model.request.make.imatrix == AUTO for model in job.models):
        yield None
        return
    from ggufsmith.calibrate.auto import AutoImatrix
    from ggufsmith.calibrate.make import shipped_imatrix
    from ggufsmith.calibrate.ready import text_names

    with AutoImatrix(partial(shipped_imatrix, threads=threads), text_names()) as imatrices:
        yield imatrices


def _measures(job: "JobFile") -> "Measures | None":
    """What measures what the outputs have lost, if the job asks for it."""
    if not any(model.settings["quality"] for model in job.models):
        return None
    from ggufsmith.evaluate.needed import need_libraries

    need_libraries()
    from ggufsmith.evaluate.jobs import JobMeasures

    return JobMeasures()


def _calibrated(job: "JobFile") -> "Calibrated | None":
    """What readies the models of a job that are calibrated, if there are any."""
    if not any(model.request.make.calibrate for model in job.models):
        return None
    from ggufsmith.calibrate.run import calibrated

    return calibrated


def _leave(code: int) -> None:
    """End the process at once if threads of an interrupted job are in a flush, a check or an upload that takes long."""
    import sys

    if "ggufsmith.convert.batch.run" in sys.modules:
        from ggufsmith.convert.batch.run import abandoned

        uploads = any(thread.name.startswith(UPLOAD) for thread in threading.enumerate())
        if abandoned() or uploads:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _shard_of(text: str | None) -> tuple[int, int]:
    from ggufsmith.container.errors import Usage

    number, _, count = (text or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise Usage(
            f"--shard {text} is not of the form I/N: the number of this runner, counted from 1, and the "
            f"number of runners"
        )
    return int(number), int(count)


def _run(
    job: "JobFile", options: "BatchOptions", report: Path | None, junit: Path | None, machine: bool, quiet: bool
) -> int:
    """Returns the exit code."""
    from ggufsmith.cli import render
    from ggufsmith.cli.batch_report import job_report
    from ggufsmith.cli.board import board
    from ggufsmith.container.replace import replace_bytes, replace_text
    from ggufsmith.container.summary import shown
    from ggufsmith.convert.batch.report import annotations, as_junit, exit_code, verdict
    from ggufsmith.convert.batch.run import run_job
    from ggufsmith.report import as_dict

    started = time.perf_counter()
    outcomes: list[Outcome] = []
    try:
        with board(quiet or machine) as watch, _pushing(job, watch) as pushing:
            run_job(job, options, pushing or watch, outcomes)
            if pushing is not None:
                outcomes[:] = pushing.published(outcomes)
    finally:  # an interrupted job reports too
        seconds = time.perf_counter() - started
        body = as_dict(job_report(outcomes, seconds))
        if report:
            replace_text(report, json.dumps(body, ensure_ascii=False, indent=2) + "\n")
        if junit:
            replace_bytes(junit, as_junit(outcomes, job.path.name, seconds))
        _annotate(annotations(outcomes, Path.cwd()), machine)
    code = exit_code(outcomes)
    if machine:
        render.as_json(body)
    elif code or not quiet:
        (render.err if code else render.out).print(shown(verdict(outcomes), LINE), markup=False)
    return code


def _pushing(job: "JobFile", watch: "Watcher") -> "AbstractContextManager[PushingWatcher | None]":
    """What publishes the models of the job; None if it names no repository."""
    if not any(model.settings["push"] for model in job.models):
        return nullcontext()
    from ggufsmith.batch_push import PushingWatcher

    return PushingWatcher(job, watch, thread_name=UPLOAD)


def _annotate(lines: Iterator[str], machine: bool) -> None:
    """Tell GitHub, where it listens."""
    from ggufsmith.cli import render

    if os.environ.get("GITHUB_ACTIONS") == "true" and not machine:
        for line in lines:
            render.out.print(line, markup=False)


def _price(job: "JobFile", options: "BatchOptions", machine: bool) -> int:
    """Show what the job would make and take. Returns the exit code."""
    from ggufsmith.cli import render
    from ggufsmith.cli.batch_report import dry_report, upload_sizes
    from ggufsmith.cli.board import described
    from ggufsmith.container.summary import shown
    from ggufsmith.convert.batch.price import calibrate, work_of
    from ggufsmith.convert.batch.report import exit_code, verdict
    from ggufsmith.convert.batch.run import Watcher, above, plan_job
    from ggufsmith.report import as_dict

    works: dict[Path, Work] = {}
    runs: dict[Path, ModelRuns] = {}

    def look(draft: "Draft", planned: "JobPass") -> None:
        works[draft.model.key] = work_of(planned.made)
        if draft.model.is_run:
            from ggufsmith.calibrate.price import runs_of

            runs[draft.model.key] = runs_of(draft.model, planned)

    started = time.perf_counter()
    drafts, outcomes = plan_job(job, options, Watcher(), look, dry=True)
    planning = (time.perf_counter() - started) / max(len(works), 1)  # the run plans again
    speed = calibrate(works.values(), above(job.output))
    running = {key: _run_seconds(each, options.cores) for key, each in runs.items()}
    seconds = {key: planning + speed.seconds(work, options.cores) + running.get(key, 0) for key, work in works.items()}
    uploads = upload_sizes(drafts, outcomes)
    code = exit_code(outcomes)
    if machine:
        render.as_json(as_dict(dry_report(drafts, outcomes, seconds, uploads)))
        return code
    _show(_rows(drafts))
    for outcome in outcomes:
        if outcome.error:
            for line in described(outcome):
                render.err.print(line, markup=False)
    render.lines(_totals(job, drafts, outcomes, sum(seconds.values()), sum(running.values()), uploads))
    if code:
        render.err.print(shown(verdict(outcomes), LINE), markup=False)
    return code


def _run_seconds(runs: "ModelRuns", threads: int) -> float:
    from ggufsmith.calibrate.price import run_seconds

    return run_seconds(runs, threads)


def _rows(drafts: Sequence["Draft"]) -> Iterator[tuple[str, ...]]:
    """One line per output that is missing."""
    from ggufsmith.cli import render
    from ggufsmith.container.summary import shown

    for draft in drafts:
        for made in draft.made:
            files = shown(made.files[0].name) + (f" and {len(made.files) - 1} more" if len(made.files) > 1 else "")
            bits = f"{made.bits_per_weight:.2f} bits per weight"
            yield shown(draft.model.name), files, f"{made.size} bytes", render.size(made.size), bits
            yield from (("", f"  note: {shown(note, 500)}", "", "", "") for note in made.notes)


def _show(rows: Iterator[tuple[str, ...]]) -> None:
    from ggufsmith.cli import render

    table = list(rows)
    widths = [max(len(row[k]) for row in table if row[0]) for k in range(len(table[0]))] if table else []
    for row in table:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        render.out.print(line.rstrip(), markup=False)


def _totals(
    job: "JobFile",
    drafts: Sequence["Draft"],
    outcomes: Sequence["Outcome"],
    seconds: float,
    running: float,
    uploads: Mapping[str, int],
) -> Iterator[tuple[str, str]]:
    import shutil

    from ggufsmith.cli import render
    from ggufsmith.container.text import counted, some
    from ggufsmith.convert.batch.passes import PROCESS
    from ggufsmith.convert.batch.run import above

    files, size = sum(len(draft.made) for draft in drafts), sum(draft.size for draft in drafts)
    there = sum(len(draft.record.outputs) for draft in drafts) + sum(len(outcome.made) for outcome in outcomes)
    yield "to make", f"{counted(files, 'output')} of {counted(len(drafts), 'model')}; {there} already exist"
    free = shutil.disk_usage(above(job.output)).free
    yield "disk", f"{render.size(size)} ({size} bytes), {render.size(free)} are free"
    if drafts:
        yield "memory", f"about {render.size(max(draft.memory for draft in drafts) + PROCESS)} for the largest"
        share = f", of which running the models takes {_duration(running)}" if running else ""
        yield "time", f"about {_duration(seconds)}{share}, estimated from a short measurement on this machine"
    if uploads:
        total = render.size(sum(uploads.values()))
        yield (
            "upload",
            f"{total} at most, to {some(list(uploads))}; the time depends on the connection and comes on top",
        )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
