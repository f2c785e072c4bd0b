"""`convert` and `quantize`, from a model's name to what was made: for the calls and for both commands."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ggufsmith.located import HubRequest, located
from ggufsmith.pipeline.option import CHECKPOINT
from ggufsmith.pipeline.publish import PublishOptions
from ggufsmith.pipeline.request import MakeOptions, Request, SourceOptions, WriteOptions
from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.convert.hub.names import Located
    from ggufsmith.pipeline.passes import Pass
    from ggufsmith.session import RunOutcome

Options: TypeAlias = tuple[SourceOptions, MakeOptions, WriteOptions, PublishOptions]


def run_convert(
    model: str | None, options: Options, display: Display, *, dry_run: bool, hashes: bool = False
) -> "RunOutcome":
    """Convert a folder, a file or a model on a hub; None converts the base model of the adapter that is merged."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.convert.model import adapters_of
    from ggufsmith.convert.open import file_of, open_pass
    from ggufsmith.quantize.resolve import resolved
    from ggufsmith.session import run_request

    source, make, write, publish = options
    file = file_of(model) if model is not None else None
    if file is not None:
        request = Request(file, source, make, write)
        return run_request(request, open_pass, publish, display, dry_run=dry_run, hashes=hashes)
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
    return run_located(located(wanted, display), request, publish, display, dry_run=dry_run, hashes=hashes)


def run_located(
    place: "AbstractContextManager[Located]",
    request: Request,
    publish: PublishOptions,
    display: Display,
    *,
    dry_run: bool,
    hashes: bool,
) -> "RunOutcome":
    """Convert what is at a place. What is not on the disk is written into the current folder, unless told."""
    from ggufsmith.convert.open import open_pass
    from ggufsmith.session import run_request

    write = request.write
    with place as found:
        if found.id is not None and write.outdir is None and write.outfile is None:
            request = replace(request, write=replace(write, outdir=Path()))
        opener = partial(open_pass, open_files=found.open_files, notes=found.notes)
        request = replace(request, path=found.folder)
        return run_request(request, opener, publish, display, dry_run=dry_run, hashes=hashes)


def run_quantize(
    model: Path, options: Options, display: Display, *, dry_run: bool, hashes: bool = False
) -> "RunOutcome":
    """Quantize a model file."""
    from ggufsmith.session import run_request

    source, make, write, publish = options
    request = Request(model, source, make, write)
    return run_request(request, _open_file, publish, display, dry_run=dry_run, hashes=hashes)


def _open_file(request: Request) -> "Pass":
    """The pass of a file. Only a vocabulary from a folder needs what reads checkpoints."""
    if request.source.tokenizer is not None:
        from ggufsmith.convert.open import open_pass

        return open_pass(request)
    from ggufsmith.quantize.file_pass import open_file_pass

    return open_file_pass(request)


def _base_of(adapters: Sequence[tuple[Path, float]], source: SourceOptions) -> str:
    """The base model of the first adapter. Usage if there is none."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.convert.lora.base import find_base
    from ggufsmith.convert.lora.peft import open_adapter

    if not adapters:
        raise Usage("no model was given", fix="Pass the folder of a model, or its name on a hub.")
    return str(find_base(open_adapter(adapters[0][0].absolute()), source.base))
