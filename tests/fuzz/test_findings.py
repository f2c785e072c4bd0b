"""What fuzzing found, kept: each input once gave another exception, or took all memory or time."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import targets

import checkpoints
from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.container.layout import lay_out
from ggufsmith.container.values import Value, f32, u32
from ggufsmith.convert.model import open_folder
from requesting import opened, plan, request


def with_config(folder: Path, **changes: Any) -> Path:
    model = checkpoints.write("llama-3", folder / "model")
    path = model / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(config), encoding="utf-8")
    return model


def test_rope_factors_of_a_head_of_two_billion(tmp_path: Path) -> None:
    """Synthesized rope_freqs took 4 GiB before anything had looked at head_dim. Tensors, if any, decide."""
    model = with_config(tmp_path, head_dim=2**31 - 1)
    with pytest.raises(Malformed, match="head_dim is 2147483647"):
        plan(request(model, vocab_only=True))
    assert open_folder(request(model)).plan.dims.head_dim == 128


@pytest.mark.parametrize("end", [float("inf"), float("nan"), 1e308])
def test_a_safetensors_header_that_ends_at_infinity(tmp_path: Path, end: float) -> None:
    model = checkpoints.write("llama", tmp_path / "model")
    path = model / "model.safetensors"
    whole = path.read_bytes()
    stop = 8 + int.from_bytes(whole[:8], "little")
    tree = json.loads(whole[8:stop])
    tree["model.norm.weight"]["data_offsets"] = [0, end]
    header = json.dumps(tree).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[stop:])
    with pytest.raises(Malformed, match=r"model\.safetensors"):
        plan(request(model))


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "attention.head_count_kv", "expert_count"])
@pytest.mark.parametrize("value", [f32(float("nan")), f32(float("inf"))])
def test_keys_of_a_model_to_quantize(tmp_path: Path, key: str, value: Value) -> None:
    """NaN is no number of heads."""
    quantized_with(tmp_path, key, value)


def test_a_model_of_four_billion_blocks(tmp_path: Path) -> None:
    quantized_with(tmp_path, "block_count", u32(2**32 - 1))


def quantized_with(tmp_path: Path, key: str, value: Value) -> None:
    whole = plan(request(checkpoints.write("llama", tmp_path / "model"))).output.shards.whole
    layout = lay_out({**whole.metadata, f"llama.{key}": value}, whole.tensors)
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    with suppress(Failure), opened(request(path, "Q4_K_M")):
        pass


def test_the_targets_work_on_sound_files() -> None:
    """Otherwise every damage might be refused for another reason."""
    whole, header = targets._gguf()
    assert whole[:4] == b"GGUF"
    assert len(whole) > header
