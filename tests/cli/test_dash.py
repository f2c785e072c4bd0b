"""`-` stands for standard output where text can go there, and for nothing elsewhere: no file gets this name."""

from pathlib import Path

import pytest
import small_models as models
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import app

REFUSED = [
    "convert m -o -",
    "quant g.gguf -r q4_0 -o -",
    "quant g.gguf --target-size 2M --save-recipe -",
    "imatrix --in i.gguf -o -",
    "imatrix m -o -",
    "sensitivity m -o -",
    "merge parts/g-00001-of-00002.gguf -",
    "inspect g.gguf --html -",
    "batch jobs.toml --report -",
    "batch jobs.toml --junit -",
    "eval g.gguf --against g.gguf --plot -",
]


@pytest.mark.parametrize("words", REFUSED)
def test_it_is_refused_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    models.write_model(tmp_path / "g.gguf")
    models.write_imatrix(tmp_path / "i.gguf", models.importance(models.arrays()))
    checkpoints.write("llama", tmp_path / "m", num_hidden_layers=1)
    (tmp_path / "jobs.toml").write_text('output = "out"\n[[model]]\nsource = "m"\nouttypes = ["f16"]\n', "utf-8")
    if words.startswith("merge"):
        (tmp_path / "parts").mkdir()
        assert CliRunner().invoke(app, "split g.gguf parts/g --split-max-tensors 5".split()).exit_code == 0
        first = min((tmp_path / "parts").iterdir())
        words = f"merge parts/{first.name} -"
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2, done.output
    assert "error: " in done.output and "internal" not in done.output
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("-").exists()
