"""`ggufsmith sensitivity`: what each type would cost the predictions of a model, tensor by tensor, as a table."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import SourceOptions, TextOptions, WriteOptions

NAME = "sensitivity"


@with_records("model", "file", only="text chunks device lora revision token outfile overwrite threads")
def sensitivity(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, a GGUF file, or a model on a hub: org/name, hf://org/name, modelscope://org/name.",
        ),
    ],
    reading: TextOptions,
    effort: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The effort of --calibrate with which the files will be made, or none for the bytes of llama.cpp's "
            "quantizer.",
        ),
    ] = "normal",
    write: WriteOptions,
    source: SourceOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what each type would cost the predictions of a model, tensor by tensor.

    A text is run through the model, forward and backward, and some rows of every matrix are quantized with every type.
    The table is written as MODEL-sensitivity.json to where gguf-convert and gguf-quant would write. With their option
    --sensitivity, sizes and bits (--target-size, --target-bpw, --match) are spent by it, without another run.
    """

    def work() -> None:
        started = time.perf_counter()
        path, tensors, tokens, device = _made(model, source, reading, write, effort, silent=quiet or as_json)
        _report(path, tensors, tokens, device, time.perf_counter() - started, machine=as_json, quiet=quiet)

    guarded(work, as_json)


def _made(
    model: str, source: SourceOptions, reading: TextOptions, write: WriteOptions, effort: str, *, silent: bool
) -> tuple[Path, int, int, str]:
    """Where the table is, how many tensors it has, the tokens of the text, and what ran the model."""
    from dataclasses import replace
    from functools import partial

    from ggufsmith.calibrate.auto import imatrix_path, unquantized
    from ggufsmith.calibrate.measure import measure_sensitivity
    from ggufsmith.calibrate.ready import readied
    from ggufsmith.calibrate.run import effort_of
    from ggufsmith.calibrated import running
    from ggufsmith.cli import render
    from ggufsmith.container.errors import Usage
    from ggufsmith.container.replace import check_new
    from ggufsmith.convert.open import file_of, open_pass
    from ggufsmith.evaluate.needed import need_libraries
    from ggufsmith.located import HubRequest, located
    from ggufsmith.naming.filename import parse
    from ggufsmith.pipeline.request import MakeOptions, Request
    from ggufsmith.quantize.resolve import EFFORTS
    from ggufsmith.quantize.sensitivity import write_sensitivity

    if effort not in EFFORTS:
        raise Usage(f"unknown effort {effort!r}", where="--effort", fix=f"Choose one of {', '.join(EFFORTS)}.")
    need_libraries()
    file, display = file_of(model), render.display(silent)
    with located(HubRequest(model, source.revision, source.token, stream=False, weights=True), display) as found:
        opener = partial(open_pass, open_files=found.open_files, notes=found.notes)
        here = WriteOptions(outdir=Path() if found.id is not None else None)
        request = unquantized(Request(file or found.folder, source, write=here))
        with opener(request) as planned:
            beside = imatrix_path(planned, here)
            name = replace(parse(beside.name), encoding=NAME).format().removesuffix(".gguf")
            path = write.outfile or beside.with_name(f"{name}.json")
        check_new(path, overwrite=write.overwrite)
        with readied(request, opener, reading) as ready:
            wanted = effort_of(MakeOptions(effort=effort))
            table = measure_sensitivity(ready, wanted, threads=write.threads, progress=running(display))
            device = ready.device
    write_sensitivity(table, path)
    return path, len(table.tensors), table.tokens, device


def _report(path: Path, tensors: int, tokens: int, device: str, seconds: float, *, machine: bool, quiet: bool) -> None:
    from ggufsmith.cli import render

    if machine:
        render.as_json(
            {"output": str(path), "tensors": tensors, "tokens": tokens, "device": device, "seconds": seconds}
        )
    elif not quiet:
        render.lines(
            iter(
                [
                    ("output", f"{path}  {render.size(path.stat().st_size)}"),
                    ("tensors", f"losses of {tensors} tensors, on {tokens} tokens"),
                    ("note", f"the model ran in float32 on {device}"),
                    ("done", f"in {seconds:.1f} s"),
                ]
            )
        )
