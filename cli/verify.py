"""`ggufsmith verify`: is a finished file sound, and is it what its source gives?"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import SourceOptions, WriteOptions

if TYPE_CHECKING:
    from ggufsmith.container.shards import GgufSet
    from ggufsmith.quantize.verify import Compared


@with_records("model", "adapter", "file", only="lora base revision token threads")
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
        from ggufsmith.container.errors import Malformed
        from ggufsmith.container.shards import open_gguf_set
        from ggufsmith.container.text import counted

        with open_gguf_set(model) as opened:
            report = _examined(opened, hashes, write.threads, quiet or as_json)
            if record is not None:
                _recorded(opened, record, report)
            if source is not None:
                _compared(opened, source, options, write.threads, report, quiet or as_json)
        problems = report["problems"]
        if as_json:
            render.as_json(report)
            failed.extend(problems)
        elif problems:
            fix = "Make the file again, or download it again." if source is None else OTHER_SOURCE
            raise Malformed(
                f"{counted(len(problems), 'problem')} found", where=model, also=problems[:MAX_LISTED], fix=fix
            )
        elif not quiet:
            render.lines(_summary(report))

    failed: list[str] = []
    guarded(work, as_json)
    if failed:
        raise typer.Exit(4)


MAX_LISTED = 20
OTHER_SOURCE = (
    "Is this the source that the file was made from? A tensor may be twice as far off (root mean square) as when it is "
    "made here, because importance matrices and other programs choose differently."
)
# Keys that say how a file was made, and so differ from those of a source without meaning anything.
MADE = ("general.file_type", "general.quantization_version", "quantize.")


def _examined(model: "GgufSet", hashes: bool, threads: int | None, silent: bool) -> dict[str, Any]:
    from ggufsmith.cli import render
    from ggufsmith.container.provenance import described
    from ggufsmith.container.text import counted
    from ggufsmith.pipeline.parallel import available_cores
    from ggufsmith.quantize.verify import examine

    weights = {tensor.name: math.prod(tensor.shape) for tensor in model.tensors.values()}
    with render.progress("reading", sum(weights.values()), silent) as advance:
        found = examine(model, hashes=hashes, threads=threads or available_cores(), advance=advance)
    report: dict[str, Any] = {
        "files": [
            described(file.path) if hashes else {"name": file.path.name, "bytes": file.size} for file in model.files
        ],
        "tensor_count": len(found),
        "problems": [
            f"{each.name}: {counted(each.nonfinite, 'weight or scale is', 'weights or scales are')} not finite"
            for each in found
            if each.nonfinite
        ],
    }
    if hashes:
        report["tensors"] = {each.name: {"sha256": each.sha256} for each in found}
    return report


def _recorded(model: "GgufSet", record: Path, report: dict[str, Any]) -> None:
    from ggufsmith.container.provenance import record_problems

    report["problems"] += record_problems(record, model.paths)
    report["record"] = str(record)


def _compared(
    model: "GgufSet", source: str, options: SourceOptions, threads: int | None, report: dict[str, Any], silent: bool
) -> None:
    from gguf.constants import GGUFType

    from ggufsmith.cli import render
    from ggufsmith.cli.source import opened_source
    from ggufsmith.pipeline.parallel import available_cores
    from ggufsmith.quantize.model_check import kind_of
    from ggufsmith.quantize.verify import compare, unpaired

    projector = kind_of(model.metadata, ()) == GGUFType.MMPROJ
    with opened_source(source, options, "", quiet=silent, projector=projector) as made_from:
        sources, metadata = made_from.tensors, made_from.metadata
        report["problems"] += [f"{name}: {problem}" for name, problem in unpaired(model, sources).items()]
        weights = sum(math.prod(each.shape) for each in sources)
        with render.progress("comparing", weights, silent) as advance:
            found = compare(model, sources, threads=threads or available_cores(), advance=advance)
    report["problems"] += [f"{each.name}: {_too_far(each)}" for each in found if not each.acceptable]
    report["source"] = source
    report["compared"] = {
        each.name: {"type": each.format.name, "exact": each.exact, "error": each.error, "error_made_here": each.ours}
        for each in found
    }
    report["other_keys"] = [
        key
        for key in [*metadata, *(key for key in model.metadata if key not in metadata)]
        if metadata.get(key) != model.metadata.get(key) and not key.startswith(MADE)
    ]


def _too_far(tensor: "Compared") -> str:
    """What is wrong with a tensor whose weights are not what its source gives."""
    if not math.isfinite(tensor.error):
        return f"its bytes, of type {tensor.format.name}, differ from those made from the source"
    return (
        f"as {tensor.format.name} it is {100 * tensor.error:.3g} % off the source, and {100 * tensor.ours:.3g} % when "
        "it is made from it here"
    )


def _summary(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from ggufsmith.cli.render import size
    from ggufsmith.container.summary import shown
    from ggufsmith.container.text import counted

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
