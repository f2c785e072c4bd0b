"""`verify --source` and `recipes MODEL` take every model that gguf-convert takes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import old_ggml
import pytest
from commands import run

import adapters
import checkpoints
import hub_server
from ggufsmith.cli.app import convert
from ggufsmith.cli.recipes import recipes
from ggufsmith.cli.verify import verify
from ggufsmith.container.reader import open_gguf


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source/, out/Tiny-F16.gguf of it, old/ with files of every old kind, and single/ with one file."""
    home = tmp_path_factory.mktemp("models")
    checkpoints.write("llama", home / "source")
    (home / "out").mkdir()
    assert run(convert, home / "source", "-o", home / "out" / "Tiny-F16.gguf", "--no-sync", "-q").exit_code == 0
    (home / "old").mkdir()
    with open_gguf(home / "out" / "Tiny-F16.gguf") as gguf:
        for kind in ("ggml", "ggmf v1", "ggjt v3"):
            old_ggml.write(kind, gguf, home / "old" / f"{kind}.bin")
    (home / "single").mkdir()
    shutil.copy(home / "out" / "Tiny-F16.gguf", home / "single")
    return home


SOURCES = ["source", "out/Tiny-F16.gguf", "single", *(f"old/{kind}.bin" for kind in ("ggml", "ggmf v1", "ggjt v3"))]


@pytest.mark.parametrize("source", SOURCES)
def test_what_a_file_was_made_from(home: Path, source: str) -> None:
    done = run(verify, home / "out" / "Tiny-F16.gguf", "--source", home / source, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert len(report["compared"]) == report["tensor_count"] == 21
    assert all(each["exact"] for each in report["compared"].values())


@pytest.mark.parametrize("source", SOURCES)
def test_what_recipes_make_of_it(home: Path, source: str, tmp_path: Path) -> None:
    done = run(recipes, home / source, "-r", "q8_0", "--json")
    assert done.exit_code == 0, done.output
    (entry,) = json.loads(done.output)["recipes"]
    made = tmp_path / "made.gguf"
    done = run(convert, home / source, "-r", "q8_0", "-o", made, "--no-sync", "-q")
    assert done.exit_code == 0, done.output
    assert entry["bytes"] == made.stat().st_size
    assert entry["types"] == {"Q8_0": 16, "F32": 5}


def test_a_model_on_a_hub(home: Path, tmp_path: Path) -> None:
    """Its weights are read by ranges, and never stored."""
    (tmp_path / "hub" / "org").mkdir(parents=True)
    shutil.copytree(home / "source", tmp_path / "hub" / hub_server.MODEL)
    with hub_server.serving(tmp_path / "hub") as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONUTF8": "1"}
        for words in (
            ["recipes", hub_server.MODEL, "-r", "q8_0", "--json"],
            ["verify", str(home / "out" / "Tiny-F16.gguf"), "--source", hub_server.MODEL, "--json"],
        ):
            code = "from ggufsmith.cli.app import main; main()"
            done = subprocess.run(
                [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, encoding="utf-8"
            )
            assert done.returncode == 0, done.stdout + done.stderr
            report = json.loads(done.stdout)
    assert all(each["exact"] for each in report["compared"].values()) and len(report["compared"]) == 21
    assert not any(path.suffix == ".safetensors" for path in (tmp_path / "home").rglob("*"))


def test_an_adapter(home: Path, tmp_path: Path) -> None:
    adapters.write(home / "source", tmp_path / "Chat")
    assert run(convert, tmp_path / "Chat", "-o", tmp_path / "Chat.gguf", "--no-sync", "-q").exit_code == 0
    done = run(verify, tmp_path / "Chat.gguf", "--source", tmp_path / "Chat", "--base", home / "source")
    assert done.exit_code == 0, done.output
    for given in (tmp_path / "Chat", tmp_path / "Chat.gguf"):
        done = run(recipes, given)
        assert done.exit_code == 2 and "this is an adapter" in " ".join(done.output.split()), done.output


@pytest.mark.parametrize(
    ("source", "options", "code", "message"),
    [
        ("out/Tiny-F16.gguf", ["--lora", "x"], 2, "--lora cannot be used with a GGUF file"),
        ("source/config.json", [], 2, "one file of a checkpoint"),
        ("absent", [], 2, "there is no such folder"),
    ],
)
def test_what_cannot_be_a_source(home: Path, source: str, options: list[str], code: int, message: str) -> None:
    done = run(verify, home / "out" / "Tiny-F16.gguf", "--source", home / source, *options)
    assert done.exit_code == code and message in " ".join(done.output.split()), done.output
    if not options:
        done = run(recipes, home / source)
        assert done.exit_code == code and message in " ".join(done.output.split()), done.output
