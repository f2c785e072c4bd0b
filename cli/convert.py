"""`gguf-convert`: a model folder, an adapter, a model file or a model on a hub into GGUF files."""

from typing import Annotated

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, DryRun, Quiet, Version, with_records
from ggufsmith.pipeline.publish import PublishOptions
from ggufsmith.pipeline.request import MakeOptions, SourceOptions, WriteOptions


@with_records("model", "adapter", "file")
def convert(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder with a model or a LoRA adapter, a GGUF or old GGML file, or a model on a hub: org/name, "
            "hf://org/name, modelscope://org/name.",
        ),
    ] = None,
    make: MakeOptions,
    write: WriteOptions,
    publish: PublishOptions,
    source: SourceOptions,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Convert a Hugging Face model folder into GGUF files that llama.cpp runs.

    It writes one file in 16 or 32 bits, or, with --recipe, any number of quantized ones, in one pass over the weights.
    Outputs appear under their names only when they are complete and verified.

    A PEFT adapter becomes a GGUF adapter, or is merged with --lora; without MODEL, into the base model that it names.

    A GGUF file is re-typed; an old GGML file of a Llama model becomes a GGUF file with its types unchanged. Only files
    take --tokenizer, --override-kv, --prune-layers, --keep-split and --allow-requantize.
    """

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.cli.session import show_outcome
        from ggufsmith.runs import run_convert

        display = render.display(quiet or as_json)
        outcome = run_convert(model, (source, make, write, publish), display, dry_run=dry_run, hashes=as_json)
        show_outcome(outcome, machine=as_json, quiet=quiet)

    guarded(work, as_json)
