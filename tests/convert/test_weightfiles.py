"""Which files hold the weights where several could: what is chosen, and that the others are named."""

import json
from pathlib import Path

import numpy as np
import pytest

import checkpoints
from ggufsmith.container.errors import Malformed
from ggufsmith.convert.checkpoint import open_checkpoint

OLD = {"a.weight": np.zeros((3, 4), np.float32), "b.weight": np.zeros(6, np.float32)}
NEW = {name: tensor + 1 for name, tensor in OLD.items()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def put(folder: Path, name: str, tensors: dict[str, np.ndarray]) -> None:
    checkpoints.save(tensors, folder / name, "float32")


def shards(folder: Path, tensors: dict[str, np.ndarray], stem: str = "model", index: str | None = INDEX) -> list[str]:
    """One shard for each tensor, and the index that lists them."""
    listed = {}
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        listed[name] = f"{stem}-{number:05d}-of-{len(tensors):05d}.safetensors"
        put(folder, listed[name], {name: tensor})
    if index is not None:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": listed}), encoding="utf-8")
    return list(listed.values())


def opened(folder: Path) -> tuple[set[float], str]:
    """The values of all tensors, and the notes."""
    values: set[float] = set()
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(OLD)
        for source in checkpoint.tensors.values():
            buffer = np.empty(source.shape, "<f4")
            checkpoint.read_into(source, 0, buffer.reshape(-1).view(np.uint8).data)
            values |= set(np.unique(buffer).tolist())
    return values, "\n".join(checkpoint.notes)


def test_one_file_beside_the_shards_of_another_save_is_an_error(tmp_path: Path) -> None:
    """transformers takes the single file, llama.cpp's converter the shards: neither can know which is the newer."""
    put(tmp_path, SINGLE, NEW)
    shards(tmp_path, OLD)
    with pytest.raises(Malformed, match=rf"(?s){SINGLE}.*{INDEX}.*transformers.*[Mm]ove") as failure:
        open_checkpoint(tmp_path)
    assert "model-00001-of-00002.safetensors" in str(failure.value)


@pytest.mark.parametrize(("moved", "value"), [(SINGLE, 0.0), (INDEX, 1.0)])
def test_the_advice_leads_to_either(tmp_path: Path, moved: str, value: float) -> None:
    put(tmp_path, SINGLE, NEW)
    shards(tmp_path, OLD)
    (tmp_path / moved).unlink()
    assert opened(tmp_path)[0] == {value}


def test_the_same_for_pickled_files(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"")
    index = {"weight_map": dict.fromkeys(OLD, "pytorch_model-00001-of-00001.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(Malformed, match=r"(?s)pytorch_model.bin.*pytorch_model.bin.index.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("left", [0, 1])
def test_an_index_whose_shards_are_gone_does_not_count_beside_a_whole_file(tmp_path: Path, left: int) -> None:
    put(tmp_path, SINGLE, NEW)
    for name in shards(tmp_path, OLD)[left:]:
        (tmp_path / name).unlink()
    values, notes = opened(tmp_path)
    assert values == {1.0}
    assert INDEX in notes and SINGLE in notes


def test_an_index_of_one_file(tmp_path: Path) -> None:
    put(tmp_path, SINGLE, NEW)
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(NEW, SINGLE)})
    (tmp_path / INDEX).write_text(index, encoding="utf-8")
    assert opened(tmp_path) == ({1.0}, "")


def test_shards_that_the_index_does_not_list_are_named(tmp_path: Path) -> None:
    extra = np.zeros(2, np.float32)
    shards(tmp_path, {**OLD, "c.weight": extra})
    shards(tmp_path, NEW)
    values, notes = opened(tmp_path)
    assert values == {1.0}
    assert "model-00001-of-00003.safetensors" in notes and "model-00003-of-00003.safetensors" in notes


@pytest.mark.parametrize(
    ("stem", "index"),
    [("model.fp16", "model.fp16.safetensors.index.json"), ("model.fp16", "model.safetensors.index.fp16.json")],
)
def test_a_second_index_is_named_and_does_not_count(tmp_path: Path, stem: str, index: str) -> None:
    shards(tmp_path, OLD, stem, index)
    shards(tmp_path, NEW)
    values, notes = opened(tmp_path)
    assert values == {1.0}
    assert index in notes


def test_a_variant_alone_is_read(tmp_path: Path) -> None:
    shards(tmp_path, NEW, "model.fp16", "model.safetensors.index.fp16.json")
    assert opened(tmp_path)[0] == {1.0}


@pytest.mark.parametrize(
    "other",
    [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
    ],
)
@pytest.mark.parametrize("sharded", [True, False])
def test_other_kinds_of_files_are_named(tmp_path: Path, other: str, sharded: bool) -> None:
    if sharded:
        shards(tmp_path, NEW)
    else:
        put(tmp_path, SINGLE, NEW)
    (tmp_path / other).write_bytes(b"old")
    values, notes = opened(tmp_path)
    assert values == {1.0}
    assert other in notes


def test_the_original_release_beside_the_model(tmp_path: Path) -> None:
    put(tmp_path, SINGLE, NEW)
    (tmp_path / "params.json").write_text("{}", encoding="utf-8")
    for number in (0, 1):
        (tmp_path / f"consolidated.{number:02d}.pth").write_bytes(b"")
    assert "consolidated.00.pth" in opened(tmp_path)[1]


def test_an_adapter_beside_the_model_is_not_merged_and_named(tmp_path: Path) -> None:
    put(tmp_path, SINGLE, NEW)
    put(tmp_path, "adapter_model.safetensors", {"x": NEW["a.weight"]})
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    values, notes = opened(tmp_path)
    assert values == {1.0}
    assert "adapter_model.safetensors" in notes and "--lora" in notes


def test_what_trainers_leave_is_no_weight_file(tmp_path: Path) -> None:
    put(tmp_path, SINGLE, NEW)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "model-F16.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert opened(tmp_path) == ({1.0}, "")


def test_two_saves_in_shards_without_an_index_are_an_error(tmp_path: Path) -> None:
    shards(tmp_path, {**OLD, "c.weight": OLD["a.weight"]}, index=None)
    shards(tmp_path, NEW, index=None)
    with pytest.raises(Malformed, match=r"(?s)in model-00001-of-00002.*and again in model-00001-of-00003"):
        open_checkpoint(tmp_path)


def test_a_shard_that_is_missing_without_an_index(tmp_path: Path) -> None:
    (tmp_path / shards(tmp_path, NEW, index=None)[1]).unlink()
    with pytest.raises(Malformed, match=r"model-00002-of-00002.safetensors"):
        open_checkpoint(tmp_path)
