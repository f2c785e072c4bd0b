"""`ggufsmith split` and `ggufsmith merge`."""

import json
import re
from pathlib import Path

import pytest
from commands import run

import checkpoints
from ggufsmith.cli.app import convert
from ggufsmith.cli.inspect import inspect
from ggufsmith.cli.quant import quant
from ggufsmith.cli.split import merge, split
from ggufsmith.cli.verify import verify
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.container.values import string
from ggufsmith.container.writer import Writer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    layout = lay_out(
        {"general.architecture": string("newer")}, [TensorSpec(f"t{k}", (100, 32), format_of("Q4_0")) for k in range(9)]
    )
    with Writer(tmp_path / "Model-Q4_0.gguf", layout) as writer:
        for k, offset in enumerate(layout.offsets):
            writer.write(offset, bytes([k]) * 1800)
        writer.commit()
    return writer.path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_there_and_back(model: Path) -> None:
    done = run(split, model, "--split-max-size", "5.5K")
    assert done.exit_code == 0, done.output
    shards = [f"Model-Q4_0-0000{k}-of-00003.gguf" for k in (1, 2, 3)]
    assert names(model.parent) == [*shards, model.name]
    assert all(name in done.output for name in shards)
    assert "verified" in done.output
    before = model.read_bytes()
    model.unlink()
    assert run(merge, model.parent / shards[1]).exit_code == 0
    assert model.read_bytes() == before


def test_where_to_write_and_the_report(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = run(split, model, tmp_path / "out" / "x", "--split-max-tensors", 4, "--no-tensor-first-split", "--json")
    report = json.loads(done.output)
    assert [each["tensor_count"] for each in report["output"]] == [0, 4, 4, 1]
    assert names(tmp_path / "out") == [f"x-0000{k}-of-00004.gguf" for k in (1, 2, 3, 4)]
    assert [each["bytes"] for each in report["output"]] == [
        Path(each["path"]).stat().st_size for each in report["output"]
    ]
    done = run(merge, tmp_path / "out" / "x-00001-of-00004.gguf", "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    assert (tmp_path / "out" / "x.gguf").read_bytes() == model.read_bytes()


def test_a_dry_run_writes_nothing(model: Path) -> None:
    done = run(split, model, "--split-max-tensors", 3, "--dry-run")
    assert "Model-Q4_0-00003-of-00003.gguf" in done.output
    assert "nothing was written" in done.output
    assert names(model.parent) == [model.name]


def test_gguf_split_takes_128_tensors_by_default(model: Path) -> None:
    done = run(split, model)
    assert done.exit_code == 2
    assert "nothing to split" in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--split-max-size", "4X"], 2, "not a size"),
        (["--split-max-size", "1K"], 2, "Allow 1824 bytes or more"),
        (["--split-max-tensors", "0"], 2, "--split-max-tensors"),
    ],
)
def test_bad_limits(model: Path, arguments: list[str], code: int, says: str) -> None:
    done = run(split, model, *arguments)
    assert done.exit_code == code
    assert says in done.output
    assert names(model.parent) == [model.name]


def test_no_overwrite(model: Path) -> None:
    assert run(split, model, "--split-max-tensors", 3).exit_code == 0
    first = model.with_name("Model-Q4_0-00001-of-00003.gguf")
    for command, source in ((split, model), (merge, first)):
        options = ["--split-max-tensors", 3] if command is split else []
        done = run(command, source, *options, "--no-overwrite")
        assert done.exit_code == 6
        assert "exists" in done.output
    with open_gguf_set(first) as found:
        assert len(found.tensors) == 9


def test_a_missing_shard(model: Path) -> None:
    assert run(split, model, "--split-max-tensors", 3).exit_code == 0
    model.with_name("Model-Q4_0-00002-of-00003.gguf").unlink()
    done = run(merge, model.with_name("Model-Q4_0-00001-of-00003.gguf"), model.with_name("x.gguf"), "--json")
    assert done.exit_code == 4
    assert "Model-Q4_0-00002-of-00003.gguf" in json.loads(done.output)["error"]["what"]


@pytest.mark.parametrize(
    "options",
    [
        ("--split-max-tensors", 7),
        ("--split-max-size", "600K"),
        ("--split-max-tensors", 7, "--no-tensor-first-split"),
    ],
)
@pytest.mark.parametrize("how", ["convert", "convert and quantize", "quantize"])
def test_shards_written_directly(tmp_path: Path, how: str, options: tuple[object, ...]) -> None:
    """The same files as those of splitting the one file."""
    folder = checkpoints.write("llama", tmp_path / "Model")
    source, recipe = folder, ("--recipe", "q8_0")
    if how == "quantize":
        assert run(convert, folder, "--outfile", tmp_path / "F16.gguf").exit_code == 0
        source = tmp_path / "F16.gguf"
    command = quant if how == "quantize" else convert
    more = () if how == "convert" else recipe
    (tmp_path / "ours").mkdir()
    (tmp_path / "split").mkdir()
    assert run(command, source, *more, "--outfile", tmp_path / "one.gguf").exit_code == 0
    done = run(command, source, *more, "--outfile", tmp_path / "ours" / "m.gguf", *options, "--json")
    assert done.exit_code == 0, done.output
    assert run(split, tmp_path / "one.gguf", tmp_path / "split" / "m.gguf", *options).exit_code == 0
    assert len(names(tmp_path / "ours")) > 2
    assert names(tmp_path / "ours") == names(tmp_path / "split")
    for name in names(tmp_path / "ours"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "split" / name).read_bytes()
    (output,) = json.loads(done.output)["outputs"]
    assert [Path(path).name for path in output["output"]] == names(tmp_path / "ours")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep-split", "--split-max-size", "4G"), "--keep-split"),
        (("--no-tensor-first-split",), "several files"),
        (("--split-max-size", "much"), "not a size"),
        (("--split-max-size", "1K"), "do not fit"),
    ],
)
def test_impossible_splits_while_quantizing(model: Path, options: tuple[str, ...], message: str) -> None:
    done = run(quant, model, "--recipe", "copy", *options)
    assert done.exit_code == 2
    assert message in done.output
    assert names(model.parent) == [model.name]


def test_shards_joined_by_cat_lead_to_a_command_that_works(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(split, model, "--split-max-tensors", 3).exit_code == 0
    whole = model.read_bytes()
    model.unlink()
    shards = sorted(model.parent.glob("*.gguf"))
    joined = model.parent / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    monkeypatch.chdir(model.parent)
    for command in (merge, verify, inspect):
        done = run(command, joined)
        assert done.exit_code == 4
        (named,) = re.findall(r"ggufsmith merge (\S+)", done.output)
        assert named == str(shards[0])
    assert run(merge, named).exit_code == 0
    assert model.read_bytes() == whole
