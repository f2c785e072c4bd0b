"""Model folders: every layout of files that publishers use, and every way in which they break."""

import json
from pathlib import Path

import numpy as np
import pytest

import checkpoints
from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.convert.checkpoint import open_checkpoint

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.weight": np.arange(6, dtype=np.float32).reshape(6),
    "c.weight": np.arange(8, dtype=np.float32).reshape(2, 2, 2),
}


def read(folder: Path) -> dict[str, np.ndarray]:
    """All tensors as our reader gives them."""
    found = {}
    with open_checkpoint(folder) as checkpoint:
        for source in checkpoint.tensors.values():
            buffer = bytearray(source.nbytes)
            checkpoint.read_into(source, 0, memoryview(buffer))
            found[source.name] = np.frombuffer(buffer, "<f4").reshape(source.shape)
    return found


def assert_all(folder: Path) -> None:
    found = read(folder)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)


def sharded(folder: Path, names: dict[str, str]) -> Path:
    """Shards under the names given for each tensor, with an index."""
    for file in set(names.values()):
        checkpoints.save({n: TENSORS[n] for n, f in names.items() if f == file}, folder / file, "float32")
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


ODD = {"a.weight": "pytorch_part A.safetensors", "b.weight": "0002.safetensors", "c.weight": "0002.safetensors"}


def test_one_file(tmp_path: Path) -> None:
    checkpoints.save(TENSORS, tmp_path / "anything.safetensors", "float32")
    assert_all(tmp_path)


def test_shards_with_odd_names_and_an_index(tmp_path: Path) -> None:
    assert_all(sharded(tmp_path, ODD))


def test_shards_with_odd_names_without_an_index(tmp_path: Path) -> None:
    sharded(tmp_path, ODD)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_all(tmp_path)


def test_a_consolidated_copy_and_an_adapter_beside_the_model_are_left_alone(tmp_path: Path) -> None:
    checkpoints.save(TENSORS, tmp_path / "model.safetensors", "float32")
    checkpoints.save(TENSORS, tmp_path / "consolidated.safetensors", "float32")
    checkpoints.save({"x": TENSORS["a.weight"]}, tmp_path / "adapter_model.safetensors", "float32")
    assert_all(tmp_path)


def test_tensors_that_the_index_does_not_list_are_left_out_and_reported(tmp_path: Path) -> None:
    sharded(tmp_path, ODD)
    checkpoints.save({"b.weight": TENSORS["b.weight"], **TENSORS}, tmp_path / "0002.safetensors", "float32")
    assert_all(tmp_path)
    assert "1 tensors that the index does not list are left out, such as a.weight" in open_checkpoint(tmp_path).notes


def test_part_of_a_tensor(tmp_path: Path) -> None:
    checkpoints.save(TENSORS, tmp_path / "model.safetensors", "float32")
    with open_checkpoint(tmp_path) as checkpoint:
        buffer = bytearray(8)
        checkpoint.read_into(checkpoint.tensors["a.weight"], 20, memoryview(buffer))
    np.testing.assert_array_equal(np.frombuffer(buffer, "<f4"), [5, 6])


def test_the_hub_cache_links_to_its_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    checkpoints.save(TENSORS, blobs / "0123", "float32")
    (snapshot / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "0123")
    assert_all(snapshot)


# -- what breaks ------------------------------------------------------------------------------------------------------


def test_a_truncated_shard_names_file_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoints.save(TENSORS, path, "float32")
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(Malformed, match=rf"model.safetensors: truncated: {len(data)} bytes expected, {len(data) - 10}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 8, 40])
def test_a_shard_truncated_in_its_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    checkpoints.save(TENSORS, path, "float32")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Malformed, match=f"truncated: .* the file has {size}"):
        open_checkpoint(tmp_path)


def test_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoints.save(TENSORS, path, "float32")
    with open_checkpoint(tmp_path) as checkpoint:
        path.write_bytes(path.read_bytes()[:-4])
        last = max(checkpoint.tensors.values(), key=lambda source: source.offset)
        with pytest.raises(Malformed, match=f"the file ends inside tensor '{last.name}'"):
            checkpoint.read_into(last, 0, memoryview(bytearray(last.nbytes)))


def test_a_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path, ODD)
    (tmp_path / "0002.safetensors").unlink()
    with pytest.raises(Malformed, match=r"shard '0002.safetensors' is missing"):
        open_checkpoint(tmp_path)


def test_a_listed_tensor_that_its_file_lacks(tmp_path: Path) -> None:
    sharded(tmp_path, ODD)
    checkpoints.save({"b.weight": TENSORS["b.weight"]}, tmp_path / "0002.safetensors", "float32")
    with pytest.raises(Malformed, match=r"(?s)1 tensors are listed but not in their files.*c.weight \(in 0002"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", "..\\x", "C:x", "", ".."])
def test_shard_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "model"
    inner.mkdir()
    checkpoints.save(TENSORS, tmp_path / "x.safetensors", "float32")
    index = {"weight_map": dict.fromkeys(TENSORS, name)}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(Malformed, match="points outside the model folder"):
        open_checkpoint(inner)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_link_that_leaves_the_folder(tmp_path: Path, indexed: bool) -> None:
    inner = tmp_path / "model"
    inner.mkdir()
    checkpoints.save(TENSORS, tmp_path / "secret", "float32")
    (inner / "model.safetensors").symlink_to(tmp_path / "secret")
    if indexed:
        index = {"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}
        (inner / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(Malformed, match="outside the model folder"):
        open_checkpoint(inner)


def test_one_tensor_in_two_files_without_an_index(tmp_path: Path) -> None:
    checkpoints.save(TENSORS, tmp_path / "model.safetensors", "float32")
    checkpoints.save(
        {"b.weight": TENSORS["b.weight"].astype("float16")}, tmp_path / "model.fp16.safetensors", "float16"
    )
    with pytest.raises(Malformed, match=r"'b.weight' is in model.fp16.safetensors and again in model.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "expected an object"),
        ("{", "not valid JSON"),
        ('{"weight_map": 3}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"a": ' * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_index(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(Malformed, match=what):
        open_checkpoint(tmp_path)


def hostile_header(header: object, body: bytes = bytes(64)) -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**ENTRY, "data_offsets": [-16, 0]}},
        {"a": {**ENTRY, "shape": [5]}},
        {"a": {**ENTRY, "dtype": "Q8"}},
        {"a": ENTRY, "b": ENTRY},
        {"a": ENTRY, "b": {**ENTRY, "data_offsets": [32, 48]}},
        {"a": {**ENTRY, "shape": [2**62, 4]}},
        {"a": 3},
        [1, 2],
    ],
)
def test_headers_that_the_safetensors_library_refuses(tmp_path: Path, header: object) -> None:
    (tmp_path / "model.safetensors").write_bytes(hostile_header(header))
    with pytest.raises(Malformed):
        open_checkpoint(tmp_path)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    with pytest.raises(Malformed, match="over the limit of 100000000"):
        open_checkpoint(tmp_path)


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(text, encoding="utf-8")
    with pytest.raises(Malformed, match=r"(?s)Git LFS pointer.*git lfs pull"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pytorch_model.bin", r"not written by torch 1\.6 or later"),
        ("optimizer.bin", "no pytorch_model"),
        ("consolidated.safetensors", "Mistral's own layout"),
        ("adapter_model.safetensors", "LoRA adapter"),
        ("model.gguf", "already a GGUF"),
    ],
)
def test_other_weights_are_named(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(Unsupported, match=what):
        open_checkpoint(tmp_path)


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"no \*.safetensors files"):
        open_checkpoint(tmp_path)
    with pytest.raises(Usage, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")
