"""Models in memory, as arrays of numpy. tests/conformance/test_api.py has those of torch and transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import checkpoints
import ggufsmith


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoints.write("llama", tmp_path / "Tiny-2M", dtype="float16")


def tensors(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("form", ["folder", "file", "mapping"])
def test_the_bytes_are_those_of_the_saved_folder(saved: Path, tmp_path: Path, form: str) -> None:
    config = {
        "folder": saved,
        "file": str(saved / "config.json"),
        "mapping": json.loads((saved / "config.json").read_text(encoding="utf-8")),
    }[form]
    # In an order that no file has, one of them not contiguous.
    given = dict(sorted(tensors(saved).items(), reverse=True))
    given["model.norm.weight"] = np.repeat(given["model.norm.weight"], 2)[::2]
    wanted: dict[str, Any] = {"recipes": ["q4_K_M"], "outtypes": "f16", "model_name": "Tiny-2M", "sync": False}
    report = ggufsmith.convert(given, config=config, tokenizer=saved, outdir=tmp_path / "memory", **wanted)
    plain = ggufsmith.convert(saved, outdir=tmp_path / "disk", **wanted)
    assert [Path(path).name for each in report.outputs for path in each.output] == [
        "Tiny-2M-F16.gguf",
        "Tiny-2M-Q4_K_M.gguf",
    ]
    for ours, theirs in zip(report.outputs, plain.outputs, strict=True):
        if form != "mapping":  # which has no generation config
            assert Path(ours.output[0]).read_bytes() == Path(theirs.output[0]).read_bytes()
        else:
            assert ggufsmith.inspect(ours.output[0])["tensors"]
    assert report.input == ["dict"]


def test_files_go_into_the_current_folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ggufsmith.convert(tensors(saved), config=saved, tokenizer=saved, sync=False)
    assert [path.name for path in Path().iterdir()] == ["model-F16.gguf"]


def refused(kind: type[Exception], words: str, source: Any, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        ggufsmith.convert(source, **options)


def test_what_is_missing_or_has_no_meaning(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    wrong = ggufsmith.WrongArgument
    given = tensors(saved)
    refused(wrong, "needs its tokenizer", given, config=saved)
    refused(wrong, "do not say what model", given, tokenizer=saved)
    refused(wrong, "no such config", given, config=tmp_path / "absent", tokenizer=saved)
    refused(wrong, "no such folder", given, config=saved, tokenizer=tmp_path / "absent")
    refused(wrong, "not a tensor", {**given, "x": [1, 2]}, config=saved, tokenizer=saved)
    refused(wrong, "not a tensor", {**given, "x": np.array(["a"])}, config=saved, tokenizer=saved)
    refused(wrong, "not a tensor", {**given, 5: given["model.norm.weight"]}, config=saved, tokenizer=saved)
    for name in ("provenance", "resume", "stream"):
        refused(wrong, name, given, config=saved, tokenizer=saved, **{name: True})
    del given["model.norm.weight"]
    refused(ggufsmith.Failure, "norm", given, config=saved, tokenizer=saved)
    assert not list(Path().iterdir())
