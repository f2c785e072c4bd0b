"""Options that several commands have, declared once."""

from typing import Annotated

import typer

Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: every core.")]
NoSync = Annotated[bool, typer.Option("--no-sync", help="Leave flushing to the system; for scratch disks.")]
NoOverwrite = Annotated[bool, typer.Option("--no-overwrite", help="Refuse an output that exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON report on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
