"""Shows one run of gguf-convert or gguf-quant: its plan, or what it has made."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ggufsmith.cli import render
from ggufsmith.report import as_dict, tensor_reports

if TYPE_CHECKING:
    from ggufsmith.pipeline.outputs import OutputFile, Written
    from ggufsmith.pipeline.passes import Pass
    from ggufsmith.session import RunOutcome


def show_outcome(outcome: "RunOutcome", *, machine: bool, quiet: bool) -> None:
    """Print what a run has made, or would make. machine: report as JSON, and nothing else."""
    if machine:
        render.as_json(as_dict(outcome.report))
        return
    if outcome.written is None:
        _show_plan(outcome.planned)
    elif not quiet:
        render.lines([*_summary(outcome.planned, outcome.written), *outcome.beside])
    if not quiet:
        render.lines([("recipe", str(path)) for path in outcome.recipes])


def _show_plan(planned: "Pass") -> None:
    """Every tensor of every output, its types and exact sizes."""
    for output in planned.outputs:
        render.table(
            [
                (
                    each.name,
                    " x ".join(map(str, each.shape)),
                    each.source_type,
                    each.type,
                    render.size(each.bytes),
                    each.op,
                    each.reason or _sources(each.sources),
                )
                for each in tensor_reports(planned, output)
            ]
        )
        render.lines(_facts(output))
    render.lines(_model(planned))
    for note in planned.notes:
        render.paragraph(f"note: {note}", indent=6)


def _sources(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _facts(output: "OutputFile") -> Iterator[tuple[str, str]]:
    for path in output.paths:
        yield "output", str(path)
    yield "size", f"{render.size(output.size)} ({output.size} bytes)"
    if output.types:
        types = ", ".join(f"{number} {name}" for name, number in output.types.items())
        count = len(output.shards.whole.tensors)
        yield "tensors", f"{count} ({types}), {output.bits_per_weight:.2f} bits per weight"
    for note in output.notes:
        yield "note", note


def _model(planned: "Pass") -> Iterator[tuple[str, str]]:
    yield "model", f"{planned.info.architecture}, {render.count(planned.weights)} weights"


def _summary(planned: "Pass", written: "Written") -> Iterator[tuple[str, str]]:
    for output in planned.outputs:
        yield from _facts(output)
    yield from _model(planned)
    for note in written.notes:
        yield "note", note
    rate = planned.weights / max(written.seconds, math.ulp(1.0))
    yield "done", f"verified, in {written.seconds:.1f} s ({render.count(rate)} weights/s)"
