"""gguf-convert as a user runs it, on fixture checkpoints: in this process, or in one of its own where that matters."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import convert_app
from ggufsmith.container.reader import open_gguf

COMMAND = [sys.executable, "-c", "from ggufsmith.cli.app import convert_main; convert_main()"]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own if it has an environment of its own."""
    if not environment:
        words = [str(argument) for argument in arguments]
        done = CliRunner().invoke(convert_app, words, prog_name="gguf-convert")
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONUTF8": "1", **environment},
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("m") / "Tiny-Llama")


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / model.name))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_output_stands_in_the_folder_under_the_usual_name(model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path)
    before = set(folder.iterdir())
    done = run(folder, PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    (new,) = set(folder.iterdir()) - before
    assert new.name == "Tiny-Llama-F16.gguf"
    assert str(new) in done.stdout
    assert "verified" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert open_gguf(new).metadata["general.name"].data == "Tiny Llama"


def test_the_folder_as_a_dot(model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path)
    done = subprocess.run([*COMMAND, "."], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0
    assert (folder / "Tiny-Llama-F16.gguf").is_file()


def test_types_beside_a_recipe(model: Path, tmp_path: Path) -> None:
    done = run(model, "--recipe", "q8_0", "--outtype", "f32", "--outtype", "auto", "--outdir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert [output["recipe"] for output in json.loads(done.stdout)["outputs"]] == ["F32", "BF16", "Q8_0"]
    assert {path.name for path in tmp_path.iterdir()} == {f"Tiny-Llama-{kind}.gguf" for kind in ("F32", "BF16", "Q8_0")}


@pytest.mark.parametrize("option", ["--outfile", "--outdir"])
def test_where_to_write(model: Path, tmp_path: Path, option: str) -> None:
    where = tmp_path / "x.gguf" if option == "--outfile" else tmp_path
    assert run(model, option, where).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf" if option == "--outfile" else "Tiny-Llama-F16.gguf"]


@pytest.mark.parametrize(("outtype", "types"), [("f16", {"F16", "F32"}), ("bf16", {"BF16", "F32"}), ("f32", {"F32"})])
def test_output_types(model: Path, tmp_path: Path, outtype: str, types: set[str]) -> None:
    done = run(model, "--outtype", outtype, "--outdir", tmp_path, "--json")
    (output,) = json.loads(done.stdout)["outputs"]
    assert set(output["types"]) == types
    gguf = open_gguf(*output["output"])
    assert {info.format.name for info in gguf.tensors.values()} == types
    assert {info.format.name for info in gguf.tensors.values() if len(info.shape) == 1} == {"F32"}


def test_auto_keeps_the_precision_of_the_checkpoint(tmp_path: Path) -> None:
    for dtype, name in (("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")):
        folder = checkpoints.write("llama", tmp_path / dtype / "M", dtype=dtype)
        assert run(folder, "--outtype", "auto").returncode == 0
        assert (folder / f"M-{name}.gguf").is_file()


def test_the_same_bytes_again_with_any_number_of_threads(model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.gguf" for k in range(3)]
    for path, threads in zip(paths, (1, 2, 7), strict=True):
        assert run(model, "-o", path, "--threads", threads).returncode == 0
    assert len({sha(path) for path in paths}) == 1


@pytest.mark.parametrize("change", ["shards", "schema", "shard names"])
def test_the_same_checkpoint_in_another_form_gives_the_same_bytes(model: Path, tmp_path: Path, change: str) -> None:
    other = tmp_path / "Tiny-Llama"
    if change == "schema":
        rope = {"rope_theta": 1e4, "rope_type": "default"}
        checkpoints.write("llama", other, rope_theta=None, rope_parameters=rope)
    else:
        checkpoints.write("llama", other, shards=3)
    if change == "shard names":
        index = json.loads((other / "model.safetensors.index.json").read_text(encoding="utf-8"))
        odd = {name: name.replace("model-", "part ") for name in set(index["weight_map"].values())}
        for name, new in odd.items():
            (other / name).rename(other / new)
        index["weight_map"] = {key: odd[name] for key, name in index["weight_map"].items()}
        (other / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert run(model, "-o", tmp_path / "a.gguf").returncode == 0
    assert run(other, "-o", tmp_path / "b.gguf").returncode == 0
    assert sha(tmp_path / "a.gguf") == sha(tmp_path / "b.gguf")


def test_no_path_of_the_machine_is_in_the_bytes(model: Path, tmp_path: Path) -> None:
    assert run(model, "-o", tmp_path / "a.gguf").returncode == 0
    data = (tmp_path / "a.gguf").read_bytes()
    assert str(tmp_path).encode() not in data
    assert str(model.parent).encode() not in data


@pytest.mark.parametrize("recipe", [(), ("-r", "q8_0")])
def test_a_dry_run_refuses_an_output_that_is_the_input_as_a_run_does(
    model: Path, tmp_path: Path, recipe: tuple[str, ...]
) -> None:
    folder = copy_of(model, tmp_path)
    command = folder, *recipe, "-o", folder / "model.safetensors"
    done, dry = run(*command), run(*command, "--dry-run")
    assert (dry.returncode, dry.stderr) == (done.returncode, done.stderr)
    assert dry.returncode == 6 and "the output is the input" in dry.stderr


def test_dry_run_writes_nothing_and_knows_the_size(model: Path, tmp_path: Path) -> None:
    done = run(model, "--outdir", tmp_path, "--dry-run")
    assert done.returncode == 0
    assert "blk.1.ffn_down.weight" in done.stdout
    assert list(tmp_path.iterdir()) == []
    (report,) = json.loads(run(model, "--outdir", tmp_path, "--dry-run", "--json").stdout)["outputs"]
    assert run(model, "--outdir", tmp_path).returncode == 0
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == report["bytes"]
    info = open_gguf(path).tensors["blk.0.attn_q.weight"]
    entry = next(tensor for tensor in report["tensors"] if tensor["name"] == info.name)
    assert (entry["offset"], entry["bytes"], entry["type"], tuple(entry["shape"])) == (
        info.offset,
        info.nbytes,
        info.format.name,
        info.shape,
    )


def test_vocabulary_alone(model: Path, tmp_path: Path) -> None:
    assert run(model, "--vocab-only", "--outdir", tmp_path).returncode == 0
    gguf = open_gguf(tmp_path / "Tiny-Llama-vocab.gguf")
    assert not gguf.tensors
    assert len(gguf.metadata["tokenizer.ggml.tokens"].data) == gguf.metadata["llama.vocab_size"].data  # type: ignore[arg-type]


def test_quiet_says_nothing(model: Path, tmp_path: Path) -> None:
    done = run(model, "--outdir", tmp_path, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_name_and_a_metadata_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"general.author": "Ada"}', encoding="utf-8")
    assert (
        run(model, "-o", tmp_path / "a.gguf", "--model-name", "Other", "--metadata", tmp_path / "m.json").returncode
        == 0
    )
    metadata = open_gguf(tmp_path / "a.gguf").metadata
    assert (metadata["general.name"].data, metadata["general.author"].data) == ("Other", "Ada")


def test_recipes_and_a_budget_in_one_step(model: Path, tmp_path: Path) -> None:
    """Two recipes from one run; the recipe that a budget chose makes the same file again."""
    assert run(model, "-r", "q8_0", "-r", "q4_0", "--outdir", tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"Tiny-Llama-Q8_0.gguf", "Tiny-Llama-Q4_0.gguf"}
    saved = tmp_path / "chosen.toml"
    assert run(model, "--target-bpw", "5", "--save-recipe", saved, "-o", tmp_path / "a.gguf").returncode == 0
    assert run(model, "-r", saved, "-o", tmp_path / "b.gguf").returncode == 0
    assert sha(tmp_path / "a.gguf") == sha(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").stat().st_size < (tmp_path / "Tiny-Llama-Q8_0.gguf").stat().st_size


# -- what goes wrong --------------------------------------------------------------------------------------------------


def fails(code: int, *arguments: object) -> str:
    """The message of a run that must end with this code, without a traceback, and with the same text as JSON."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert any(line.startswith("error: ") for line in done.stderr.splitlines()) or code == 2
    machine = run(*arguments, "--json")
    if code != 2 or machine.stdout:
        assert json.loads(machine.stdout)["error"]["code"] == code
    return done.stderr


def test_no_such_folder(tmp_path: Path) -> None:
    assert "there is no such folder" in fails(2, tmp_path / "nowhere")


def test_a_place_that_is_none(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"kept")
    assert "cannot be used as the output folder" in fails(2, model, "--outdir", file)
    assert "is not a folder" in fails(2, model, "--outfile", file / "x.gguf")
    assert "both say" in fails(2, model, "--outfile", tmp_path / "x.gguf", "--outdir", tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"kept"]


def test_not_a_model_folder(tmp_path: Path) -> None:
    assert "there is no config.json" in fails(4, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architectures": ["LlamaForCausalLM"]', "\xff"])
def test_a_damaged_config(model: Path, tmp_path: Path, text: str) -> None:
    folder = copy_of(model, tmp_path)
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in fails(4, folder)


def test_an_unknown_output_type(model: Path, tmp_path: Path) -> None:
    assert "unknown output type 'f12'" in fails(2, model, "--outtype", "f12", "--outdir", tmp_path)


def test_options_for_quantizing_without_a_recipe(model: Path) -> None:
    assert "no recipe" in fails(2, model, "--pure")
    assert "Did you mean q4_K_S" in fails(2, model, "--recipe", "q4_K_N")


def test_a_truncated_shard(model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated" in fails(4, folder)
    assert not list(folder.glob("*.gguf")) + list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("value", "code", "what"), [(np.nan, 4, "NaN or infinite"), (70000.0, 3, "Choose bf16 or f32")]
)
def test_weights_that_cannot_be_kept_leave_the_old_output_alone(
    tmp_path: Path, value: float, code: int, what: str
) -> None:
    folder = checkpoints.write("llama", tmp_path / "M", dtype="float32")
    output = folder / "M-F16.gguf"
    output.write_bytes(b"the old one")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = checkpoints.tensors_of(config, "float32")
    tensors["model.layers.1.mlp.up_proj.weight"][700, 3] = value
    checkpoints.save(tensors, folder / "model.safetensors", "float32")
    message = fails(code, folder)
    assert what in message
    assert "row 700, column 3" in message
    assert "model.layers.1.mlp.up_proj.weight" in message
    assert output.read_bytes() == b"the old one"
    assert not list(folder.glob(".*"))
    if code == 3:
        assert run(folder, "--outtype", "bf16").returncode == 0


def test_an_output_that_is_an_input(model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path)
    before = sha(folder / "model.safetensors")
    (folder / "link.gguf").hardlink_to(folder / "model.safetensors")
    for name in ("model.safetensors", "link.gguf"):
        assert "the output is the input" in fails(6, folder, "-o", folder / name)
    assert sha(folder / "model.safetensors") == before


def test_an_existing_output_is_kept_on_request(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"old")
    assert "already exists" in fails(6, model, "-o", tmp_path / "a.gguf", "--no-overwrite")
    assert run(model, "-o", tmp_path / "a.gguf").returncode == 0
    assert open_gguf(tmp_path / "a.gguf").tensors


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a process need POSIX")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: str, code: int) -> None:
    folder = checkpoints.write("llama", tmp_path / "M", num_hidden_layers=40)
    process = subprocess.Popen([*COMMAND, str(folder), "--threads", "1"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".M-F16.gguf.*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "interrupted" in err
    assert not list(folder.glob("*.gguf")) + list(folder.glob(".*"))
