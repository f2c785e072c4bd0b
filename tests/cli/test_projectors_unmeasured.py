"""A projector has no text to be measured on: whatever asks for that says so, before anything is written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import seeing
from ggufsmith.cli.app import app
from requesting import request, run


@pytest.fixture(scope="module")
def projector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("projector")
    seeing.write(home / "Sees")
    run(request(home / "Sees", outtype="f16", mmproj=True, outdir=home))
    return home / "mmproj-Sees-F16.gguf"


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("quant", ["--recipe", "q4_K_M", "--imatrix", "auto"], "--imatrix cannot be used with a projector"),
        ("quant", ["--recipe", "q4_K_M", "--imatrix", "{here}/text.txt"], "--imatrix cannot be used with a projector"),
        ("quant", ["--recipe", "q4_K_M", "--calibrate", "{here}/text.txt"], "this is a projector, not a model"),
        ("quant", ["--target-bpw", "5", "--calibrate", "{here}/text.txt"], "this is a projector, not a model"),
        ("imatrix", ["--text", "{here}/text.txt"], "this is a projector, not a model"),
        ("sensitivity", ["--text", "{here}/text.txt"], "this is a projector, not a model"),
        ("to-hf", ["--outdir", "{here}/back"], "this is a projector, not a model"),
    ],
)
def test_a_text_measures_no_projector(
    command: str, options: list[str], said: str, projector: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time. " * 400, encoding="utf-8")
    given = [each.format(here=tmp_path) for each in options]
    before = sorted(projector.parent.iterdir())
    found = CliRunner().invoke(app, [command, str(projector), *given])
    assert said in " ".join(found.output.split())
    assert found.exit_code in (2, 3)
    assert sorted(projector.parent.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
