"""What `ggufsmith eval` refuses is said in words that are true of it, and of the other commands that share them."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import small_models as models
from commands import run

import checkpoints
from ggufsmith.cli.eval import evaluate
from ggufsmith.cli.imatrix import _summary
from ggufsmith.evaluate import needed
from ggufsmith.imatrices import MadeImatrix
from ggufsmith.quantize.imatrix.read import open_imatrix


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    checkpoints.write("llama", tmp_path / "m", num_hidden_layers=1)
    models.write_model(tmp_path / "g.gguf")
    return tmp_path


def said(code: int, *arguments: object) -> str:
    done = run(evaluate, *arguments)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_a_recipe_twice_writes_nothing_twice(home: Path) -> None:
    words = said(2, "--against", "m", "-r", "q4_0", "-r", "q4_0")
    assert "would make the same file, m-Q4_0.gguf" in words and str(home) not in words


def test_a_recipe_is_suggested_only_if_it_is_like(home: Path) -> None:
    assert "Did you mean" not in said(2, "--against", "m", "-r", "nope")
    assert "or q4_K_M" in said(2, "--against", "m", "-r", "q4_k_n")
    assert "ggufsmith recipes" in said(2, "--against", "m", "-r", "nope")


def test_a_folder_with_several_models_is_no_source(home: Path) -> None:
    (home / "h.gguf").write_bytes((home / "g.gguf").read_bytes())
    (home / "empty.gguf").touch()
    (home / "random.gguf").write_bytes(b"\1" * 100)
    words = said(2, "g.gguf", "--against", ".")
    assert "2 models are in this folder: g, h" in words and "convert" not in words
    (home / "h.gguf").unlink()
    assert "models are in this folder" not in run(evaluate, "g.gguf", "--against", ".", "--context", "4").output


def test_a_device_is_one_that_is_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("tpu", "cuda"):
        with pytest.raises(needed.Usage, match="Choose cpu, the only one here"):
            needed.find_device(name)


def test_what_is_no_name_on_a_hub_is_not_advised(home: Path) -> None:
    words = said(2, "g.gguf", "--against", "g.gguf", "--revision", "main")
    assert "Leave out --revision." in words and "hf://" not in words
    (home / "org" / "name").mkdir(parents=True)
    assert "or write hf://org/name" in said(2, "g.gguf", "--against", "org/name", "--revision", "main")


def test_one_is_not_many(home: Path) -> None:
    assert "a window of 1 token has" in said(2, "g.gguf", "--against", "g.gguf", "--context", "1")
    models.write_imatrix(home / "i.gguf", models.importance(models.arrays()))
    lines = dict(_summary(MadeImatrix(replace(open_imatrix(home / "i.gguf"), chunks=1, chunk_size=512), None, ()), 1.0))
    assert lines["length"] == "1 chunk of 512 tokens"


def test_a_text_that_is_no_file_is_a_wrong_option(home: Path) -> None:
    assert "not a regular file" in said(2, "g.gguf", "--against", "g.gguf", "--text", os.devnull)
