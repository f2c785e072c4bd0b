"""Options that several commands have, declared once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

if TYPE_CHECKING:
    from ggufsmith.container.shards import Limits


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"ggufsmith {version('ggufsmith')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print the version and exit.")
]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: every core.")]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="Work on a Dask cluster: tcp://HOST:8786. Same bytes."),
]
NoSync = Annotated[bool, typer.Option("--no-sync", help="Leave flushing to the system; for scratch disks.")]
NoOverwrite = Annotated[bool, typer.Option("--no-overwrite", help="Refuse an output that exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Keep what is done when interrupted; go on from what was kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON report on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
MaxSize = Annotated[
    str | None, typer.Option("--split-max-size", metavar="SIZE", help="Bytes of tensors per file: 4G, 500M.")
]
MaxTensors = Annotated[int | None, typer.Option("--split-max-tensors", min=1, help="Tensors per file.")]
NoTensorFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="Of several files, the first gets the metadata only.")
]


class Writing(TypedDict):
    """What every job says of how its outputs are made and written."""

    limits: "Limits"
    threads: int | None
    sync: bool
    overwrite: bool
    resume: bool
    strict_name: bool
    scheduler: str | None


def check_places(outfile: Path | None, outdir: Path | None) -> None:
    """Usage if both say where the output goes."""
    from ggufsmith.container.errors import Usage

    if outfile is not None and outdir is not None:
        raise Usage("--outfile and --outdir both say where the output goes", fix="Leave one of the two out.")


def limits_of(size: str | None, tensors: int | None, header_alone: bool) -> "Limits":
    """Where a new shard begins. Usage for a size that is none, and for --no-tensor-first-split alone."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.container.shards import Limits, parse_size

    if header_alone and size is None and tensors is None:
        raise Usage("--no-tensor-first-split is for several files", fix="Add --split-max-size or --split-max-tensors.")
    return Limits(parse_size(size) if size is not None else None, tensors, header_alone)
