"""`gguf-quant`: a GGUF file, its shards, or an old GGML file into quantized GGUF files."""

from pathlib import Path
from typing import Annotated

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, DryRun, Quiet, Version, with_records
from ggufsmith.pipeline.publish import PublishOptions
from ggufsmith.pipeline.request import MakeOptions, SourceOptions, WriteOptions


@with_records("file")
def quant(
    *,
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="The model. If it is split, name any one shard.")],
    make: MakeOptions,
    write: WriteOptions,
    publish: PublishOptions,
    source: SourceOptions,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Quantize a GGUF file, or a GGML file from before GGUF, with any number of recipes in one pass.

    The bytes are those of llama-quantize. Outputs appear under their names only when they are complete and verified.
    """

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.cli.session import show_outcome
        from ggufsmith.runs import run_quantize

        display = render.display(quiet or as_json)
        outcome = run_quantize(model, (source, make, write, publish), display, dry_run=dry_run, hashes=as_json)
        show_outcome(outcome, machine=as_json, quiet=quiet)

    guarded(work, as_json)
