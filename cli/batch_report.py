"""The JSON report of a job, in the records of a run's (api/report.py). docs/batch-report.schema.json is generated from
these.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufsmith.report import SCHEMA, FileReport, OutputReport

if TYPE_CHECKING:
    from ggufsmith.convert.batch.job import JobModel
    from ggufsmith.convert.batch.report import Outcome
    from ggufsmith.convert.batch.run import Draft
    from ggufsmith.convert.batch.state import FinishedOutput

TO_MAKE = "to make"


@dataclass(frozen=True, kw_only=True)
class JobOutputReport(OutputReport):
    """One output, as in the report of a run, but without tensors. status: 'done' if it was made in this run, 'finished'
    if it existed, 'to make' in a dry run.
    """

    status: str


@dataclass(frozen=True)
class ErrorReport:
    """Why a model failed. code: the exit code that the error would have of its own. where: a file, tensor or key. fix:
    what to do next. also: further problems.
    """

    code: int
    what: str
    where: str | None
    fix: str | None
    also: list[str]


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """One model of a job. place: FILE:LINE of the job file. input: its folder or file, or its name on a hub. status:
    'done' if something was made, 'finished' if all existed, 'failed', 'interrupted', 'not begun', or 'to make' in a dry
    run. outputs: those that exist, and in a dry run those that are to be made. kept_imatrix: the path of the importance
    matrix that keep_imatrix kept.
    """

    name: str
    place: str
    input: list[str]
    folder: str
    status: str
    parameters: int | None
    notes: list[str]
    outputs: list[JobOutputReport]
    error: ErrorReport | None = None
    seconds: float | None = None
    weights_per_second: float | None = None
    kept_imatrix: str | None = None
    estimated_memory: int | None = None
    estimated_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """One run of ggufsmith batch. bytes: of what was made, or is to be made. verdict: the last line for people.

    estimated_seconds: of a dry run, with running the models, but without uploads. upload_bytes: what would be uploaded
    at most, by repository; what is there already is not sent again.
    """

    schema: int = SCHEMA
    bytes: int
    models: list[ModelReport]
    dry_run: bool
    exit_code: int
    verdict: str
    seconds: float | None = None
    estimated_seconds: float | None = None
    upload_bytes: dict[str, int] | None = None


def job_report(outcomes: "Sequence[Outcome]", seconds: float) -> JobReport:
    """What became of a job. seconds: wall time of all of it."""
    from ggufsmith.convert.batch.report import exit_code, verdict

    return JobReport(
        bytes=sum(made.size for outcome in outcomes for made in outcome.made if made.label in outcome.new),
        models=[_ended(outcome) for outcome in outcomes],
        dry_run=False,
        exit_code=exit_code(outcomes),
        verdict=verdict(outcomes),
        seconds=seconds,
    )


def upload_sizes(drafts: "Sequence[Draft]", outcomes: "Sequence[Outcome]") -> dict[str, int]:
    """Repository -> bytes of the outputs that a job would publish in it."""
    sizes: Counter[str] = Counter()
    pairs = [(draft.model, (*draft.record.outputs, *draft.made)) for draft in drafts]
    for model, outputs in [*pairs, *((outcome.model, outcome.made) for outcome in outcomes if not outcome.error)]:
        if model.settings["push"]:
            sizes[model.settings["push"]] += sum(made.size for made in outputs)
    return dict(sizes)


def dry_report(
    drafts: "Sequence[Draft]",
    outcomes: "Sequence[Outcome]",
    seconds: Mapping[Path, float],
    uploads: Mapping[str, int],
) -> JobReport:
    """What a job would make: the drafts, and what became of the other models. seconds: by the key of a model.

    uploads: see `upload_sizes`.
    """
    from ggufsmith.convert.batch.report import exit_code, verdict

    return JobReport(
        bytes=sum(draft.size for draft in drafts),
        models=[*(_drafted(draft, seconds[draft.model.key]) for draft in drafts), *map(_ended, outcomes)],
        dry_run=True,
        exit_code=exit_code(outcomes),
        verdict=verdict(outcomes),
        estimated_seconds=sum(seconds.values()),
        upload_bytes=dict(uploads) or None,
    )


def _drafted(draft: "Draft", seconds: float) -> ModelReport:
    there = [_output(draft.model, made, "finished") for made in draft.record.outputs]
    return ModelReport(
        **_named(draft.model),
        status=TO_MAKE,
        parameters=draft.weights,
        notes=list(draft.notes),
        outputs=[*there, *(_output(draft.model, made, TO_MAKE) for made in draft.made)],
        estimated_memory=draft.memory,
        estimated_seconds=seconds,
    )


def _ended(outcome: "Outcome") -> ModelReport:
    error, model = outcome.error, outcome.model
    return ModelReport(
        **_named(model),
        status=outcome.status,
        parameters=outcome.weights or None,
        notes=list(outcome.notes),
        outputs=[_output(model, made, "done" if made.label in outcome.new else "finished") for made in outcome.made],
        error=ErrorReport(error.code, error.what, error.where, error.fix, list(error.also)) if error else None,
        seconds=outcome.seconds,
        weights_per_second=outcome.rate or None,
        kept_imatrix=str(kept) if (kept := model.kept_imatrix) and kept.is_file() else None,
    )


def _named(model: "JobModel") -> dict[str, Any]:
    return {
        "name": model.name,
        "place": model.place,
        "input": [str(model.hub or model.source)],
        "folder": str(model.folder),
    }


def _output(model: "JobModel", made: "FinishedOutput", status: str) -> JobOutputReport:
    return JobOutputReport(
        recipe=made.label,
        output=[str(model.folder / file.name) for file in made.files],
        bytes=made.size,
        bits_per_weight=made.bits_per_weight,
        tensor_count=sum(made.types.values()),
        types=dict(made.types),
        fallbacks=list(made.fallbacks),
        requantized=list(made.requantized),
        notes=list(made.notes),
        files=None if status == TO_MAKE else [FileReport(file.name, file.bytes, file.sha256) for file in made.files],
        status=status,
    )
