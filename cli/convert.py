"""`gguf-convert`: prepare, show, run, sum up."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ggufsmith.cli import render
from ggufsmith.cli.publish import Wishes, publish, small_files
from ggufsmith.convert.run import Job, Prepared, prepare, run
from ggufsmith.pipeline.outputs import Written


def run_convert(job: Job, wishes: Wishes, *, dry_run: bool) -> None:
    prepared, machine = prepare(job), wishes.machine
    prepared.output.check_apart(prepared.inputs)
    if dry_run:
        if machine:
            report = _report(prepared)
            report["outputs"][0]["tensors"] = list(_tensors(prepared))
            render.as_json(report)
        else:
            _show_plan(prepared)
        return
    wishes.check(prepared.outputs)
    silent = wishes.silent
    with render.progress(prepared.output.path.name, prepared.weights, silent) as advance:
        written = run(prepared, advance, (lambda seconds: None) if silent else render.kernels)
    report, rate = _report(prepared), prepared.weights / written.seconds
    inputs = [*prepared.checkpoint.files, *small_files(prepared.checkpoint.folder)]
    lines = list(publish(wishes, prepared.outputs, inputs, report["outputs"]))
    if machine:
        more = {"found": list(written.notes), "seconds": written.seconds, "weights_per_second": rate}
        render.as_json({**report, **more})
    elif not wishes.quiet:
        render.lines(chain(_summary(prepared, written), lines))


def _types(prepared: Prepared) -> dict[str, int]:
    return dict(Counter(spec.format.name for spec in prepared.layout.tensors))


def _bits_per_weight(prepared: Prepared) -> float | None:
    if not prepared.weights:
        return None
    return 8 * sum(spec.nbytes for spec in prepared.layout.tensors) / prepared.weights


def _report(prepared: Prepared) -> dict[str, Any]:
    return {
        "input": str(prepared.checkpoint.folder),
        "architecture": prepared.plan.architecture.name,
        "source_bytes": prepared.source_bytes,
        "parameters": prepared.weights,
        "notes": list(prepared.notes),
        "outputs": [
            {
                "output": [str(path) for path in prepared.output.paths],
                "bytes": prepared.output.size,
                "bits_per_weight": _bits_per_weight(prepared),
                "tensor_count": len(prepared.layout.tensors),
                "types": _types(prepared),
            }
        ],
    }


def _tensors(prepared: Prepared) -> Iterator[dict[str, Any]]:
    for output, spec, offset in zip(
        prepared.plan.outputs, prepared.layout.tensors, prepared.layout.offsets, strict=True
    ):
        yield {
            "name": spec.name,
            "shape": list(spec.shape),
            "type": spec.format.name,
            "bytes": spec.nbytes,
            "offset": offset,
            "sources": [source.name for source in output.sources],
            "op": type(output.op).__name__,
        }


def _show_plan(prepared: Prepared) -> None:
    rows = [
        (
            t["name"],
            " x ".join(map(str, t["shape"])),
            t["type"],
            render.size(t["bytes"]),
            t["op"],
            _sources(t["sources"]),
        )
        for t in _tensors(prepared)
    ]
    render.table(rows)
    render.lines(_facts(prepared))


def _sources(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _facts(prepared: Prepared) -> Iterator[tuple[str, str]]:
    for path in prepared.output.paths:
        yield "output", str(path)
    yield "size", f"{render.size(prepared.layout.size)} ({prepared.layout.size} bytes)"
    bits = _bits_per_weight(prepared)
    if bits is not None:
        types = ", ".join(f"{number} {name}" for name, number in _types(prepared).items())
        yield "tensors", f"{len(prepared.layout.tensors)} ({types}), {bits:.2f} bits per weight"
    yield "model", f"{prepared.plan.architecture.name}, {render.count(prepared.weights)} weights"
    for note in prepared.notes:
        yield "note", note


def _summary(prepared: Prepared, written: Written) -> Iterator[tuple[str, str]]:
    yield from _facts(prepared)
    for note in written.notes:
        yield "note", note
    rate = prepared.layout.size / max(written.seconds, math.ulp(1.0))
    yield "done", f"verified, in {written.seconds:.1f} s ({render.size(rate)}/s)"
