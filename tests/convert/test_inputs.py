"""Which files decide an output: all that a conversion opens are in the list, by names that are no paths."""

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest

import adapters
import checkpoints
from ggufsmith.container.provenance import described
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.dequantize.detect import FILES
from ggufsmith.convert.hub.listing import HubFile, Listing
from ggufsmith.convert.hub.names import HubModel
from ggufsmith.convert.inputs import input_files, is_companion
from requesting import plan, request, run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A base, an adapter with a tokenizer of its own, and a file of metadata."""
    base = checkpoints.write("llama", tmp_path / "base", shards=2)
    adapters.write(base, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        if (base / name).is_file():
            (tmp_path / "adapter" / name).write_bytes((base / name).read_bytes())
    (base / "generation_config.json").write_text('{"temperature": 0.5}', encoding="utf-8")
    (base / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "x.jinja").write_text("{{ x }}", encoding="utf-8")
    (base / "training_args.json").write_text("{}", encoding="utf-8")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "metadata.json").write_text(json.dumps({"general.author": "A"}), encoding="utf-8")
    return tmp_path


def listed(folder: Path) -> dict[str, Path]:
    base, adapter = folder / "base", folder / "adapter"
    weights = (*open_checkpoint(base).files, adapter / "adapter_model.safetensors")
    return input_files(weights, {"": base, "lora-1": adapter}, {"metadata": folder / "metadata.json", "imatrix": None})


def test_names(model: Path) -> None:
    found = listed(model)
    assert len(set(found.values())) == len(found)
    assert found["lora-1/adapter_config.json"] == model / "adapter" / "adapter_config.json"
    assert found["metadata/metadata.json"] == model / "metadata.json"
    assert found["lora-1/adapter_model.safetensors"] == model / "adapter" / "adapter_model.safetensors"
    assert {"config.json", "README.md", "1_Pooling/config.json", "additional_chat_templates/x.jinja"} <= found.keys()
    assert {
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "lora-1/tokenizer.model",
    } <= found.keys()
    assert "training_args.json" not in found
    assert not any(name.startswith("/") or str(model) in name for name in found)


def test_all_that_is_opened_is_listed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever way it is opened: nothing that a conversion reads is missing in the list."""
    seen: set[Path] = set()
    opened, low = builtins.open, os.open

    def note(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            seen.add(Path(os.path.abspath(os.fsdecode(path))))

    def high_level(file: Any, *arguments: Any, **options: Any) -> Any:
        note(file)
        return opened(file, *arguments, **options)

    def low_level(path: Any, *arguments: Any, **options: Any) -> int:
        note(path)
        return low(path, *arguments, **options)

    lora = ((model / "adapter", 1.0),)
    out = model / "out.gguf"
    asked = request(model / "base", lora=lora, metadata=model / "metadata.json", outfile=out)
    expected = set(plan(asked).made.inputs.values())
    monkeypatch.setattr(builtins, "open", high_level)
    monkeypatch.setattr("io.open", high_level)
    monkeypatch.setattr(os, "open", low_level)
    run(asked)
    monkeypatch.undo()
    read = {path for path in seen if path.is_relative_to(model) and path.is_file() and path != out}
    assert model / "metadata.json" in read and model / "adapter" / "adapter_config.json" in read
    assert read <= expected


def test_two_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.gguf").write_bytes(b"")
    weights = [tmp_path / name / "x.gguf" for name in "ab"]
    assert list(input_files([*weights, weights[0]], {}, {})) == ["x.gguf", "x.gguf (2)"]


def test_the_files_of_every_method_come_from_a_hub() -> None:
    names = [*FILES, "config.json", "1_Pooling/config.json", "x/1_Pooling/config.json", "original/params.json"]
    listing = Listing(HubModel("hf", "org/x"), "c0ffee", {name: HubFile(name, 1) for name in names})
    assert [file.name for file in listing.companions()] == names[:-2]
    assert all(map(is_companion, FILES))


def test_a_record_calls_a_file_as_the_list_does(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    assert described(tmp_path / "config.json", name="lora-1/config.json")["name"] == "lora-1/config.json"
    assert described(tmp_path / "config.json")["name"] == "config.json"
