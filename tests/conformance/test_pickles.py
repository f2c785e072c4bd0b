"""Pickled checkpoints that torch wrote: read to the bit, refused where they hold more than tensors."""

import argparse
import collections
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
import original
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.convert.checkpoint import open_checkpoint
from requesting import plan, request, run

pytestmark = pytest.mark.conformance


def torch_tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def output(folder: Path, path: Path) -> bytes:
    run(request(folder, outtype="auto", outfile=path, model_name="Tiny"))
    return path.read_bytes()


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_same_bytes_as_from_safetensors(tmp_path: Path, dtype: str, shards: int) -> None:
    import torch

    folder = checkpoints.write("llama", tmp_path / "model", dtype=dtype)
    expected = output(folder, tmp_path / "expected.gguf")
    tensors = torch_tensors(folder)
    (folder / "model.safetensors").unlink()
    names = [f"pytorch_model-{k + 1:05d}-of-{shards:05d}.bin" for k in range(shards)]
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        where = {name: names[k % shards] for k, name in enumerate(tensors)}
        for file in names:
            torch.save({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
        index = json.dumps({"metadata": {}, "weight_map": where})
        (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    assert output(folder, tmp_path / "pickled.gguf") == expected


def test_tied_and_sliced_tensors(tmp_path: Path) -> None:
    import torch

    base = torch.randn(8, 4)
    parameters = {"model.embed_tokens.weight": torch.nn.Parameter(base), "lm_head.weight": base, "part": base[2:5]}
    torch.save(parameters, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"model.embed_tokens.weight", "part"}
        assert "lm_head.weight equals the token embeddings, so it is stored only once" in checkpoint.notes
        source = checkpoint.tensors["part"]
        buffer = bytearray(source.nbytes)
        checkpoint.read_into(source, 0, memoryview(buffer))
    np.testing.assert_array_equal(np.frombuffer(buffer, np.float32).reshape(3, 4), base[2:5].numpy())


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("bomb",)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"a": Bomb()}, r"contains objects other than tensors, so it was not loaded: (posix|nt)\.mkdir\n"),
        (Bomb(), "objects other than tensors"),
        ({"a": argparse.Namespace()}, r"was not loaded: argparse\.Namespace\n"),
        ({"a": "text"}, "'a' is a str, not a tensor"),
        ({"state_dict": {}}, "'state_dict' is a dict, not a tensor"),
        ([1, 2], "it holds a list, not tensors by name"),
        (collections.OrderedDict({1: None}), "1 is a NoneType, not a tensor"),
    ],
)
def test_a_pickle_of_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, what: str) -> None:
    import torch

    checkpoints.write("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(Malformed, match=what):
        plan(request(tmp_path))
    assert set(tmp_path.iterdir()) == before


def test_transposed_and_sparse_tensors(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(3, 4).T}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Unsupported, match=r"strides \[1, 4\]"):
        open_checkpoint(tmp_path)
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Malformed):
        open_checkpoint(tmp_path)


def test_a_file_of_the_old_format(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(Unsupported, match=r"torch 1\.6"):
        open_checkpoint(tmp_path)


def test_a_torch_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(Unsupported, match=r"(?s)torch 2.9.1\+cpu does not.*2.10 does.*ggufsmith\[torch\]"):
        open_checkpoint(tmp_path)


# -- the original release ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("files", "rows"), [(1, False), (2, False), (2, True)])
def test_the_original_release(tmp_path: Path, files: int, rows: bool) -> None:
    """The same file as from the Hugging Face form of the same weights; `rows`: the embedding is split as in Llama 3."""

    folder = checkpoints.write("llama", tmp_path / "hf", dtype="bfloat16", max_position_embeddings=4096)
    expected = output(folder, tmp_path / "expected.gguf")
    tensors = torch_tensors(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    params = {"dim": 256, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 256, "norm_eps": 1e-05}
    original.write(folder, tensors, files, rows=rows, **params)
    assert output(folder, tmp_path / "original.gguf") == expected


def test_a_part_of_the_original_release_is_missing(tmp_path: Path) -> None:
    import torch

    params = {"dim": 4, "n_layers": 1, "n_heads": 2, "norm_eps": 1e-05}
    (tmp_path / "params.json").write_text(json.dumps(params), encoding="utf-8")
    torch.save({"norm.weight": torch.ones(4), "output.weight": torch.ones(4, 4)}, tmp_path / "consolidated.00.pth")
    torch.save({"norm.weight": torch.ones(4)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(Malformed, match=r"output\.weight is in 1 of 2 files"):
        open_checkpoint(tmp_path)
