"""Small jobs on fixture checkpoints, in this process and in others."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import app
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.report import Outcome
from ggufsmith.convert.batch.run import BatchOptions, Watcher, run_job

COMMAND = [sys.executable, "-c", "from ggufsmith.cli.app import main; main()", "batch"]
SMALL = {"intermediate_size": 256, "num_hidden_layers": 1}


def models(folder: Path) -> Path:
    """The model folders A, B and C."""
    for seed, (name, kind) in enumerate((("A", "llama"), ("B", "qwen2"), ("C", "llama-3"))):
        checkpoints.write(kind, folder / name, seed=seed, **SMALL)
    return folder


def write(path: Path, head: str, entries: Sequence[str]) -> Path:
    path.write_text(head + "".join(f"[[model]]\n{entry}\n" for entry in entries), encoding="utf-8")
    return path


def run(path: Path, watch: Watcher | None = None, **options: object) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_job(read_job(path, {}), BatchOptions(**{"sync": False, **options}), watch or Watcher(), outcomes)  # type: ignore[arg-type]
    return outcomes


def command(path: Path, *arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        stdin=subprocess.DEVNULL,
        **kwargs,  # type: ignore[call-overload]
    )


def cli(path: Path, *arguments: object) -> Result:
    """The command in this process."""
    result: Any = CliRunner().invoke(app, ["batch", str(path), *map(str, arguments)])
    return result


def hashes(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
