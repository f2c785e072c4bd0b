"""Is a finished file sound, and is it what its source gives? For `verify`, the call and the command."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.container.errors import Malformed
    from ggufsmith.container.shards import GgufSet
    from ggufsmith.pipeline.request import SourceOptions
    from ggufsmith.quantize.verify import Compared

MAX_LISTED = 20
OTHER_SOURCE = (
    "Is this the source that the file was made from? A tensor may be twice as far off (root mean square) as when it is "
    "made here, because importance matrices and other programs choose differently."
)
# Keys that say how a file was made, and so differ from those of a source without meaning anything.
MADE = ("general.file_type", "general.quantization_version", "quantize.")


def verified(
    model: Path,
    source: str | None,
    options: "SourceOptions",
    display: Display,
    *,
    record: Path | None = None,
    hashes: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """The report of a model file, whose "problems" say what is wrong with it.

    source: what it was made from. record: a provenance record. hashes: of every tensor and file.
    """
    from ggufsmith.container.shards import open_gguf_set

    with open_gguf_set(model) as opened:
        report = _examined(opened, hashes, threads, display)
        if record is not None:
            _recorded(opened, record, report)
        if source is not None:
            _compared(opened, source, options, threads, report, display)
    return report


def problems_found(model: Path, report: dict[str, Any]) -> "Malformed":
    """The error for a file whose report has problems."""
    from ggufsmith.container.errors import Malformed
    from ggufsmith.container.text import counted

    problems = report["problems"]
    fix = OTHER_SOURCE if "source" in report else "Make the file again, or download it again."
    return Malformed(f"{counted(len(problems), 'problem')} found", where=model, also=problems[:MAX_LISTED], fix=fix)


def _examined(model: "GgufSet", hashes: bool, threads: int | None, display: Display) -> dict[str, Any]:
    from ggufsmith.container.provenance import described
    from ggufsmith.container.text import counted
    from ggufsmith.pipeline.parallel import available_cores
    from ggufsmith.quantize.verify import examine

    weights = {tensor.name: math.prod(tensor.shape) for tensor in model.tensors.values()}
    with display.progress("reading", sum(weights.values())) as advance:
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
    model: "GgufSet",
    source: str,
    options: "SourceOptions",
    threads: int | None,
    report: dict[str, Any],
    display: Display,
) -> None:
    from gguf.constants import GGUFType

    from ggufsmith.opened import opened_source
    from ggufsmith.pipeline.parallel import available_cores
    from ggufsmith.quantize.model_check import kind_of
    from ggufsmith.quantize.verify import compare, unpaired

    projector = kind_of(model.metadata, ()) == GGUFType.MMPROJ
    with _naming_projector(projector), opened_source(source, options, "", display, projector=projector) as made_from:
        sources, metadata = made_from.tensors, made_from.metadata
        report["problems"] += [f"{name}: {problem}" for name, problem in unpaired(model, sources).items()]
        weights = sum(math.prod(each.shape) for each in sources)
        with display.progress("comparing", weights) as advance:
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


@contextmanager
def _naming_projector(wanted: bool) -> Iterator[None]:
    """Says of a source without encoders that a projector cannot come from it, which no option changes here."""
    from ggufsmith.container.errors import Unsupported

    try:
        yield
    except Unsupported as error:
        if not wanted or "--mmproj" not in (error.fix or ""):
            raise
        fix = "The file is a projector. Pass the model whose encoders it holds with --source."
        raise Unsupported(error.what, where=error.where, fix=fix) from None


def _too_far(tensor: "Compared") -> str:
    """What is wrong with a tensor whose weights are not what its source gives."""
    if not math.isfinite(tensor.error):
        return f"its bytes, of type {tensor.format.name}, differ from those made from the source"
    return (
        f"as {tensor.format.name} it is {100 * tensor.error:.3g} % off the source, and {100 * tensor.ours:.3g} % when "
        "it is made from it here"
    )
