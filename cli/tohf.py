"""`ggufsmith to-hf`: a GGUF file back into a Hugging Face folder."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import WriteOptions

if TYPE_CHECKING:
    from ggufsmith.convert.hf.run import PreparedFolder


@with_records("file", only="threads sync")
def to_hf(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="The model, or any one of its shards.")],
    outdir: Annotated[Path | None, typer.Option(help="The output folder; by default NAME-hf beside IN.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The type of all tensors: float16, bfloat16 or float32. By default tensors keep their types, and "
            "quantized ones become float16."
        ),
    ] = None,
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The maximum size of the tensors in one file, such as 5G or 500M.")
    ] = "5G",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the tensors and files, and write nothing.")] = False,
    *,
    write: WriteOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn a GGUF file back into a Hugging Face folder: config, tokenizer and safetensors.

    It is checked that converting the folder gives the same tensors and keys again. Quantized weights are dequantized.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.container.units import parse_size
        from ggufsmith.convert.hf.run import ToHfJob, prepare, run

        job = ToHfJob(model, outdir, dtype, parse_size(shard_size), write.threads, sync=write.sync)
        with prepare(job) as prepared:
            report = _report(prepared)
            if not dry_run:
                silent = quiet or as_json
                with render.progress(prepared.folder.name, prepared.weights, silent) as shown:
                    done = run(
                        prepared,
                        shown.advance,
                        partial(shown.phase, "compiling kernels"),
                        (lambda seconds: None) if silent else render.kernels,
                    )
                report |= {"seconds": done.seconds, "notes": [*report["notes"], *done.notes]}
            if as_json:
                render.as_json(report | ({"tensors": list(_tensors(prepared))} if dry_run else {}))
            elif not quiet:
                if dry_run:
                    _show_tensors(prepared)
                render.lines(_summary(report))

    guarded(work, as_json)


def _report(prepared: "PreparedFolder") -> dict[str, Any]:
    plan = prepared.weights_plan
    return {
        "input": [str(path) for path in prepared.source.paths],
        "output": str(prepared.folder),
        "class": prepared.known.name,
        "files": [path.name for path in plan.paths(prepared.folder)] + list(prepared.files),
        "bytes": prepared.size,
        "parameters": prepared.weights,
        "tensor_count": len(prepared.tensors),
        "types": dict(Counter(tensor.format.name for tensor in prepared.tensors)),
        "notes": list(prepared.notes),
    }


def _tensors(prepared: "PreparedFolder") -> Iterator[dict[str, Any]]:
    for tensor in prepared.tensors:
        yield {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "type": tensor.format.name,
            "source": ", ".join(tensor.sources),
            "source_type": tensor.held.name,
            "op": tensor.op,
        }


def _show_tensors(prepared: "PreparedFolder") -> None:
    from ggufsmith.cli import render

    rows = [
        (t["name"], " x ".join(map(str, t["shape"])), t["type"], t["source_type"], t["op"], t["source"])
        for t in _tensors(prepared)
    ]
    render.table(rows)


def _summary(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from ggufsmith.cli import render

    yield "output", report["output"]
    yield "files", ", ".join(report["files"])
    yield "size", f"{render.size(report['bytes'])} ({report['bytes']} bytes)"
    types = ", ".join(f"{number} {name}" for name, number in report["types"].items())
    yield "tensors", f"{report['tensor_count']} ({types})"
    yield "model", f"{report['class']}, {render.count(report['parameters'])} weights"
    for note in report["notes"]:
        yield "note", note
    yield "done", f"verified, in {report['seconds']:.1f} s" if "seconds" in report else "nothing was written"
