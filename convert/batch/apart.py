"""No file of a job is written twice, and none that is read is written: neither by its models, nor by its reports."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ggufsmith.container.apart import check_distinct, one_of, place_of
from ggufsmith.container.errors import Failure, OutputConflict
from ggufsmith.container.shards import SHARD, SUFFIX
from ggufsmith.convert.batch.job import JobFile, JobModel
from ggufsmith.convert.inputs import files_of
from ggufsmith.convert.model import adapters_of
from ggufsmith.pipeline.request import AUTO
from ggufsmith.quantize.recipes.files import recipe_files

Problem = tuple[str, str, str | None]


def conflicts(job: Path, models: Sequence[JobModel]) -> Iterator[Problem]:
    """(place, what, fix) of every file that would be written over another. job: the job file."""
    named = {place_of(path): path for path in (job, *(each for model in models for each in files_named(model, job)))}
    found = {place_of(path): path for model in models for path in files_found(model)}
    writers: dict[str, str] = {}
    for model in models:
        for path in files_written(model):
            key = place_of(path)
            # A card stays what it is: one that another program wrote is refused when it is due (see `check_card`).
            if key in named or (key in found and path != model.beside("card")):
                yield model.place, f"would write over the input {path}", None
            if key not in writers:
                writers[key] = model.place
            elif path == model.state_path:
                fix = "Give one of them another `name`."
                yield model.place, f"{writers[key]} is also called {model.name!r} and is in the same folder", fix
            else:
                other = "twice" if writers[key] == model.place else f"as does {writers[key]}"
                yield model.place, f"writes {path}, {other}", None


def files_named(model: JobModel, job: Path) -> Iterator[Path]:
    """The files that a model is made from, as far as the job names them."""
    make, settings = model.request.make, model.settings
    template = settings["card_template"]
    for path in (make.imatrix, make.sensitivity, *make.calibrate, model.request.source.metadata):
        if path is not None and path != AUTO:
            yield path
    yield model.source
    yield from ([Path(template)] if template else [])
    for text in (*settings["recipes"], *settings["match"]):
        with suppress(Failure):  # it is reported where the recipe is read
            yield from recipe_files(text, job.parent)


def files_found(model: JobModel) -> Iterator[Path]:
    """The files of the folders that a job names, and the other shards of a set."""
    source = model.request.source
    adapters = [folder for folder, _ in adapters_of(source).values()]
    for folder in (None if model.hub else model.source, source.base, source.tokenizer, source.target, *adapters):
        if folder is not None:
            yield from files_of(folder)
    for folder in model.request.make.calibrate:
        if folder != AUTO and folder.is_dir():
            yield from (file for file in folder.rglob("*") if file.is_file() and file.suffix != SUFFIX)


def files_written(model: JobModel) -> Iterator[Path]:
    """Where the outputs of a model go, under the names that they have in one file, and what is beside them."""
    yield from (each.path for each in model.wanted)
    yield from (each.lora for each in model.wanted if model.hub and each.lora != each.path)
    yield from (path for path in (model.beside("card"), model.beside("checksums"), model.kept_imatrix) if path)
    yield model.state_path


def files_taken(job: Path, models: Sequence[JobModel]) -> Iterator[Path]:
    """Every file that a job reads or makes, itself included."""
    yield job
    for model in models:
        yield from (*files_named(model, job), *files_found(model), *files_written(model))


def check_reports(job: JobFile, reports: Sequence[Path | None]) -> None:
    """OutputConflict if a report would be written over a file that the job reads or makes, or over another report."""
    written = [path for path in reports if path is not None]
    check_distinct(written)
    taken = set(map(place_of, job.taken))
    for path in written:
        if one_of(path, job.taken) or not taken.isdisjoint({place_of(path), place_of(_whole(path))}):
            what = "the report would be written over a file that this job reads or makes"
            raise OutputConflict(what, where=path, fix="Choose another name for the report.")


def _whole(path: Path) -> Path:
    """The name that a shard's model has in one file."""
    return path.with_name(SHARD.sub("", path.name.removesuffix(SUFFIX)) + SUFFIX)
