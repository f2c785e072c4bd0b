"""gguf-convert on models that are files already, and `ggufsmith to-hf`, as users meet them."""

import json
import shutil
from pathlib import Path

import old_ggml
import pytest
from commands import run

import checkpoints
from ggufsmith.cli.app import convert
from ggufsmith.cli.quant import quant
from ggufsmith.cli.tohf import to_hf
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import string


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and Tiny-F16.gguf of it."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints.write("llama", folder / "source")
    done = run(convert, folder / "source", "-o", folder / "Tiny-F16.gguf", "--no-sync", "-q")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def model(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(home / "Tiny-F16.gguf", tmp_path))


def old(model: Path, kind: str = "ggjt v3") -> Path:
    with open_gguf(model) as gguf:
        return old_ggml.write(kind, gguf, model.with_name("tiny.ggmlv3.bin"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_gguf_file_is_quantized_as_by_gguf_quant(model: Path, tmp_path: Path) -> None:
    assert run(convert, model, "-r", "q8_0", "-r", "f32", "--no-sync", "-q").exit_code == 0
    assert names(tmp_path) == ["Tiny-F16.gguf", "Tiny-F32.gguf", "Tiny-Q8_0.gguf"]
    assert run(quant, model, "-r", "q8_0", "-o", tmp_path / "same.gguf", "--no-sync", "-q").exit_code == 0
    assert (tmp_path / "same.gguf").read_bytes() == (tmp_path / "Tiny-Q8_0.gguf").read_bytes()


def test_an_outtype_dequantizes(model: Path, tmp_path: Path) -> None:
    assert run(convert, model, "-r", "q8_0", "--no-sync", "-q").exit_code == 0
    small = tmp_path / "Tiny-Q8_0.gguf"
    refused = run(convert, small, "-r", "q4_0", "--no-sync", "-q")
    assert refused.exit_code == 2 and "--allow-requantize" in refused.output
    assert run(convert, small, "-r", "q4_0", "--allow-requantize", "--no-sync", "-q").exit_code == 0
    done = run(convert, small, "--outtype", "bf16", "--no-sync", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["outputs"][0]["types"] == {"BF16": 16, "F32": 5}


def test_a_type_beside_a_recipe(model: Path, tmp_path: Path) -> None:
    done = run(convert, model, "--outtype", "f32", "--outtype", "bf16", "-r", "q8_0", "--no-sync", "-q")
    assert done.exit_code == 0, done.output
    assert names(tmp_path) == [f"Tiny-{kind}.gguf" for kind in ("BF16", "F16", "F32", "Q8_0")]


def test_a_shard_stands_for_its_set_and_a_folder_for_its_only_model(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    done = run(convert, model, "--outtype", "f32", "--outdir", folder, "--split-max-tensors", "8", "--no-sync", "-q")
    assert done.exit_code == 0, done.output
    assert names(folder) == [f"Tiny-F32-0000{k}-of-00003.gguf" for k in (1, 2, 3)]
    for given in (folder, folder / "Tiny-F32-00002-of-00003.gguf"):
        done = run(convert, given, "-r", "q8_0", "-o", tmp_path / "out.gguf", "--no-sync", "-q")
        assert done.exit_code == 0, done.output
        (tmp_path / "out.gguf").unlink()
    shutil.copy(model, folder)
    done = run(convert, folder, "-r", "q8_0", "--no-sync")
    assert done.exit_code == 2 and "2 models are in this folder: Tiny-F16, Tiny-F32" in " ".join(done.output.split())


def test_an_old_file_becomes_gguf_with_its_own_weights(model: Path, tmp_path: Path) -> None:
    path = old(model)
    context = "llama.context_length=int:4096"
    done = run(convert, path, "--override-kv", context, "--model-name", "Älter", "--no-sync", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert [note for note in report["notes"] if "assumed" in note] == [
        "llama.attention.layer_norm_rms_epsilon: assumed 5e-06, between Llama 1 (1e-6) and Llama 2 (1e-5): "
        "--override-kv llama.attention.layer_norm_rms_epsilon=float:1e-5"
    ]
    with open_gguf(tmp_path / "tiny-F16.gguf") as made, open_gguf(model) as source:
        assert made.metadata["llama.context_length"].data == 4096
        assert made.metadata["general.name"] == string("Älter")
        assert {t.name: t.format for t in made.tensors.values()} == {t.name: t.format for t in source.tensors.values()}


def test_the_vocabulary_of_a_folder(model: Path, home: Path, tmp_path: Path) -> None:
    path = old(model, "ggml")
    done = run(convert, path, "--tokenizer", home / "source", "-o", tmp_path / "out.gguf", "--no-sync", "--json")
    assert done.exit_code == 0, done.output
    assert "no scores" not in done.output

    def keys(path: Path) -> dict[str, object]:
        with open_gguf(path) as gguf:
            return {key: value for key, value in gguf.metadata.items() if key.startswith("tokenizer.")}

    assert keys(tmp_path / "out.gguf") == keys(model)


USAGE: dict[str, tuple[list[str], str]] = {
    "nothing to make": ([], "this is already a GGUF file"),
    "no such type": (["--outtype", "auto"], "keep the file's types with --recipe copy"),
    "a type and a budget": (["--outtype", "f16", "--target-bpw", "6"], "choose all types"),
    "an adapter": (["-r", "q8_0", "--lora", "x"], "--lora cannot be used"),
    "a pre-tokenizer": (["-r", "q8_0", "--pre", "qwen2"], "--pre cannot be used"),
}


@pytest.mark.parametrize("name", USAGE)
def test_options_without_a_meaning_are_refused(name: str, model: Path, tmp_path: Path) -> None:
    options, text = USAGE[name]
    done = run(convert, model, *options)
    assert done.exit_code == 2 and text in " ".join(done.output.split()), done.output
    assert names(tmp_path) == [model.name]


def test_options_for_files_are_refused_for_checkpoints(home: Path) -> None:
    done = run(convert, home / "source", "--allow-requantize", "--dry-run")
    assert done.exit_code == 2 and "--allow-requantize cannot be used" in done.output


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "tokenizer.model", "generation_config.json"])
def test_a_file_of_a_checkpoint_is_refused(home: Path, part: str) -> None:
    done = run(convert, home / "source" / part)
    assert done.exit_code == 2 and "one file of a checkpoint" in done.output


def test_a_file_that_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing that is known" * 9)
    done = run(convert, tmp_path / "x")
    assert done.exit_code == 4 and "not a GGUF file" in done.output


def test_an_empty_name_is_not_the_current_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home / "source")
    done = run(convert, "", "--dry-run")
    assert done.exit_code == 2 and "is empty" in done.output


def test_a_vocabulary_from_nowhere(model: Path, tmp_path: Path) -> None:
    done = run(convert, model, "-r", "q8_0", "--tokenizer", tmp_path / "absent")
    assert done.exit_code == 2 and "no such folder" in done.output


def test_to_hf_and_back(model: Path, tmp_path: Path) -> None:
    done = run(to_hf, model, "--no-sync", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["class"] == "LlamaForCausalLM" and report["types"] == {"F16": 16, "F32": 5}
    assert report["output"] == str(tmp_path / "Tiny-hf")
    assert sorted(report["files"]) == names(tmp_path / "Tiny-hf")
    done = run(
        convert, tmp_path / "Tiny-hf", "-o", tmp_path / "again.gguf", "--model-name", "Source", "--no-sync", "-q"
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again.gguf").read_bytes() == model.read_bytes()
    again = run(to_hf, model, "--no-sync")
    assert again.exit_code == 6 and "not an empty folder" in again.output


def test_to_hf_shows_what_it_would_do(model: Path, tmp_path: Path) -> None:
    done = run(to_hf, model, "--dry-run", "--dtype", "float32", "--shard-size", "1M")
    assert done.exit_code == 0, done.output
    assert "model.layers.1.mlp.down_proj.weight" in done.output and "nothing was written" in done.output
    assert "model-00001-of-000" in done.output
    assert names(tmp_path) == [model.name]


def test_to_hf_takes_an_old_file_too(model: Path, tmp_path: Path) -> None:
    done = run(to_hf, old(model), "--no-sync", "--json")
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "tiny-hf" / "config.json").read_text(encoding="utf-8"))
    assert (config["num_key_value_heads"], config["rms_norm_eps"]) == (2, 5e-6)
    assert any("assumed 2048" in note for note in json.loads(done.output)["notes"])
