"""Pickled checkpoints where no torch is needed to see what is wrong; tests/conformance/test_pickles.py has the rest."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.model_config import open_config


def archive(path: Path) -> Path:
    """Looks like a file of torch.save, as far as its directory goes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")
        file.writestr("archive/data/0", bytes(64))
    return path


def test_torch_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unsupported, match=r"(?s)torch is not installed.*pip install 'ggufsmith\[torch\]'"):
        open_checkpoint(tmp_path)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02" + bytes(100))
    with pytest.raises(Unsupported, match=r"torch 1\.6"):
        open_checkpoint(tmp_path)


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "pytorch_model.bin")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Malformed, match="damaged or incomplete"):
        open_checkpoint(tmp_path)


def test_a_big_endian_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as file:
        file.writestr("archive/byteorder", b"big")
    with pytest.raises(Unsupported, match="big-endian"):
        open_checkpoint(tmp_path)


def test_an_index_names_the_shards(tmp_path: Path) -> None:
    index = {"weight_map": {"a.weight": "pytorch_model-00001-of-00002.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(Malformed, match=r"shard 'pytorch_model-00001-of-00002.bin' is missing"):
        open_checkpoint(tmp_path)


# Numbers of the published params.json -> context length and feed-forward length of the published models.
RELEASES = {
    "Llama 7B": ({"dim": 4096, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-06}, 2048, 11008),
    "Llama 65B": ({"dim": 8192, "n_heads": 64, "multiple_of": 256, "norm_eps": 1e-05}, 2048, 22016),
    "Llama 2 7B": ({"dim": 4096, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-05}, 4096, 11008),
    "Llama 2 70B": (
        {
            "dim": 8192,
            "n_heads": 64,
            "n_kv_heads": 8,
            "multiple_of": 4096,
            "ffn_dim_multiplier": 1.3,
            "norm_eps": 1e-05,
        },
        4096,
        28672,
    ),
    "Code Llama": ({"dim": 4096, "n_heads": 32, "multiple_of": 256, "rope_theta": 1e6, "norm_eps": 1e-5}, 16384, 11008),
    "Llama 3 8B": (
        {
            "dim": 4096,
            "n_heads": 32,
            "n_kv_heads": 8,
            "multiple_of": 1024,
            "ffn_dim_multiplier": 1.3,
            "norm_eps": 1e-05,
            "rope_theta": 500000.0,
        },
        8192,
        14336,
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_params_of_the_releases(tmp_path: Path, name: str) -> None:
    params, context, feed_forward = RELEASES[name]
    (tmp_path / "params.json").write_text(json.dumps({**params, "n_layers": 32, "vocab_size": -1}), encoding="utf-8")
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    config = open_config(tmp_path)
    assert (config["max_position_embeddings"], config["intermediate_size"]) == (context, feed_forward)
    assert config["num_key_value_heads"] == params.get("n_kv_heads", params["n_heads"])


def test_scaled_rope_of_llama_3_1(tmp_path: Path) -> None:
    params = {"dim": 4096, "n_heads": 32, "n_layers": 32, "rope_theta": 5e5, "norm_eps": 1e-5, "use_scaled_rope": True}
    (tmp_path / "params.json").write_text(json.dumps(params), encoding="utf-8")
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    config = open_config(tmp_path)
    assert (config["max_position_embeddings"], config["rope_scaling"]["factor"]) == (131072, 8.0)


@pytest.mark.parametrize("params", [{}, {"dim": 0, "n_heads": 1}, {"dim": 64, "n_heads": -1}])
def test_params_of_something_else(tmp_path: Path, params: dict[str, int]) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params), encoding="utf-8")
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(Malformed, match="must be positive"):
        open_config(tmp_path)
