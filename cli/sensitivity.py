"""`ggufsmith sensitivity`: what each type would cost the predictions of a model, tensor by tensor, as a table."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import SourceOptions, TextOptions, WriteOptions

if TYPE_CHECKING:
    from ggufsmith.sensitivities import MadeSensitivity


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
        from ggufsmith.cli import render
        from ggufsmith.sensitivities import SensitivityTask, made_sensitivity

        started = time.perf_counter()
        task = SensitivityTask(model, source, reading, write, effort)
        made = made_sensitivity(task, render.display(quiet or as_json))
        _report(made, time.perf_counter() - started, machine=as_json, quiet=quiet)

    guarded(work, as_json)


def _report(made: "MadeSensitivity", seconds: float, *, machine: bool, quiet: bool) -> None:
    from ggufsmith.cli import render
    from ggufsmith.container.text import counted

    table = made.table
    if machine:
        found = {"output": str(made.path), "tensors": len(table.tensors), "tokens": table.tokens}
        render.as_json({**found, "device": made.device, "seconds": seconds})
    elif not quiet:
        render.lines(
            iter(
                [
                    ("output", f"{made.path}  {render.size(made.path.stat().st_size)}"),
                    ("tensors", f"losses of {counted(len(table.tensors), 'tensor')}, on {table.tokens} tokens"),
                    ("note", f"the model ran in float32 on {made.device}"),
                    ("done", f"in {seconds:.1f} s"),
                ]
            )
        )
