"""`ggufsmith imatrix`: how much each column of a model's matrices matters, from a text run through the model."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import SourceOptions, TextOptions, WriteOptions

if TYPE_CHECKING:
    from ggufsmith.calibrate.statistics import TensorStatistics
    from ggufsmith.imatrices import MadeImatrix
    from ggufsmith.quantize.imatrix.record import Imatrix

HEADS = tuple("tensor|unused |fewest |Σ(act²) |min |max |μ |σ |active |N |entropy |E (norm) |ZD |CosSim ".split("|"))
LAYER_HEADS = tuple("layer |μΣ(act²) |μZD |μCosSim ".split("|"))


@with_records("model", "file", only="text context chunks device lora revision token outfile overwrite threads")
def imatrix(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, a GGUF file, or a model on a hub: org/name, hf://org/name, modelscope://org/name.",
        ),
    ] = None,
    reading: TextOptions,
    process_output: Annotated[bool, typer.Option("--process-output", help="Include output.weight.")] = False,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--in",
            metavar="FILE",
            help="An importance matrix to add, GGUF or .dat; may be given several times. Without MODEL, they are only "
            "merged.",
        ),
    ] = None,
    show_statistics: Annotated[
        bool,
        typer.Option(
            "--show-statistics",
            help="Show the statistics of every tensor, as llama-imatrix does. Without MODEL and -o, nothing is "
            "written.",
        ),
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="gguf|dat",
            help="The format of the output. By default dat if its name ends in .dat, and gguf otherwise.",
        ),
    ] = None,
    write: WriteOptions,
    source: SourceOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make an importance matrix: run a text through a model, and sum the squares of the inputs of every matrix.

    It is written as MODEL-imatrix.gguf to where gguf-convert and gguf-quant would write, for their option --imatrix or
    that of llama-quantize. Only one block of the model is in memory at a time, and the model may be quantized.

    Experts that no token reached have no mean. As in llama.cpp, all columns of such an expert count equally.
    """

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.imatrices import ImatrixTask, made_imatrix

        started = time.perf_counter()
        task = ImatrixTask(model, source, reading, write, inputs or [], format, process_output, not show_statistics)
        made = made_imatrix(task, render.display(quiet or as_json))
        _report(made, time.perf_counter() - started, statistics=show_statistics, machine=as_json, quiet=quiet)

    guarded(work, as_json)


def _report(made: "MadeImatrix", seconds: float, *, statistics: bool, machine: bool, quiet: bool) -> None:
    from ggufsmith.calibrate.statistics import statistics as statistics_of
    from ggufsmith.cli import render

    tensors = statistics_of(made.imatrix)
    if machine:
        render.as_json(_as_dict(made, tensors if statistics else None, seconds))
        return
    if statistics:
        _show_statistics(tensors)
    if not quiet:
        render.lines(_summary(made, seconds))


def _as_dict(made: "MadeImatrix", tensors: "Sequence[TensorStatistics] | None", seconds: float) -> dict[str, Any]:
    from ggufsmith.calibrate.statistics import layers

    imatrix = made.imatrix
    report = {
        "output": str(made.path) if made.path else None,
        "bytes": made.path.stat().st_size if made.path else None,
        "datasets": list(imatrix.datasets),
        "chunks": imatrix.chunks,
        "chunk_size": imatrix.chunk_size,
        "entries": len(imatrix.entries),
        "unused_experts": {name: list(entry.unused) for name, entry in imatrix.entries.items() if entry.unused},
        "notes": list(made.notes),
        "seconds": seconds,
    }
    if tensors is None:
        return report
    return report | {
        "tensors": [asdict(each) for each in tensors],
        "layers": [asdict(each) for each in layers(tensors)],
    }


def _show_statistics(tensors: "Sequence[TensorStatistics]") -> None:
    from ggufsmith.calibrate.statistics import layers
    from ggufsmith.cli import render

    render.table(map(_row, tensors), HEADS)
    rows = [
        (str(each.layer), f"{each.total:.2f}", f"{each.density:.4%}", f"{each.similarity:.4f}")
        for each in layers(tensors)
    ]
    render.table(rows, LAYER_HEADS, "means of the layers, weighted by N")


def _row(each: "TensorStatistics") -> tuple[str, ...]:
    stack = each.matrices > 1
    return (
        each.tensor,
        f"{each.unused} of {each.matrices}" if stack else "",
        str(each.fewest) if stack else "",
        f"{each.total:.2f}",
        f"{each.minimum:.4f}",
        f"{each.maximum:.4f}",
        f"{each.mean:.2f}",
        f"{each.deviation:.2f}",
        f"{each.active:.2%}",
        str(each.elements),
        f"{each.entropy:.4f}",
        f"{each.evenness:.2%}",
        f"{each.density:.2%}",
        f"{each.similarity:.4f}",
    )


def _summary(made: "MadeImatrix", seconds: float) -> Iterator[tuple[str, str]]:
    from ggufsmith.cli import render
    from ggufsmith.container.text import counted

    imatrix = made.imatrix
    if made.path:
        yield "output", f"{made.path}  {render.size(made.path.stat().st_size)}"
    if imatrix.datasets:
        yield "text", ", ".join(imatrix.datasets)
    tokens = imatrix.chunks * imatrix.chunk_size
    yield "tokens", f"{tokens} ({counted(imatrix.chunks, 'chunk')} of {imatrix.chunk_size})"
    yield "tensors", f"importance for {counted(len(imatrix.entries), 'tensor')}"
    yield from (("experts", line) for line in _coverage(imatrix))
    for note in made.notes:
        yield "note", note
    if made.path:
        yield "done", f"verified, in {seconds:.1f} s"


def _coverage(imatrix: "Imatrix") -> Iterator[str]:
    """Which experts saw no token, block by block; nothing for a model without experts."""
    from ggufsmith.container.text import counted, some

    stacks = {name: entry for name, entry in imatrix.entries.items() if len(entry.counts) > 1}
    if not stacks:
        return
    fewest = min(int(count) for entry in stacks.values() for count in entry.counts)
    unused: defaultdict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    for name, entry in stacks.items():
        if entry.unused:
            unused[".".join(name.split(".")[:2]), entry.unused] = len(entry.counts)
    if not unused:
        yield f"every expert saw tokens, at least {counted(fewest, 'token')}"
        return
    for (block, which), many in sorted(unused.items(), key=lambda item: -len(item[0][1])):
        yield f"{block}: {len(which)} of {many} experts saw no token: {some(list(map(str, which)))}"
    yield "all columns of an expert that saw no token count equally; more text reaches more experts"
