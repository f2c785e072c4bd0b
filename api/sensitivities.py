"""What each type would cost the predictions of a model, measured. For `sensitivity`, the call and the command."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufsmith.pipeline.request import SourceOptions, TextOptions, WriteOptions
from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.convert.hub.names import Located
    from ggufsmith.quantize.sensitivity import Sensitivity

NAME = "sensitivity"


@dataclass(frozen=True)
class MadeSensitivity:
    """A table of losses and its file.

    path: where it is. table: what each type would cost each tensor. device, dtype: where the model ran, and in
    which numbers it computed.
    """

    path: Path
    table: "Sensitivity"
    device: str
    dtype: str


@dataclass(frozen=True)
class SensitivityTask:
    """What to measure.

    model:  its name. place: instead of the name, where the model is (see `located.located`).
    effort: of the quantizer with which the files will be made (see `MakeOptions.effort`).
    """

    model: str
    source: SourceOptions
    reading: TextOptions
    write: WriteOptions
    effort: str = "normal"
    place: "AbstractContextManager[Located] | None" = None


def made_sensitivity(task: SensitivityTask, display: Display) -> MadeSensitivity:
    """Run the model on the text, forward and backward, and write the table.

    Usage for an effort or a device that is none, and for a place where no file can be; OutputConflict if the table
    exists and may not be replaced. Raises what is wrong with the model. All of it before the model is run.
    """
    from dataclasses import replace
    from functools import partial

    from ggufsmith.calibrate.auto import imatrix_path, unquantized
    from ggufsmith.calibrate.measure import measure_sensitivity
    from ggufsmith.calibrate.ready import readied
    from ggufsmith.calibrate.run import effort_of
    from ggufsmith.calibrated import running
    from ggufsmith.container.apart import check_apart
    from ggufsmith.container.errors import Usage
    from ggufsmith.container.replace import check_new, check_place
    from ggufsmith.container.text import choice
    from ggufsmith.convert.open import file_of, open_pass
    from ggufsmith.evaluate.needed import need_libraries
    from ggufsmith.located import HubRequest, located
    from ggufsmith.naming.filename import parse
    from ggufsmith.pipeline.request import MakeOptions, Request
    from ggufsmith.quantize.resolve import EFFORTS
    from ggufsmith.quantize.sensitivity import write_sensitivity
    from ggufsmith.reads import files_read

    if task.effort not in EFFORTS:
        raise Usage(f"unknown effort {task.effort!r}", where="--effort", fix=choice(EFFORTS))
    source, write = task.source, task.write
    check_place(write.outfile)
    file = file_of(task.model) if task.place is None else None
    wanted = HubRequest(task.model, source.revision, source.token, stream=False, weights=True)
    with task.place or located(wanted, display, before=need_libraries) as found:
        opener = partial(open_pass, open_files=found.open_files, notes=found.notes)
        here = WriteOptions(outdir=Path() if found.id is not None else None)
        request = unquantized(Request(file or found.folder, source, write=here))
        with opener(request) as planned:
            beside = imatrix_path(planned, here)
            name = replace(parse(beside.name), encoding=NAME).format().removesuffix(".gguf")
            path = write.outfile or beside.with_name(f"{name}.json")
            inputs = tuple(planned.inputs.values())
        check_apart(path, [*inputs, *files_read(request, task.reading.text)])
        check_new(path, overwrite=write.overwrite)
        with readied(request, opener, task.reading) as ready:
            effort = effort_of(MakeOptions(effort=task.effort))
            table = measure_sensitivity(ready, effort, threads=write.threads, progress=running(display))
            device, dtype = ready.device, ready.dtype
    write_sensitivity(table, path)
    return MadeSensitivity(path, table, device, dtype)
