"""`ggufsmith verify`: is a finished file sound, and is it what its source gives?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import SourceOptions, WriteOptions


@with_records("model", "adapter", "file", only="lora base target revision token threads")
def verify(
    model: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The model, or any one of its shards.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="MODEL",
            help="The model that it was made from, in any form that gguf-convert accepts. Every tensor is made again "
            "and compared.",
        ),
    ] = None,
    *,
    options: SourceOptions,
    record: Annotated[
        Path | None,
        typer.Option("--record", help="A provenance record; the files must have the hashes that it lists."),
    ] = None,
    hashes: Annotated[bool, typer.Option("--sha256", help="Report the SHA-256 of every tensor and file.")] = False,
    write: WriteOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a GGUF file: its header, the places of all tensors, and that every weight is finite.

    With --source, every tensor is made again. It must have the same bytes, or be no further off than its type allows.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.verifying import problems_found, verified

        display = render.display(quiet or as_json)
        report = verified(model, source, options, display, record=record, hashes=hashes, threads=write.threads)
        if as_json:
            render.as_json(report)
            failed.extend(report["problems"])
        elif report["problems"]:
            raise problems_found(model, report)
        elif not quiet:
            render.lines(_summary(report))

    failed: list[str] = []
    guarded(work, as_json)
    if failed:
        raise typer.Exit(4)


def _summary(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from ggufsmith.cli.render import size
    from ggufsmith.container.summary import shown
    from ggufsmith.container.text import counted
    from ggufsmith.verifying import MAX_LISTED

    for file in report["files"]:
        yield "file", f"{file['name']}  {size(file['bytes'])} ({file['bytes']} bytes)"
    for file in report["files"]:
        if "sha256" in file:
            yield "sha256", f"{file['sha256']}  {file['name']}"
    for name, tensor in report.get("tensors", {}).items():
        yield "tensor", f"{tensor['sha256']}  {shown(name)}"
    yield "sound", f"{counted(report['tensor_count'], 'tensor')} in place, every weight is finite"
    if "record" in report:
        yield "record", "every file has the hash in the record"
    if "compared" in report:
        yield from _sources(report["compared"])
    if keys := report.get("other_keys"):
        more = ", ..." if len(keys) > MAX_LISTED else ""
        differ = counted(len(keys), "key differs", "keys differ")
        yield "keys", f"{differ} from those made from the source: {', '.join(map(shown, keys[:MAX_LISTED]))}{more}"


def _sources(compared: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from ggufsmith.container.text import counted

    exact = sum(each["exact"] for each in compared.values())
    yield "source", f"{exact} of {counted(len(compared), 'tensor')} are byte-identical to those made from the source"
    types: dict[str, list[float]] = {}
    for each in compared.values():
        types.setdefault(each["type"], []).append(each["error"])
    for name, errors in types.items():
        off = f"at most {100 * max(errors):.2g} % off the source (root mean square)"
        equal = "equal to the source"
        yield "accuracy", f"{name}: {counted(len(errors), 'tensor')}, {off if max(errors) else equal}"
