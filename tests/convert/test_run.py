"""Whole conversions in this process: other spellings of a checkpoint give the same bytes; values survive exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import checkpoints
from ggufsmith.container.reader import open_gguf
from requesting import plan, request, run

Arrays = dict[str, NDArray[Any]]


def rewrite(folder: Path, change: Any, **config: Any) -> Path:
    """Replace the tensors of a folder by `change(tensors)`, and keys of its config."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    tensors = change(checkpoints.tensors_of(values))
    checkpoints.save(tensors, folder / "model.safetensors", "bfloat16")
    path.write_text(json.dumps({**values, **config}), encoding="utf-8")
    return folder


def converted(folder: Path, output: Path, outtype: str = "f16") -> bytes:
    run(request(folder, outtype=outtype, outfile=output))
    return output.read_bytes()


def packed(tensors: Arrays) -> Arrays:
    """Experts as transformers 5 can write them: one gate-and-up and one down tensor per layer."""
    out = {name: array for name, array in tensors.items() if ".experts." not in name}
    for i in range(2):
        block = f"model.layers.{i}.mlp.experts."
        gate, up, down = (
            np.stack([tensors[f"{block}{e}.{name}_proj.weight"] for e in range(4)]) for name in ("gate", "up", "down")
        )
        out[f"{block}gate_up_proj"] = np.concatenate([gate, up], axis=1)
        out[f"{block}down_proj"] = down
    return out


def bare(tensors: Arrays) -> Arrays:
    return {name.removeprefix("model."): array for name, array in tensors.items()}


def reordered(tensors: Arrays) -> Arrays:
    return dict(sorted(tensors.items(), key=lambda item: item[0][::-1]))


@pytest.mark.parametrize(
    ("kind", "change"),
    [("qwen3-moe", packed), ("qwen2-moe", packed), ("qwen3", bare), ("llama", bare), ("mixtral", reordered)],
)
def test_other_spellings_give_the_same_bytes(tmp_path: Path, kind: str, change: Any) -> None:
    plain = checkpoints.write(kind, tmp_path / "a" / "Model")
    other = rewrite(checkpoints.write(kind, tmp_path / "b" / "Model"), change)
    assert converted(plain, tmp_path / "a.gguf") == converted(other, tmp_path / "b.gguf")


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_float32_output_holds_exactly_the_source_values(tmp_path: Path, kind: str) -> None:
    """The sum of all weights' bits, tensor by tensor, does not care about the order that ops give them."""
    folder = checkpoints.write(kind, tmp_path / "Model")
    converted(folder, tmp_path / "a.gguf", "f32")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    source = checkpoints.tensors_of(config)
    shift = config["model_type"].startswith("gemma")
    total = 0
    for name, array in source.items():
        wide = (array.astype(np.uint32) << 16).view(np.float32)
        wide = wide + np.float32(1) if shift and name.endswith("norm.weight") else wide
        total += int(wide.view(np.uint32).astype(np.uint64).sum())
    made = 0
    with open_gguf(tmp_path / "a.gguf") as gguf:
        for info in gguf.tensors.values():
            if info.name == "rope_freqs.weight":
                continue
            buffer = bytearray(info.nbytes)
            gguf.read_into(info, 0, buffer)
            made += int(np.frombuffer(buffer, "<u4").astype(np.uint64).sum())
    assert made == total


def test_the_hub_cache_gives_the_model_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--Some-Model-1B" / "snapshots" / "0123abc"
    checkpoints.write("llama", folder)
    assert plan(request(folder)).output.path.name == "Some-Model-1B-F16.gguf"


def test_a_folder_for_outputs_is_made(tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Model")
    prepared = plan(request(folder, outdir=tmp_path / "new" / "place"))
    run(prepared)
    assert prepared.output.paths == [tmp_path / "new" / "place" / "Model-F16.gguf"]
    assert prepared.output.path.is_file()
