"""What a run leaves beside its outputs: hashes, records, cards, strict names, recipes that were found."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from commands import run

import checkpoints
from ggufsmith.cli.app import convert
from ggufsmith.cli.quant import quant
from ggufsmith.cli.verify import verify
from ggufsmith.container.reader import open_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("m") / "Tiny-Model")


@pytest.fixture(scope="module")
def converted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "Tiny-Model-F16.gguf"
    assert run(convert, model, "-o", path).exit_code == 0
    return path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def outputs(done: Any) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.output)["outputs"]
    return found


HOW: dict[str, tuple[object, ...]] = {
    "convert": (),
    "in shards": ("--split-max-tensors", 8),
    "convert and quantize": ("--recipe", "q8_0", "--recipe", "q4_0"),
    "quantize": ("--recipe", "q8_0"),
}


@pytest.mark.parametrize("how", HOW)
def test_the_report_has_the_hashes_of_files_and_tensors(model: Path, converted: Path, tmp_path: Path, how: str) -> None:
    command, source = (quant, converted) if how == "quantize" else (convert, model)
    for output in outputs(run(command, source, "--outdir", tmp_path, "--json", *HOW[how])):
        assert [file["name"] for file in output["files"]] == [Path(path).name for path in output["output"]]
        found = {}
        for file in output["files"]:
            data = (tmp_path / file["name"]).read_bytes()
            assert (file["bytes"], file["sha256"]) == (len(data), sha(data))
            with open_gguf(tmp_path / file["name"]) as gguf:
                for info in gguf.tensors.values():
                    found[info.name] = sha(data[info.offset : info.offset + info.nbytes])
        assert output["tensor_sha256"] == found


@pytest.mark.parametrize("how", HOW)
def test_records_and_a_card(model: Path, converted: Path, tmp_path: Path, how: str) -> None:
    command, source = (quant, converted) if how == "quantize" else (convert, model)
    done = run(command, source, "--outdir", tmp_path, "--provenance", "--card", "--sha256", *HOW[how])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    files = sorted(tmp_path.glob("*.gguf"))
    for file in files:
        assert sha(file.read_bytes()) in card
        assert f"{sha(file.read_bytes())}  {file.name}" in done.output
    records = sorted(tmp_path.glob("*.provenance.json"))
    assert len(records) == (2 if how == "convert and quantize" else 1)
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        inputs = {each["name"]: each["sha256"] for each in record["inputs"]}
        weights = source if source.is_file() else source / "model.safetensors"
        assert inputs[weights.name] == sha(weights.read_bytes())
        assert "config.json" in inputs or how == "quantize"
        assert record["recipe"]["types"]["blk.0.attn_q.weight"] in ("F16", "Q8_0", "Q4_0")
        first = tmp_path / record["outputs"][0]["name"]
        assert run(verify, first, "--record", path).exit_code == 0
        first.write_bytes(first.read_bytes()[:-1] + b"\x55")
        assert run(verify, first, "--record", path).exit_code == 4


def test_a_foreign_card_stops_the_run_before_it_begins(model: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("by hand", encoding="utf-8")
    done = run(convert, model, "--outdir", tmp_path, "--card")
    assert done.exit_code == 6
    assert "--outdir" in done.output
    assert names(tmp_path) == ["README.md"]


def test_nothing_is_overwritten_if_that_was_said(model: Path, converted: Path, tmp_path: Path) -> None:
    record = tmp_path / "x.gguf.provenance.json"
    record.write_text("{}", encoding="utf-8")
    done = run(convert, model, "-o", tmp_path / "x.gguf", "--provenance", "--no-overwrite")
    assert (done.exit_code, names(tmp_path)) == (6, [record.name])
    recipe = tmp_path / "y.toml"
    recipe.write_text("mine", encoding="utf-8")
    for command, source in ((convert, model), (quant, converted)):
        budget = ("--target-bpw", 6, "-o", tmp_path / "y.gguf")
        done = run(command, source, *budget, "--no-overwrite")
        assert done.exit_code == 6, done.output
        assert "recipe file already exists" in done.output
        assert recipe.read_text(encoding="utf-8") == "mine"
        assert names(tmp_path) == [record.name, recipe.name]
    assert run(quant, converted, *budget).exit_code == 0
    assert recipe.read_text(encoding="utf-8") != "mine"


def test_strict_names(model: Path, converted: Path, tmp_path: Path) -> None:
    """The base name and the size come from the header; a version is assumed where none is known."""
    for folder, command, source, options in (
        ("a", convert, model, ()),
        ("b", convert, model, ("--recipe", "q8_0")),
        ("c", quant, converted, ("--recipe", "q8_0")),
        ("d", convert, model, ("--split-max-tensors", 12)),
    ):
        done = run(command, source, "--outdir", tmp_path / folder, "--strict-name", *options)
        assert done.exit_code == 0, done.output
    found = {folder.name: names(folder) for folder in tmp_path.iterdir()}
    assert found["a"] == ["Tiny-Model-2.0M-v1.0-F16.gguf"]
    assert found["b"] == found["c"] == ["Tiny-Model-2.0M-v1.0-Q8_0.gguf"]
    assert found["d"] == [f"Tiny-Model-2.0M-v1.0-F16-0000{k}-of-00002.gguf" for k in (1, 2)]
