"""`gguf-convert`: prepare, show, run, sum up."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ggufsmith.cli import render
from ggufsmith.convert.run import Done, Job, Prepared, prepare, run


def run_convert(job: Job, *, dry_run: bool, machine: bool, quiet: bool) -> None:
    prepared = prepare(job)
    if dry_run:
        if machine:
            render.as_json({**_report(prepared), "tensors": list(_tensors(prepared))})
        else:
            _show_plan(prepared)
        return
    silent = quiet or machine
    with render.progress(prepared.path.name, prepared.weights, silent) as advance:
        done = run(prepared, advance, (lambda seconds: None) if silent else render.kernels)
    if machine:
        rate = prepared.weights / done.seconds
        render.as_json({**_report(done.prepared), "seconds": done.seconds, "weights_per_second": rate})
    elif not quiet:
        render.lines(_summary(done))


def _types(prepared: Prepared) -> dict[str, int]:
    return dict(Counter(spec.format.name for spec in prepared.layout.tensors))


def _bits_per_weight(prepared: Prepared) -> float | None:
    if not prepared.weights:
        return None
    return 8 * sum(spec.nbytes for spec in prepared.layout.tensors) / prepared.weights


def _report(prepared: Prepared) -> dict[str, Any]:
    return {
        "input": str(prepared.checkpoint.folder),
        "output": str(prepared.path),
        "architecture": prepared.plan.architecture.name,
        "bytes": prepared.layout.size,
        "source_bytes": prepared.source_bytes,
        "parameters": prepared.weights,
        "tensor_count": len(prepared.layout.tensors),
        "types": _types(prepared),
        "bits_per_weight": _bits_per_weight(prepared),
        "notes": list(prepared.notes),
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
    widths = [max((len(row[k]) for row in rows), default=0) for k in range(5)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        render.out.print("  ".join([*cells, row[5]]), markup=False)
    render.lines(_facts(prepared))


def _sources(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _facts(prepared: Prepared) -> Iterator[tuple[str, str]]:
    yield "output", str(prepared.path)
    yield "size", f"{render.size(prepared.layout.size)} ({prepared.layout.size} bytes)"
    bits = _bits_per_weight(prepared)
    if bits is not None:
        types = ", ".join(f"{number} {name}" for name, number in _types(prepared).items())
        yield "tensors", f"{len(prepared.layout.tensors)} ({types}), {bits:.2f} bits per weight"
    yield "model", f"{prepared.plan.architecture.name}, {render.count(prepared.weights)} weights"
    for note in prepared.notes:
        yield "note", note


def _summary(done: Done) -> Iterator[tuple[str, str]]:
    yield from _facts(done.prepared)
    rate = done.prepared.layout.size / max(done.seconds, math.ulp(1.0))
    yield "done", f"verified, in {done.seconds:.1f} s ({render.size(rate)}/s)"
