"""What is shown while a job runs, in a terminal and in a log."""

import io
from pathlib import Path

import jobs
import pytest
from rich.console import Console

from ggufsmith.cli import board, render
from ggufsmith.container.errors import Malformed
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.report import Outcome


@pytest.mark.parametrize("terminal", [True, False])
def test_a_job_as_it_is_shown(tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=terminal, width=100, highlight=False, soft_wrap=True)
    for name in ("err", "out"):
        monkeypatch.setattr(render, name, console)
    monkeypatch.setattr(board, "EVERY", 0.0)
    home = jobs.models(tmp_path)
    path = jobs.write(
        home / "jobs.toml", "output = 'out'\n[defaults]\nrecipes = 'q8_0'\n", ["source = 'A'", "source = 'B'"]
    )
    for _ in range(2):
        with board.board(quiet=False) as watch:
            jobs.run(path, watch)
    text = seen.getvalue()
    assert ("\x1b[" in text) is terminal
    assert "A: done and verified" in text and "A-Q8_0.gguf" in text and "B: finished" in text
    assert ("all models" in text) is terminal
    assert ("A: 100 %" in text) is not terminal


def test_nothing_that_a_file_says_steers_the_terminal() -> None:
    model = JobModel("a\x1b[2J", "jobs.toml:1", Path(), Path(), (), {})
    outcome = Outcome(model, "failed", error=Malformed("is\x1b]0;bad\x07", where="x", fix="Get\nanother\r."))
    lines = list(board.described(outcome))
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
