"""`ggufsmith verify`: sound files pass, and every kind of damage is named."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run

import checkpoints
import seeing
from ggufsmith.cli.split import split
from ggufsmith.cli.verify import verify
from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.container.formats import FORMATS, format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.provenance import described, read_record, record, record_path, write_record
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import string
from ggufsmith.container.writer import Writer
from ggufsmith.quantize.rows import FLOATS, MODULES, decode, encode
from ggufsmith.quantize.verify import nonfinite
from requesting import request
from requesting import run as convert

WIDTH = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("mixtral", tmp_path_factory.mktemp("m") / "Tiny", dtype="float32")


@pytest.fixture
def converted(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    convert(request(model, outfile=path))
    return path


def change(path: Path, name: str, at: int, data: bytes) -> None:
    with open_gguf(path) as found:
        offset = found.tensors[name].offset
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(data)


def rows() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((8, WIDTH)).astype(np.float32)


def quantized(path: Path, kind: str, weights: np.ndarray, importance: np.ndarray | None = None) -> Path:
    """One tensor of this type, beside one in float32."""
    form = format_of(kind)
    data = np.empty((len(weights), form.nbytes((WIDTH,))), np.uint8)
    encode(form, weights, data, importance=importance)
    layout = lay_out(
        {"general.architecture": string("llama")},
        [TensorSpec("a.weight", weights.shape, form), TensorSpec("b", (WIDTH,), format_of("F32"))],
    )
    with Writer(path, layout, sync=False) as writer:
        writer.write(layout.offsets[0], data)
        writer.write(layout.offsets[1], np.arange(WIDTH, dtype=np.float32))
        writer.commit()
    return path


# ---- a file alone ----


def test_a_sound_file(converted: Path) -> None:
    done = run(verify, converted)
    assert done.exit_code == 0, done.output
    assert "every weight is finite" in done.output
    assert run(verify, converted, "--quiet").output == ""


def test_hashes(converted: Path) -> None:
    report = json.loads(run(verify, converted, "--sha256", "--json").output)
    assert report["files"][0]["sha256"] == hashlib.sha256(converted.read_bytes()).hexdigest()
    with open_gguf(converted) as found:
        for name, tensor in found.tensors.items():
            data = bytearray(tensor.nbytes)
            found.read_into(tensor, 0, data)
            assert report["tensors"][name]["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_damaged_structure(converted: Path) -> None:
    with converted.open("r+b") as file:
        file.truncate(converted.stat().st_size - 4096)
    done = run(verify, converted)
    assert done.exit_code == 4
    assert "cut short" in done.output


def test_a_weight_that_is_not_finite(converted: Path) -> None:
    change(converted, "blk.0.attn_q.weight", 100, b"\x00\x7e")
    for options in ([], ["--json"]):
        done = run(verify, converted, *options)
        assert done.exit_code == 4
        assert "blk.0.attn_q.weight: 1 weight or scale is not finite" in done.output


@pytest.mark.parametrize("kind", [form.name for form in FORMATS if form.name in (*FLOATS, *MODULES)])
def test_finite_in_every_type(kind: str) -> None:
    """Whatever the bytes: a block is called finite exactly if its weights are."""
    form = format_of(kind)
    if form.name in FLOATS:
        decodable = np.array([[0, 1], [1.5, -2]], np.float32).view(np.uint8)
        assert nonfinite(format_of("F32"), decodable.reshape(-1)) == 0
    data = np.random.default_rng(form.id).integers(0, 256, (500, form.size), dtype=np.uint8)
    weights = np.empty((len(data), form.weights), np.float32)
    with np.errstate(all="ignore"):
        decode(form, data, weights)
    bad = ~np.isfinite(weights).all(1)
    assert [nonfinite(form, block) > 0 for block in data] == bad.tolist()
    assert (nonfinite(form, data.reshape(-1)) > 0) == bad.any()
    assert nonfinite(form, data[~bad].reshape(-1)) == 0


# ---- beside its source ----


def test_byte_for_byte_from_the_checkpoint(converted: Path, model: Path) -> None:
    report = json.loads(run(verify, converted, "--source", model, "--json").output)
    assert report["problems"] == []
    assert report["other_keys"] == []
    assert len(report["compared"]) == report["tensor_count"]
    assert all(tensor["exact"] for tensor in report["compared"].values())
    assert "23 of 23 tensors are byte-identical" in run(verify, converted, "--source", model).output


def test_shards_beside_their_source(converted: Path) -> None:
    assert run(split, converted, "--split-max-tensors", 5).exit_code == 0
    shard = converted.with_name("m-00003-of-00005.gguf")
    done = run(verify, shard, "--source", converted)
    assert done.exit_code == 0, done.output
    assert "23 of 23 tensors are byte-identical" in done.output


def test_one_changed_weight(converted: Path, model: Path) -> None:
    change(converted, "blk.1.attn_k.weight", 1000, b"\x00\x44")
    done = run(verify, converted, "--source", model)
    assert done.exit_code == 4
    assert "blk.1.attn_k.weight: as F16 it is" in done.output


def test_another_model(converted: Path, tmp_path: Path) -> None:
    other = checkpoints.write("llama", tmp_path / "Other", num_hidden_layers=1, head_dim=32)
    done = run(verify, converted, "--source", other)
    assert done.exit_code == 4
    assert "blk.0.ffn_gate_exps.weight: the tensor is not in the source" in done.output
    assert "blk.0.attn_q.weight: has shape (256, 256), the source gives (128, 256)" in done.output
    assert "blk.0.ffn_gate.weight: the tensor is in the source but not in the file" in done.output


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "IQ4_XS", "F16", "Q2_K"])
def test_quantized_again(tmp_path: Path, kind: str) -> None:
    source = quantized(tmp_path / "s.gguf", "F32", rows())
    report = json.loads(run(verify, quantized(tmp_path / "q.gguf", kind, rows()), "--source", source, "--json").output)
    tensor = report["compared"]["a.weight"]
    assert tensor["exact"]
    assert tensor["type"] == kind
    form = format_of(kind)
    data, back = np.empty((8, form.nbytes((WIDTH,))), np.uint8), np.empty((8, WIDTH), np.float32)
    encode(form, rows(), data)
    decode(form, data, back)
    assert tensor["error"] == pytest.approx(np.linalg.norm(back - rows()) / np.linalg.norm(rows()), rel=1e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q2_K", "F32", "IQ2_XS"])
def test_success_says_nothing_of_errors(tmp_path: Path, kind: str) -> None:
    """A line that begins with `error` is what scripts look for in a log."""
    source = quantized(tmp_path / "s.gguf", "F32", rows())
    importance = np.ones(WIDTH, np.float32) if kind == "IQ2_XS" else None
    done = run(verify, quantized(tmp_path / "q.gguf", kind, rows(), importance), "--source", source, "--sha256")
    assert done.exit_code == 0, done.output
    assert "error" not in done.output.lower()
    line = next(line for line in done.output.splitlines() if f"{kind}:" in line)
    assert ("equal to the source" in line) is (kind == "F32")
    assert (" %" in line) is (kind != "F32")


@pytest.mark.parametrize("kind", ["Q4_K", "IQ2_XS", "IQ3_S"])
def test_made_with_importance(tmp_path: Path, kind: str) -> None:
    """Other bytes, and an error within what the type allows; nonsense of the same type is not."""
    source = quantized(tmp_path / "s.gguf", "F32", rows())
    importance = np.random.default_rng(1).exponential(1, WIDTH).astype(np.float32)
    good = quantized(tmp_path / "q.gguf", kind, rows(), importance)
    done = run(verify, good, "--source", source, "--json")
    tensor = json.loads(done.output)["compared"]["a.weight"]
    assert done.exit_code == 0, done.output
    assert not tensor["exact"]
    assert tensor["error"] > 0 < tensor["error_made_here"]
    bad = quantized(tmp_path / "q.gguf", kind, rows()[::-1].copy(), importance)
    done = run(verify, bad, "--source", source)
    assert done.exit_code == 4
    assert "a.weight: as " + kind in done.output


def test_tensors_that_are_copied(tmp_path: Path) -> None:
    """Integers, and blocks of the same type."""
    layout = lay_out({}, [TensorSpec("i", (4,), format_of("I32")), TensorSpec("q", (32,), format_of("Q4_0"))])
    for name, last in (("a", 1), ("b", 1), ("c", 2)):
        with Writer(tmp_path / f"{name}.gguf", layout, sync=False) as writer:
            writer.write(layout.offsets[0], np.array([1, 2, 3, last], "<i4"))
            writer.write(layout.offsets[1], bytes(18))
            writer.commit()
    assert run(verify, tmp_path / "a.gguf", "--source", tmp_path / "b.gguf").exit_code == 0
    done = run(verify, tmp_path / "a.gguf", "--source", tmp_path / "c.gguf")
    assert done.exit_code == 4
    assert "i: its bytes, of type I32, differ from those made from the source" in done.output


# ---- the record of what it was made from ----


def test_a_record(converted: Path, model: Path) -> None:
    inputs = [model / "config.json", model / "model.safetensors"]
    path = record_path(converted)
    write_record(
        path,
        record([described(converted)], [described(path) for path in inputs], recipe={"outtype": "f16"}, version="0"),
    )
    content = read_record(path)
    assert [each["name"] for each in content["inputs"]] == ["config.json", "model.safetensors"]
    assert str(converted.parent) not in path.read_text(encoding="utf-8")
    assert sorted(each.name for each in converted.parent.iterdir()) == [converted.name, path.name]
    assert "record" in run(verify, converted, "--record", path).output
    change(converted, "blk.1.attn_k.weight", 1000, b"\x00\x44")
    done = run(verify, converted, "--record", path)
    assert done.exit_code == 4
    assert "SHA-256 is" in done.output
    converted.rename(converted.with_name("renamed.gguf"))
    assert "is not listed in" in run(verify, converted.with_name("renamed.gguf"), "--record", path).output


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"outputs": 1}', '{"outputs": [1]}', '{"outputs": [{"name": "a"}]}', "[" * 10**5, "\x00"],
)
def test_what_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content, encoding="utf-8")
    with pytest.raises(Malformed, match="not a provenance record"):
        read_record(tmp_path / "r.json")


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot write"):
        write_record(tmp_path / "absent" / "r.json", {})


def test_a_projector_and_a_source_that_does_not_see(tmp_path: Path) -> None:
    """The advice is about what was given: not about --mmproj, which this command does not have."""
    seeing.write(tmp_path / "Sees")
    checkpoints.write("llama", tmp_path / "Reads", num_hidden_layers=1)
    convert(request(tmp_path / "Sees", outdir=tmp_path, mmproj=True))
    (file,) = tmp_path.glob("mmproj-*.gguf")
    done = run(verify, file, "--source", tmp_path / "Reads")
    assert done.exit_code == 3 and "Leave out" not in done.output and "with --source" in " ".join(done.output.split())
    assert run(verify, file, "--source", tmp_path / "Sees").exit_code == 0
