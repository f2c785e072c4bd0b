"""The JSON report: every run prints one that docs/report.schema.json describes, with the same keys for every source."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models as models
from commands import run
from schemas import faults

import adapters
import checkpoints
from ggufsmith.cli.app import convert
from ggufsmith.cli.quant import quant
from ggufsmith.report import SCHEMA, json_schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "report.schema.json"
# Name -> command, what stands in for its source, further arguments.
RUNS: dict[str, tuple[Any, str, list[str]]] = {
    "a folder": (convert, "folder", []),
    "several outputs": (convert, "folder", ["--outtype", "f16", "--outtype", "auto", "-r", "q8_0", "-r", "q4_K_M"]),
    "shards": (convert, "folder", ["--split-max-tensors", "8"]),
    "a budget": (convert, "folder", ["--target-bpw", "6"]),
    "a vocabulary alone": (convert, "folder", ["--vocab-only"]),
    "an adapter": (convert, "adapter", []),
    "a merged adapter": (convert, "folder", ["--lora", "ADAPTER"]),
    "a file": (convert, "file", ["--outtype", "f32"]),
    "a file, quantized": (quant, "file", ["-r", "q8_0", "-r", "copy", "--allow-requantize"]),
    "an importance matrix": (quant, "file", ["-r", "q4_0", "--imatrix", "IMATRIX"]),
    "everything beside it": (quant, "file", ["-r", "q8_0", "--sha256", "--provenance", "--card"]),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("m")
    checkpoints.write("llama", home / "folder")
    adapters.write(home / "folder", home / "adapter")
    models.write_model(home / "file.gguf")
    models.write_imatrix(home / "imatrix.gguf", models.importance(models.arrays()))
    return home


def report_of(home: Path, folder: Path, name: str, *more: str) -> Any:
    command, source, options = RUNS[name]
    path = home / ("file.gguf" if source == "file" else source)
    stand_ins = {"IMATRIX": home / "imatrix.gguf", "ADAPTER": home / "adapter"}
    arguments = [stand_ins.get(option, option) for option in options]
    done = run(command, path, *arguments, "--outdir", folder, "--json", "--no-sync", *more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", RUNS)
def test_every_report_fits_the_schema(home: Path, tmp_path: Path, name: str) -> None:
    """A dry run says what the run will: the same but for what only the work can show."""
    schema = json_schema()
    dry = report_of(home, tmp_path, name, "--dry-run")
    done = report_of(home, tmp_path, name)
    assert list(faults(dry, schema)) == list(faults(done, schema)) == []
    assert (dry.pop("dry_run"), done.pop("dry_run")) == (True, False)
    for planned, made in zip(dry.pop("outputs"), done.pop("outputs"), strict=True):
        tensors = planned.pop("tensors")
        assert planned.items() <= made.items()
        assert len(tensors) == planned["tensor_count"] == len(made["tensor_sha256"])
        assert [file["name"] for file in made["files"]] == [Path(path).name for path in made["output"]]
        assert sum(file["bytes"] for file in made["files"]) == planned["bytes"]
        assert planned["recipe"]
    assert dry.items() <= done.items()
    assert (done["schema"], done["input"]) == (SCHEMA, [str(home / Path(path).name) for path in done["input"]])
    assert done.keys() - dry.keys() == {"found", "seconds", "weights_per_second"}


def test_the_document_is_this_schema() -> None:
    assert json.loads(DOCUMENT.read_text(encoding="utf-8")) == json_schema()


def changed(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Copies of a report with one thing wrong, and what that is."""

    def inside(key: Any, wrong: Any) -> Any:
        copied = copy.deepcopy(value)
        copied[key] = wrong
        return copied

    if isinstance(value, dict):
        yield f"{path} has a key more", {**value, "nothing that is known": 1}
        for key, each in value.items():
            yield from ((what, inside(key, wrong)) for what, wrong in changed(each, (*path, key)))
    elif isinstance(value, list):
        if value:
            yield from ((what, inside(0, wrong)) for what, wrong in changed(value[0], (*path, 0)))
    elif value is not None:
        yield f"{path} is of another kind", {} if isinstance(value, list) else []


def test_the_schema_tells_wrong_reports(home: Path, tmp_path: Path) -> None:
    report = report_of(home, tmp_path, "an importance matrix", "--dry-run")
    schema = json_schema()
    for key in report.keys() - {"found"}:
        assert list(faults({name: each for name, each in report.items() if name != key}, schema)), key
    for what, wrong in changed(report):
        free = "types" in what and "more" in what  # its keys are names of types
        assert list(faults(wrong, schema)) or free, what
