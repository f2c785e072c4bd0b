"""The scripts that make fixtures, as commands."""

import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SCRIPTS = sorted(path.name for path in FIXTURES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--no-such-option"], 2)])
def test_options_are_no_folders(script: str, words: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FIXTURES / script, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stderr
    assert "usage:" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
