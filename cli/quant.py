"""`gguf-quant`: a GGUF file, its shards, or an old GGML file into quantized GGUF files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, DryRun, Quiet, Version, with_records
from ggufsmith.pipeline.request import MakeOptions, PublishOptions, Request, SourceOptions, WriteOptions

if TYPE_CHECKING:
    from ggufsmith.pipeline.passes import Pass


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
        from ggufsmith.cli.session import run_request

        request = Request(model, source, make, write)
        run_request(request, _open, publish, dry_run=dry_run, machine=as_json, quiet=quiet)

    guarded(work, as_json)


def _open(request: Request) -> "Pass":
    """The pass of a file. Only a vocabulary from a folder needs what reads checkpoints."""
    if request.source.tokenizer is not None:
        from ggufsmith.convert.open import open_pass

        return open_pass(request)
    from ggufsmith.quantize.file_pass import open_file_pass

    return open_file_pass(request)
