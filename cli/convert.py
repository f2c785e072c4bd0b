"""`gguf-convert`: a model folder, an adapter, a model file or a model on a hub into GGUF files."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.hub import HubRequest, located
from ggufsmith.cli.options import AsJson, DryRun, Quiet, Version, with_records
from ggufsmith.pipeline.option import CHECKPOINT
from ggufsmith.pipeline.request import MakeOptions, PublishOptions, Request, SourceOptions, WriteOptions


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
        from ggufsmith.cli.session import run_request
        from ggufsmith.container.errors import Usage
        from ggufsmith.convert.model import adapters_of
        from ggufsmith.convert.open import file_of, open_pass
        from ggufsmith.quantize.resolve import resolved

        run = partial(run_request, publish=publish, dry_run=dry_run, machine=as_json, quiet=quiet)
        file = file_of(model) if model is not None else None
        if file is not None:
            run(Request(file, source, make, write), open_pass)
            return
        if source.stream and publish.provenance:
            raise Usage(
                "--provenance hashes the input files, but --stream does not store them", fix="Leave out one of the two."
            )
        adapters = [*adapters_of(source).values()]
        name = model if model is not None else _base_of(adapters, source)
        here = source if model is not None else replace(source, base=None)
        request = Request(Path(name), here, make, write)
        resolved(request, *CHECKPOINT)  # before anything is downloaded
        wanted = HubRequest(
            name, source.revision, source.token, stream=source.stream or dry_run, weights=not source.vocab_only
        )
        with located(wanted, quiet=quiet or as_json) as found:
            if found.id is not None and write.outdir is None and write.outfile is None:
                request = replace(request, write=replace(write, outdir=Path()))
            opener = partial(open_pass, open_files=found.open_files, notes=found.notes)
            run(replace(request, path=found.folder), opener)

    guarded(work, as_json)


def _base_of(adapters: Sequence[tuple[Path, float]], source: SourceOptions) -> str:
    """The base model of the first adapter. Usage if there is none."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.convert.lora.base import find_base
    from ggufsmith.convert.lora.peft import open_adapter

    if not adapters:
        raise Usage("no model was given", fix="Pass the folder of a model, or its name on a hub.")
    return str(find_base(open_adapter(adapters[0][0].absolute()), source.base))
