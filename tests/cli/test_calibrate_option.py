"""--calibrate on the command line: with a text or without, and what is said before anything is opened."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import convert_app
from ggufsmith.cli.help import spelled_out
from ggufsmith.evaluate import needed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("m --calibrate", "m --calibrate auto"),
        ("m --calibrate -r q4_0", "m --calibrate auto -r q4_0"),
        ("m --calibrate text.md --calibrate more", "m --calibrate text.md --calibrate more"),
        ("m --calibrate --calibrate-chunks 3", "m --calibrate auto --calibrate-chunks 3"),
        ("m -r q4_0", "m -r q4_0"),
    ],
)
def test_it_may_stand_alone(typed: str, meant: str) -> None:
    assert spelled_out(typed.split()) == meant.split()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--effort best -r q4_0", "--effort is about calibrating"),
        ("--calibrate-chunks 3 -r q4_0", "--calibrate-chunks is about calibrating"),
        ("--calibrate", "options for quantizing were given, but no recipe"),
        ("--calibrate -r q4_0 --effort huge", "unknown effort 'huge'"),
        ("--calibrate -r q4_0 --imatrix auto", "--imatrix cannot be combined with --calibrate"),
        ("--calibrate -r q4_0 --match q4_0", "recipes and types cannot be given as well"),
        ("--sensitivity t.json -r q4_0", "--sensitivity says what types cost, but nothing chooses among them"),
        ("--match q4_0 --target-bpw 4", "--target-bpw and --match cannot be used together"),
        ("--match q9", "there is no recipe 'q9'"),
        ("--calibrate -r q4_0", "pip install --upgrade 'ggufsmith[eval]'"),
    ],
)
def test_what_is_refused(options: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "LIBRARIES", ("torch_that_nobody_has",))
    model = checkpoints.write("llama", tmp_path / "model", num_hidden_layers=1)
    before = sorted(model.iterdir())
    done = CliRunner().invoke(convert_app, [str(model), *options.split()])
    assert done.exit_code == (3 if "pip install" in said else 2), done.output
    assert said in " ".join(done.output.split())
    assert sorted(model.iterdir()) == before
