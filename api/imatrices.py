"""Importance matrices: made of a model and a text, and merged. For `imatrix`, the call and the command."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufsmith.pipeline.option import given
from ggufsmith.pipeline.request import SourceOptions, TextOptions, WriteOptions
from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.convert.hub.names import Located
    from ggufsmith.pipeline.passes import Pass
    from ggufsmith.quantize.imatrix.record import Imatrix
    from ggufsmith.quantize.imatrix.write import ImatrixFormat


@dataclass(frozen=True)
class MadeImatrix:
    """An importance matrix and its file.

    path: where it is; None if it was not written. inputs: what it was made from. notes: for the report.
    device, dtype: what the model ran on, and in which numbers it computed; None if none was run.
    """

    imatrix: "Imatrix"
    path: Path | None
    inputs: Sequence[Path] = ()
    notes: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class ImatrixTask:
    """What to make.

    model:  its name, or None to only merge. place: instead of the name, where the model is (see `located.located`).
    inputs: importance matrices to add. format: gguf or dat; None takes it from the name of the output.
    write_needed: without a place for a merged importance matrix, fail.
    """

    model: str | None
    source: SourceOptions
    reading: TextOptions
    write: WriteOptions
    inputs: Sequence[Path] = ()
    format: str | None = None
    process_output: bool = False
    write_needed: bool = True
    place: "AbstractContextManager[Located] | None" = None


def made_imatrix(task: ImatrixTask, display: Display) -> MadeImatrix:
    """Make, or merge, and write. What it is merged with is read before the model is run.

    Usage if there is nothing to do, no place for what was merged, or an option that would do nothing; OutputConflict if
    the output exists and may not be replaced; Malformed for parts of another model; NoSpace for a disk without room.
    Raises what is wrong with the model.
    """
    from dataclasses import replace

    from ggufsmith.container.errors import Usage
    from ggufsmith.container.replace import check_place
    from ggufsmith.quantize.imatrix.read import open_imatrix
    from ggufsmith.quantize.imatrix.record import assumed, merged
    from ggufsmith.quantize.imatrix.write import write_imatrix

    check_place(task.write.outfile)
    format = _format(task.format, task.write.outfile)
    alone = task.model is None and task.place is None
    if alone and not task.inputs:
        raise Usage("no model was given", fix="Pass a model, or, with --in, importance matrices to merge.")
    parts = [open_imatrix(path) for path in task.inputs]
    if alone:
        _check_needed(task, parts)
        made = MadeImatrix(merged(parts, task.reading.context), task.write.outfile, task.inputs)
    else:
        made = _of_model(task, parts, format, display)
        parts.append(made.imatrix)
        both = merged(parts, task.reading.context)
        made = replace(made, imatrix=both, inputs=(*task.inputs, *made.inputs))
    made = replace(made, notes=(*made.notes, *assumed(parts, task.reading.context)))
    if made.path is not None:
        write_imatrix(made.imatrix, made.path, format, overwrite=task.write.overwrite, inputs=made.inputs)
    elif task.write_needed:
        raise Usage("the merged importance matrix has no name yet", fix="Add -o FILE.")
    return made


def _check_needed(task: ImatrixTask, parts: "Sequence[Imatrix]") -> None:
    """Usage for options that do nothing where no model is run, and where nothing is written."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.container.text import listed
    from ggufsmith.quantize.imatrix.record import says_no_length

    running = [*given(task.source), *given(task.reading), *given(WriteOptions(threads=task.write.threads))]
    if "--context" in running and says_no_length(parts):  # it says then how long the chunks are
        running.remove("--context")
    running += ["--process-output"] * task.process_output
    if running:
        raise Usage(
            f"without MODEL, importance matrices are only merged, and {listed(running)} would do nothing",
            fix="Put MODEL in front of the options: ggufsmith imatrix MODEL --in FILE. To merge only, leave them out.",
        )
    writing = given(WriteOptions(overwrite=task.write.overwrite)) + ["--format"] * (task.format is not None)
    if task.write.outfile is None and writing and not task.write_needed:
        raise Usage(f"{listed(writing)} would do nothing, because nothing is written", fix="Add -o FILE.")


def _format(wanted: str | None, output: Path | None) -> "ImatrixFormat":
    from ggufsmith.container.errors import Usage
    from ggufsmith.quantize.imatrix.write import FORMATS

    named: ImatrixFormat = "dat" if output is not None and output.suffix.lower() == ".dat" else "gguf"
    found = [each for each in FORMATS if each == (wanted or named)]
    if not found:
        raise Usage(f"there is no format {wanted!r}", where="--format", fix=f"Choose one of {', '.join(FORMATS)}.")
    return found[0]


def _of_model(task: ImatrixTask, parts: "Sequence[Imatrix]", format: "ImatrixFormat", display: Display) -> MadeImatrix:
    """Run the model. Where the output may go, and what it will be merged with, is looked at before."""
    from functools import partial

    from ggufsmith.calibrate.auto import imatrix_path, unquantized
    from ggufsmith.calibrate.make import make_imatrix
    from ggufsmith.calibrated import running
    from ggufsmith.container.apart import check_apart
    from ggufsmith.container.disk import check_space
    from ggufsmith.container.replace import check_new
    from ggufsmith.convert.open import file_of, open_pass
    from ggufsmith.evaluate.needed import need_libraries
    from ggufsmith.located import HubRequest, located
    from ggufsmith.pipeline.request import Request
    from ggufsmith.quantize.imatrix.write import size_of
    from ggufsmith.reads import files_read

    source, write = task.source, task.write
    file = file_of(task.model) if task.model is not None else None
    wanted = HubRequest(task.model or "", source.revision, source.token, stream=False, weights=True)
    with task.place or located(wanted, display, before=need_libraries) as found:
        opener = partial(open_pass, open_files=found.open_files, notes=found.notes)
        here = WriteOptions(outdir=write.outdir or (Path() if found.id is not None else None))
        request = unquantized(Request(file or found.folder, source, write=here))
        with opener(request) as planned:
            path = write.outfile or imatrix_path(planned, here, format)
            inputs = tuple(planned.inputs.values())
            expected = _expected(planned, parts)
        check_apart(path, [*inputs, *files_read(request, task.reading.text), *task.inputs])
        check_new(path, overwrite=write.overwrite)
        check_space(path.absolute(), size_of(expected, format))
        made = make_imatrix(
            request,
            opener,
            task.reading,
            process_output=task.process_output,
            threads=write.threads,
            progress=running(display),
        )
    return MadeImatrix(made.imatrix, path, inputs, made.notes, made.device, made.dtype)


def _expected(planned: "Pass", parts: "Sequence[Imatrix]") -> "Imatrix":
    """What will be made of a model and these parts, with other numbers. Malformed for a part of another model."""
    from ggufsmith.calibrate.auto import ones
    from ggufsmith.quantize.imatrix.fit import match
    from ggufsmith.quantize.imatrix.record import Imatrix, merged
    from ggufsmith.quantize.recipes.assign import Stored, facts_of

    facts, tensors = facts_of(planned.info.metadata), planned.outputs[0].shards.whole.tensors
    stored = [Stored(each.name, each.shape, each.format) for each in tensors]
    for part in parts:
        match(part, stored, facts.blocks, facts.architecture)
    model = Imatrix(ones(tensors, facts.architecture))
    return merged([model, *parts])
