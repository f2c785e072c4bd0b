"""Runs a job: plans every model, then makes what is missing, side by side as far as the budgets allow.

Each model has a thread of its own, and each pass spreads its chunks over threads as every conversion does. What a
model lacks is made in one pass over its weights; one that fails does not stop the others.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Protocol

from ggufsmith.container.disk import check_space, remove_leftover
from ggufsmith.container.errors import Failure, Malformed, NoSpace, Unsupported
from ggufsmith.container.provenance import file_sha256
from ggufsmith.convert.batch.extras import Measures, check_extras, write_extras
from ggufsmith.convert.batch.job import JobFile, JobModel, WantedOutput
from ggufsmith.convert.batch.located import located, pinned
from ggufsmith.convert.batch.passes import PROCESS, JobPass, fixed, memory, plan_model
from ggufsmith.convert.batch.report import Outcome
from ggufsmith.convert.batch.schema import in_keys
from ggufsmith.convert.batch.state import (
    FinishedFile,
    FinishedOutput,
    Record,
    extras_fingerprint,
    fingerprints,
    finished,
    write_record,
)
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import AUTO, Request
from ggufsmith.quantize.measured import Progress, silently

PATIENCE = 8.0  # seconds that an interrupted job waits for its threads; a flush to a slow disk can take longer
THREAD = "ggufsmith batch"
TICK = 0.2  # seconds between looks at signals, which Windows does not deliver to a thread that waits


class Imatrices(Protocol):
    """Makes importance matrices on the way (`calibrate.auto.AutoImatrix`)."""

    def promised(self, request: Request, open_pass: Callable[[Request], Pass]) -> Request:
        """The request with one that is as large, for a plan."""

    def made(
        self,
        request: Request,
        open_pass: Callable[[Request], Pass],
        *,
        keep: Path | None = None,
        progress: Progress = silently,
    ) -> Request:
        """The request with its own, which is also kept at `keep`."""


# Readies a request that is to be calibrated (`calibrate.run.calibrated`): the request with nothing left to be made, and
# what opens it. It is told of progress, and whether types are to be weighed, for which the model is run beforehand.
Calibrated = Callable[..., AbstractContextManager[tuple[Request, Callable[[Request], Pass]]]]


@dataclass(frozen=True)
class BatchOptions:
    """memory, disk: bytes, of the whole process, and of the outputs in the making at one time.

    side_by_side: models at one time. threads: of each; None takes every core.
    by_content: know large inputs by their hash, not by size and time. verify: hash finished outputs again.
    fail_fast: the first failure stops the job.
    imatrices: make the importance matrices that jobs leave to us; None if no model of the job does.
    measures: measures what outputs have lost; None if no model of the job asks for it.
    calibrated: readies the models that are calibrated; None if there are none.
    """

    memory: int | None = None
    disk: int | None = None
    side_by_side: int = 2
    threads: int | None = None
    sync: bool = True
    by_content: bool = False
    verify: bool = False
    fail_fast: bool = False
    imatrices: "Imatrices | None" = None
    measures: Measures | None = None
    calibrated: "Calibrated | None" = None

    @property
    def cores(self) -> int:
        """The number of threads of each model."""
        return self.threads or available_cores()


class Watcher:
    """Told of what happens, from several threads; this one does not care."""

    def planned(self, draft: "Draft") -> None:
        """What a model lacks is known."""

    def begun(self, draft: "Draft") -> None:
        """Its pass begins."""

    def advanced(self, model: JobModel, weights: int) -> None:
        """So many more weights of it are done."""

    def step(self, model: JobModel, what: str, weights: int) -> AbstractContextManager[Callable[[int], None]]:
        """A model is run, for what is said: it yields what is told of weights that the text went through."""
        return nullcontext(lambda weights: None)

    def loaded(self, seconds: float) -> None:
        """Compiling or loading kernels took this long."""

    def ended(self, outcome: Outcome) -> None:
        """It is done, or failed, or was finished before."""


@dataclass(frozen=True)
class Draft:
    """What is to be done for one model.

    record: what is finished; wanted: what is not; made: that as it will be, without hashes.
    memory: see `passes.memory`; threads: as many as the budget allows; weights: of the model.
    """

    model: JobModel
    record: Record
    wanted: tuple[WantedOutput, ...]
    made: tuple[FinishedOutput, ...] = ()
    memory: int = 0
    threads: int = 1
    weights: int = 0
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of what is to be made."""
        return sum(made.size for made in self.made)


class JobStopped(BaseException):
    """Raised in the threads of a job that ends early."""


def plan_job(
    job: JobFile,
    options: BatchOptions,
    watch: Watcher,
    look: Callable[[Draft, JobPass], None] = lambda draft, planned: None,
    *,
    dry: bool,
) -> tuple[list[Draft], list[Outcome]]:
    """What is to be done for each model, and the outcomes of those that need nothing or cannot be planned.

    look: shown every plan while it is open. dry: write nothing, not even sums and cards that are missing.
    """
    drafts, outcomes = [], []
    for model in job.models:
        try:
            draft = _draft(model, options, look, dry=dry)
            there = draft.record.outputs
            if not draft.wanted and not dry and draft.record.extras != extras_fingerprint(model):
                there = _finish(model, there, options.measures)
        except Exception as error:
            outcome = Outcome(model, "failed", error=_failure(error))
        else:
            if draft.wanted:
                watch.planned(draft)
                drafts.append(draft)
                continue
            outcome = Outcome(model, "finished", there)
        outcomes.append(outcome)
        watch.ended(outcome)
        if outcome.error and options.fail_fast:
            break
    return drafts, outcomes


def run_job(job: JobFile, options: BatchOptions, watch: Watcher, outcomes: list[Outcome]) -> None:
    """Make everything that is missing. What becomes of each model is added to `outcomes`, also if this is interrupted.

    NoSpace if the disk cannot hold all of it, unless `options.disk` says that somebody makes room.
    """
    drafts: list[Draft] = []
    runner = _Runner(options, watch, outcomes)
    try:
        drafts, done = plan_job(job, options, watch, dry=False)
        outcomes += done
        if not (options.fail_fast and any(outcome.error for outcome in outcomes)):
            _check_disk(job, drafts, options)
            runner.run(drafts)
    except BaseException as error:
        for note in _what_is_there(drafts, runner.published, outcomes):
            error.add_note(note)
        raise
    finally:
        known = {outcome.model.key for outcome in outcomes}
        outcomes += [Outcome(model, "not begun") for model in job.models if model.key not in known]
        order = {model.key: k for k, model in enumerate(job.models)}
        outcomes.sort(key=lambda outcome: order[outcome.model.key])


def _what_is_there(drafts: Sequence[Draft], published: Sequence[Draft], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Sentences for a job that ends early."""
    if made := sum(outcome.status == "done" for outcome in outcomes):
        yield f"the outputs of {made} models are complete and verified"
    for draft in published:
        yield (
            f"the outputs of {draft.model.name} are complete and verified; run the same job again to add the files "
            "beside them"
        )
    if any(True for draft in drafts for _ in _partials(draft)):
        yield "the finished part is kept; run the same job again to continue"


def _draft(model: JobModel, options: BatchOptions, look: Callable[[Draft, JobPass], None], *, dry: bool) -> Draft:
    model = pinned(model)
    plans = fingerprints(model, by_content=options.by_content)
    record = finished(model, plans, verify=options.verify)
    labels = {made.label for made in record.outputs}
    wanted = tuple(each for each in model.wanted if each.label not in labels)
    if not wanted:
        return Draft(model, record, ())
    check_extras(model)
    _check_memory(model, fixed(model, wanted), options)
    threads = options.cores
    weighs = not dry and any(map(_chooses, wanted))
    with located(model, plan=True) as (found, finder), readied(found, finder, options, weighs) as (there, opener):
        if model.settings["quality"] and options.measures:
            options.measures.check(found.request, finder)
        planned = plan_model(there, wanted, opener, threads=threads)
        with planned.made as made:
            made.check_apart()
            if options.memory is not None:
                while threads > 1 and PROCESS + memory(planned, there, threads) > options.memory:
                    threads -= 1
            needed = memory(planned, there, threads)
            outputs = _drafted(planned, plans)
            notes = tuple(map(in_keys, made.notes))
            draft = Draft(model, record, planned.wanted, outputs, needed, threads, made.weights, notes)
            look(draft, planned)
    _check_memory(model, needed, options)
    if options.disk is not None and draft.size > options.disk:
        what = f"the outputs need {draft.size} bytes, but the budget is {options.disk}"
        raise NoSpace(what, where=model.folder, fix="Raise --max-disk.")
    return draft


def _chooses(wanted: WantedOutput) -> bool:
    """Whether the types of an output are still to be chosen by what they cost."""
    return bool(wanted.recipe.addition) if wanted.recipe else wanted.budget is not None


@contextmanager
def readied(
    model: JobModel,
    opener: Callable[[Request], Pass],
    options: BatchOptions,
    making: bool,
    progress: Progress = silently,
) -> Iterator[tuple[JobModel, Callable[[Request], Pass]]]:
    """The model with what it leaves to us to learn of its activations, and what opens it.

    making: run the model for it, if that is wanted; else the plan has the sizes that it will have.
    """
    make, write = model.request.make, replace(model.request.write, threads=options.threads)
    if make.calibrate and options.calibrated:
        asked = replace(model.request, write=write)
        weighs = making and any(map(_chooses, model.wanted))
        with options.calibrated(asked, opener, progress=progress, weighs=weighs) as (request, opened):
            yield replace(model, request=request), opened
    elif make.imatrix == AUTO and options.imatrices:
        if making:
            request = options.imatrices.made(model.request, opener, keep=model.kept_imatrix, progress=progress)
        else:
            request = options.imatrices.promised(model.request, opener)
        yield replace(model, request=request), opener
    else:
        yield model, opener


def _check_memory(model: JobModel, needed: int, options: BatchOptions) -> None:
    if options.memory is not None and PROCESS + needed > options.memory:
        what = f"the model needs about {PROCESS + needed} bytes of memory, but the budget is {options.memory}"
        raise Failure(what, where=model.source, fix="Raise --max-memory.")


def _drafted(planned: JobPass, plans: Mapping[str, str]) -> tuple[FinishedOutput, ...]:
    """The outputs of a pass, without hashes."""
    return tuple(
        FinishedOutput(
            wanted.label,
            plans[wanted.label],
            tuple(
                FinishedFile(path.name, layout.size, "")
                for path, layout in zip(output.paths, output.shards.shards, strict=True)
            ),
            output.bits_per_weight,
            output.types,
            output.fallbacks,
            output.requantized,
            tuple(map(in_keys, output.notes)),
        )
        for wanted, output in zip(planned.wanted, planned.made.outputs, strict=True)
    )


def abandoned() -> bool:
    """Whether an interrupted job left threads behind that did not stop in time; leave the process without them."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def above(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _check_disk(job: JobFile, drafts: Sequence[Draft], options: BatchOptions) -> None:
    if drafts and options.disk is None:
        needed = sum(max(draft.size - _held(draft), 0) for draft in drafts)
        check_space(above(job.output) / "outputs", needed)


def _held(draft: Draft) -> int:
    """Bytes of the disk that an interrupted run of the same outputs holds already."""
    return sum(512 * getattr(path.stat(), "st_blocks", 0) for path in _partials(draft))


def _partials(draft: Draft) -> Iterator[Path]:
    """The temporary files of runs that were interrupted or failed."""
    for made in draft.made:
        for file in made.files:
            yield from draft.model.folder.glob(f".{escape(file.name)}.*.partial")


@dataclass
class _Runner:
    """Starts what fits into the budgets, in the order of the job, and waits for it."""

    options: BatchOptions
    watch: Watcher
    outcomes: list[Outcome]
    running: dict[Path, Draft] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)
    broken: Exception | None = None
    published: list[Draft] = field(default_factory=list)

    def run(self, drafts: Sequence[Draft]) -> None:
        waiting, threads = list(drafts), []
        try:
            while waiting or self.running:
                with self.changed:
                    while not self.stop.is_set() and (draft := next(filter(self.fits, waiting), None)):
                        waiting.remove(draft)
                        self.running[draft.model.key] = draft
                        thread = threading.Thread(target=self.work, args=(draft,), name=THREAD, daemon=True)
                        threads.append(thread)
                        thread.start()
                    if self.stop.is_set():
                        waiting.clear()
                    if self.running:
                        self.changed.wait(TICK)
        finally:  # after an interrupt: let them clean up
            self.stop.set()
            deadline = time.monotonic() + PATIENCE
            for thread in threads:
                thread.join(max(deadline - time.monotonic(), 0))
            with self.changed:  # who is still there is left behind
                left = [Outcome(draft.model, "interrupted", draft.record.outputs) for draft in self.running.values()]
            self.outcomes += left
        if self.broken:
            raise self.broken

    def fits(self, draft: Draft) -> bool:
        """Whether a model can start beside those that run."""
        others = self.running.values()
        memory = PROCESS + draft.memory + sum(other.memory for other in others)
        disk = draft.size + sum(other.size for other in others)
        return (
            len(self.running) < self.options.side_by_side
            and (self.options.memory is None or memory <= self.options.memory)
            and (self.options.disk is None or disk <= self.options.disk)
        )

    def work(self, draft: Draft) -> None:
        """One model, in its thread."""
        try:
            self.watch.begun(draft)
            outcome = self.outcome(draft)
            self.outcomes.append(outcome)
            if outcome.error and self.options.fail_fast:
                self.stop.set()
            self.watch.ended(outcome)
        except Exception as error:  # of who watches, such as a closed pipe: raised in the main thread
            self.broken = error
            self.stop.set()
        with self.changed:
            del self.running[draft.model.key]
            self.changed.notify()

    def outcome(self, draft: Draft) -> Outcome:
        model, started = draft.model, time.perf_counter()
        try:
            made, notes = self.make(draft)
        except JobStopped:
            return Outcome(model, "interrupted", draft.record.outputs, seconds=time.perf_counter() - started)
        except Exception as error:  # a bug in one model's way does not end the night
            seconds = time.perf_counter() - started
            if isinstance(error, Malformed | Unsupported):  # no other run will get any further
                for path in _partials(draft):
                    remove_leftover(path)
            return Outcome(model, "failed", draft.record.outputs, seconds=seconds, error=_failure(error))
        new = frozenset(each.label for each in draft.wanted)
        return Outcome(model, "done", made, new, notes, time.perf_counter() - started, draft.weights)

    def make(self, draft: Draft) -> tuple[tuple[FinishedOutput, ...], tuple[str, ...]]:
        """All outputs of the model, and the notes."""
        model = draft.model

        def advance(weights: int) -> None:
            self.check()
            self.watch.advanced(model, weights)

        self.check()
        with (
            located(model, plan=False, told=lambda size: self.check()) as (found, finder),
            readied(found, finder, self.options, True, self.runs(model, "running the model")) as (there, opener),
        ):
            planned = plan_model(there, draft.wanted, opener)
            with planned.made as made:
                self.check()
                model.folder.mkdir(parents=True, exist_ok=True)
                write = replace(
                    there.request.write, threads=draft.threads, sync=self.options.sync, resume=True, overwrite=True
                )
                written = made.run(write, advance=advance, loaded=self.watch.loaded)
                notes = tuple(map(in_keys, (*made.notes, *written.notes)))
        known = {each.label: each for each in (*draft.record.outputs, *draft.made)}
        outputs = tuple(known[wanted.label] for wanted in model.wanted)
        self.published.append(draft)
        write_record(model, Record(outputs))  # to hash them can take long, and is no reason to make them again
        runs = self.runs(model, "measuring the quality")
        finished_outputs = _finish(model, outputs, self.options.measures, self.check, runs)
        self.published.remove(draft)
        return finished_outputs, notes

    def runs(self, model: JobModel, what: str) -> Progress:
        """Shows a run of the model, and looks whether the job ends."""

        @contextmanager
        def progress(weights: int) -> Iterator[Callable[[int], None]]:
            def advance(done: int) -> None:
                self.check()
                tell(done)

            with self.watch.step(model, what, weights) as tell:
                yield advance

        return progress

    def check(self) -> None:
        if self.stop.is_set():
            raise JobStopped


def _finish(
    model: JobModel,
    outputs: Sequence[FinishedOutput],
    measures: Measures | None,
    check: Callable[[], None] = lambda: None,
    progress: Progress = silently,
) -> tuple[FinishedOutput, ...]:
    """Hash what has no hash yet, write what stands beside the outputs, the record last.

    check: called now and then. progress: shows how far a measurement of the quality is.
    """

    def hashed(file: FinishedFile) -> FinishedFile:
        return replace(file, sha256=file.sha256 or file_sha256(model.folder / file.name, lambda size: check()))

    done = tuple(replace(made, files=tuple(map(hashed, made.files))) for made in outputs)
    write_extras(model, done, measures, check, progress)
    write_record(model, Record(done, extras_fingerprint(model)))
    return done


def _failure(error: Exception) -> Failure:
    if isinstance(error, Failure):
        fix = in_keys(error.fix) if error.fix else None
        return type(error)(in_keys(error.what), where=error.where, fix=fix, also=map(in_keys, error.also))
    if isinstance(error, OSError):
        return Failure(error.strerror or str(error), where=error.filename)
    return Failure(f"internal error: {type(error).__name__}: {error}", fix="Please report it.")
