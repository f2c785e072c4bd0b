"""`ggufsmith split` and `ggufsmith merge`: one model in several files, and back."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufsmith.cli.guard import guarded
from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import WriteOptions

if TYPE_CHECKING:
    from ggufsmith.container.shards import GgufSet, ShardPlan

Source = Annotated[Path, typer.Argument(metavar="IN.gguf", help="The model, or any one of its shards.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the files and their sizes, and write nothing.")]


@with_records("file", only="split_max_size split_max_tensors no_tensor_first_split sync overwrite")
def split(
    model: Source,
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="The shards are named OUT-00001-of-00003.gguf and so on. By default they are written beside IN.",
        ),
    ] = None,
    *,
    write: WriteOptions,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Split a GGUF file into shards, as llama.cpp's gguf-split does, with 128 tensors in each by default.

    The shards appear under their names only when all of them are complete and verified.
    """
    from ggufsmith.container.copy import plan_split
    from ggufsmith.container.shards import open_gguf_set
    from ggufsmith.pipeline.parallel import available_cores
    from ggufsmith.quantize.resolve import limits_of

    def work() -> None:
        whole = write.split_max_size is None and write.split_max_tensors is None
        limits = limits_of(replace(write, split_max_tensors=128) if whole else write)
        with open_gguf_set(model) as source:
            plan = plan_split(source, limits)
            target = output or _base(source)
            options = {"sync": write.sync, "overwrite": write.overwrite, "threads": available_cores()}
            _copy(source, plan, target, options, dry_run=dry_run, machine=as_json, quiet=quiet)

    guarded(work, as_json)


@with_records("file", only="sync overwrite")
def merge(
    model: Source,
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT.gguf",
            help="The file to write. By default it is written beside IN, under the name of the model.",
        ),
    ] = None,
    *,
    write: WriteOptions,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Merge the shards of a model into one GGUF file.

    Merging what `split` made gives back the file that was split, byte for byte.
    """
    from ggufsmith.container.copy import plan_merge
    from ggufsmith.container.output_names import check_name
    from ggufsmith.container.shards import open_gguf_set
    from ggufsmith.pipeline.parallel import available_cores

    def work() -> None:
        with open_gguf_set(model) as source:
            options = {"sync": write.sync, "overwrite": write.overwrite, "threads": available_cores()}
            if output is not None:
                check_name(output, fix="Choose another name for the file.")
            _copy(
                source,
                plan_merge(source),
                output or _base(source),
                options,
                dry_run=dry_run,
                machine=as_json,
                quiet=quiet,
            )

    guarded(work, as_json)


def _base(source: "GgufSet") -> Path:
    """The name that the model has, or would have, in one file."""
    from ggufsmith.container.shards import SHARD, SUFFIX

    first = source.paths[0]
    return first.with_name(SHARD.sub("", first.name.removesuffix(SUFFIX)) + SUFFIX)


def _copy(
    source: "GgufSet",
    plan: "ShardPlan",
    path: Path,
    options: dict[str, int],
    *,
    dry_run: bool,
    machine: bool,
    quiet: bool,
) -> None:
    from ggufsmith.cli import render
    from ggufsmith.container.copy import copy

    paths = plan.paths(path)
    if not dry_run:
        weights = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
        with render.progress(path.name, weights, quiet or machine) as advance:
            paths = list(copy(source, plan, path, advance=advance, **options).paths)
    report = {
        "input": [str(each) for each in source.paths],
        "output": [
            {"path": str(each), "bytes": layout.size, "tensor_count": len(layout.tensors)}
            for each, layout in zip(paths, plan.shards, strict=True)
        ],
        "bytes": plan.whole.size,
        "written": not dry_run,
    }
    if machine:
        render.as_json(report)
    elif not quiet:
        render.lines(_summary(report))


def _summary(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from ggufsmith.cli import render

    for each in report["output"]:
        tensors = f"{each['tensor_count']} tensor{'s' * (each['tensor_count'] != 1)}"
        yield "output", f"{each['path']}  {render.size(each['bytes'])}, {tensors}"
    yield (
        ("done", "verified") if report["written"] else ("total", f"{render.size(report['bytes'])}; nothing was written")
    )
