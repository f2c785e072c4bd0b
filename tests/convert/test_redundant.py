"""Tensors that a plan leaves out: only where nothing is lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import adapters
import checkpoints
import quantized
from ggufsmith.container.errors import Unsupported
from merging import EMBEDDING, HEAD
from requesting import Planned, plan, request

FREQUENCIES = "model.layers.0.self_attn.rotary_emb.inv_freq"


def with_head(folder: Path, kind: str, factor: float = 1.0, dtype: str = "bfloat16", **changes: object) -> Path:
    """A checkpoint whose head is stored beside the embedding, and a multiple of it."""
    checkpoints.write(kind, folder, dtype=dtype, **changes)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = checkpoints.tensors_of(config, "float32")
    tensors[EMBEDDING] = wide(checkpoints.bits(tensors[EMBEDDING], dtype), dtype)
    tensors[HEAD] = tensors[EMBEDDING] * np.float32(factor)
    checkpoints.save({n: checkpoints.bits(t, dtype) for n, t in tensors.items()}, folder / "model.safetensors", dtype)
    return folder


def wide(array: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array.astype(np.float32)


def names(prepared: Planned) -> set[str]:
    return {tensor.name for tensor in prepared.made.tensors}


def test_a_head_that_is_the_embedding_is_left_out_of_gemma_2(tmp_path: Path) -> None:
    prepared = plan(request(with_head(tmp_path, "gemma2")))
    assert "output.weight" not in names(prepared)
    assert any("lm_head.weight is left out: it equals model.embed_tokens.weight" in note for note in prepared.notes)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("factor", [1.5, -1.0])
def test_another_head_is_an_error_for_gemma_2(tmp_path: Path, factor: float, changes: dict[str, object]) -> None:
    with pytest.raises(Unsupported, match=r"lm_head.weight and model.embed_tokens.weight differ \(starting at row 0"):
        plan(request(with_head(tmp_path, "gemma2", factor, **changes)))


def test_the_last_row_counts(tmp_path: Path) -> None:
    folder = with_head(tmp_path, "gemma2", dtype="float32")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = checkpoints.tensors_of(config, "float32")
    tensors[HEAD] = tensors[EMBEDDING].copy()
    tensors[HEAD][-1, -1] = np.nextafter(tensors[HEAD][-1, -1], np.float32(1))
    checkpoints.save(tensors, folder / "model.safetensors", "float32")
    with pytest.raises(Unsupported, match=r"starting at row 899"):
        plan(request(folder))


def test_dtypes_do_not_matter_and_shapes_do(tmp_path: Path) -> None:
    folder = checkpoints.write("gemma2", tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {name: ("BF16", tensor) for name, tensor in checkpoints.tensors_of(config).items()}
    same = wide(tensors[EMBEDDING][1], "bfloat16")
    quantized.save({**tensors, HEAD: ("F32", same)}, folder / "model.safetensors")
    assert "output.weight" not in names(plan(request(folder)))
    quantized.save({**tensors, HEAD: ("F32", same[:-1])}, folder / "model.safetensors")
    with pytest.raises(Unsupported, match="in their shapes"):
        plan(request(folder))


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen2", "qwen2-moe", "qwen3", "qwen3-moe", "phi3", "gemma3"])
def test_everywhere_else_the_head_is_kept(tmp_path: Path, kind: str) -> None:
    assert "output.weight" in names(plan(request(with_head(tmp_path, kind, 1.5))))


def test_a_head_with_a_bias_has_no_place(tmp_path: Path) -> None:
    folder = with_head(tmp_path, "gemma2", dtype="float32")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = checkpoints.tensors_of(config, "float32")
    tensors["lm_head.bias"] = np.ones(config["vocab_size"], np.float32)
    checkpoints.save(tensors, folder / "model.safetensors", "float32")
    with pytest.raises(Unsupported, match=r"lm_head\.bias"):
        plan(request(folder))


# -- adapters ---------------------------------------------------------------------------------------------------------


def head_update(base: Path, folder: Path) -> Path:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    a, b = np.ones((4, config["hidden_size"]), np.float32), np.ones((config["vocab_size"], 4), np.float32)
    adapters.write(base, folder, whole={"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b})
    return folder


def test_a_trained_head_of_gemma_2_is_not_sent_to_a_merge_that_is_refused(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    adapter = head_update(bases["gemma2"], tmp_path)
    with pytest.raises(Unsupported, match=r"Merging it is refused") as failure:
        plan(request(adapter))
    assert "--lora" not in str(failure.value)
    with pytest.raises(Unsupported, match="differ"):
        plan(request(bases["gemma2"], lora=((adapter, 1.0),)))


@pytest.mark.parametrize("whole", [True, False])
def test_an_embedding_of_gemma_2_trained_alone(tmp_path: Path, bases: dict[str, Path], whole: bool) -> None:
    """peft's forward leaves the head as it was; the adapter can say that the two are one."""
    config = json.loads((bases["gemma2"] / "config.json").read_text(encoding="utf-8"))
    trained = {EMBEDDING: np.ones((config["vocab_size"], config["hidden_size"]), np.float32)}
    targets = ("q_proj",) if whole else ("q_proj", "embed_tokens")
    options = {"targets": targets, "whole": trained if whole else {}}
    adapters.write(bases["gemma2"], tmp_path, **options)
    for job in (request(tmp_path), request(bases["gemma2"], lora=((tmp_path, 1.0),))):
        with pytest.raises(Unsupported, match='"ensure_weight_tying": true'):
            plan(job)
    adapters.write(bases["gemma2"], tmp_path, ensure_weight_tying=True, **options)
    with pytest.raises(Unsupported, match="--lora"):
        plan(request(tmp_path))
    assert "output.weight" not in names(plan(request(bases["gemma2"], lora=((tmp_path, 1.0),))))


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_where_the_head_can_part_the_advice_to_merge_works(tmp_path: Path, kind: str) -> None:
    base = checkpoints.write(kind, tmp_path / "base")
    adapter = head_update(base, tmp_path / "adapter")
    with pytest.raises(Unsupported, match="--lora"):
        plan(request(adapter))
    assert "output.weight" in names(plan(request(base, lora=((adapter, 1.0),))))


def test_a_trained_embedding_saved_as_the_head_too(tmp_path: Path, bases: dict[str, Path]) -> None:
    """peft saves both where the embedding was trained; they are equal."""
    config = json.loads((bases["gemma2"] / "config.json").read_text(encoding="utf-8"))
    trained = np.full((config["vocab_size"], config["hidden_size"]), 0.5, np.float32)
    adapters.write(bases["gemma2"], tmp_path, whole={EMBEDDING: trained, HEAD: trained})
    prepared = plan(request(bases["gemma2"], lora=((tmp_path, 1.0),)))
    assert any("left out: it equals" in note for note in prepared.notes)
    other = trained + 1
    adapters.write(bases["gemma2"], tmp_path, whole={EMBEDDING: trained, HEAD: other})
    with pytest.raises(Unsupported, match="differ"):
        plan(request(bases["gemma2"], lora=((tmp_path, 1.0),)))


# -- rotary frequencies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theta", "said"), [(1e4, False), (1e6, True)])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_stored_frequencies_are_compared(tmp_path: Path, theta: float, said: bool, dtype: str) -> None:
    folder = checkpoints.write("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {name: ("BF16", tensor) for name, tensor in checkpoints.tensors_of(config).items()}
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    values = (theta ** -(np.arange(half) / half)).astype(np.float32)
    stored = checkpoints.bits(values, {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype])
    quantized.save({**tensors, FREQUENCIES: (dtype, stored)}, folder / "model.safetensors")
    notes = plan(request(folder)).notes
    assert any("inv_freq does not hold" in note and "10000" in note for note in notes) == said
    assert any("recomputed from rope_theta" in note for note in notes)
