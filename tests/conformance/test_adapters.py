"""Adapters that peft wrote: merged as peft merges them, as GGUF adapters as the reference has them, and run."""

import ctypes
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_models import open_llama

import checkpoints
import quantized
import reference
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.convert.lora.peft import open_adapter
from merging import merged
from requesting import request, run

pytestmark = pytest.mark.conformance

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ATTENTION, FEED_FORWARD = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
# What peft is asked for, and of which base.
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("llama", {"target_modules": ATTENTION}),
    "all": ("llama", {"target_modules": "all-linear", "lora_alpha": 3}),
    "rslora": ("qwen2", {"target_modules": ATTENTION + FEED_FORWARD, "use_rslora": True}),
    "patterns": (
        "qwen3",
        {
            "target_modules": ATTENTION + FEED_FORWARD,
            "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 9},
            "alpha_pattern": {"q_proj": 5, r"^model.layers.0.mlp.down_proj": 40},
        },
    ),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj"], "fan_in_fan_out": True}),
    "dora": ("llama", {"target_modules": [*ATTENTION, "embed_tokens"], "use_dora": True}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "trained": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "biases": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "all"}),
    "norms": ("gemma3", {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["input_layernorm"]}),
    "rows": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [70, 3], "lm_head": [1]}},
    ),
    "shared rows": ("qwen2", {"target_modules": ["q_proj"], "trainable_token_indices": [70, 3]}),
    "biased": ("llama-bias", {"target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    "orthogonal": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"}),
}
# Where peft's merge gives a weight that two modules share the update of one, or of both: compared by what is computed.
PARTED: dict[str, tuple[str, dict[str, Any]]] = {
    "embedding alone": ("qwen2", {"target_modules": ["q_proj", "embed_tokens"]}),
    "head alone": ("qwen2", {"target_modules": ["q_proj", "lm_head"]}),
    "both at once": ("qwen2", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    "trained embedding": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
}
# In a GGUF adapter; the reference knows neither patterns nor rslora.
AS_THE_REFERENCE = ("attention", "all", "fused", "embeddings", "orthogonal")
ALONE = (*AS_THE_REFERENCE, "rslora", "patterns")


def base_of(kind: str, folder: Path) -> Path:
    return checkpoints.write(kind, folder / "Base", dtype="float32")  # "phi3" in a name asks llama.cpp for its tokens


def trained(base: Path, folder: Path, *, rows: int = 0, seed: int = 1, **config: Any) -> Any:
    """The model with an adapter as training might leave it, saved in `folder`. rows: by which the vocabulary grew."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if rows:
        model.resize_token_embeddings(model.config.vocab_size + rows)
    tuned = get_peft_model(model, LoraConfig(**{"r": 6, "lora_alpha": 12, **config}))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    return tuned.eval()


def close(found: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    for name, weight in found.items():
        theirs = expected[name].detach().numpy()
        np.testing.assert_allclose(weight, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_as_peft_merges(tmp_path: Path, name: str) -> None:
    kind, config = ADAPTERS[name]
    base = base_of(kind, tmp_path)
    model = trained(base, tmp_path / "adapter", **config)
    found = merged(base, (tmp_path / "adapter", 1.0))
    plain = merged(base)
    assert any(name not in plain or not np.array_equal(found[name], plain[name]) for name in found)
    close(found, model.merge_and_unload().state_dict())


def test_several_adapters_as_peft_merges_them(tmp_path: Path) -> None:
    """Under factors, a DoRA between two others."""
    from peft.tuners.lora import LoraLayer

    base = base_of("llama", tmp_path)
    model = trained(base, tmp_path / "0", target_modules=ATTENTION)
    trained(base, tmp_path / "1", target_modules=["q_proj"], use_dora=True, seed=2)
    trained(base, tmp_path / "2", target_modules=["q_proj", "up_proj"], r=3, seed=3)
    for k in (1, 2):
        model.load_adapter(tmp_path / str(k), f"a{k}")
    factors = {"default": 0.5, "a1": 1.0, "a2": -1.5}
    for module in model.modules():
        for adapter, factor in factors.items():
            if isinstance(module, LoraLayer) and adapter in module.scaling:
                module.set_scale(adapter, factor)
    found = merged(base, *((tmp_path / str(k), factor) for k, factor in enumerate(factors.values())))
    close(found, model.merge_and_unload(adapter_names=list(factors)).state_dict())


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [605, 604]},
    ],
)
def test_a_vocabulary_that_grew(tmp_path: Path, config: dict[str, Any]) -> None:
    """Tied embeddings: peft saves both; of an embedding that is updated it saves the shared weights as they were."""
    base = base_of("qwen2", tmp_path)
    model = trained(base, tmp_path / "adapter", rows=3, **config)
    found = merged(base, (tmp_path / "adapter", 1.0))
    ids = torch_ids(600)
    expected = forward(model, ids)
    assert found[EMBEDDING].shape[0] == expected.shape[1]
    embedded, head = model.get_input_embeddings(), model.get_output_embeddings()
    np.testing.assert_allclose(found[EMBEDDING][ids], embedded(as_tensor(ids)).detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(found[HEAD], head.weight.detach().numpy())


def test_over_a_quantized_base(tmp_path: Path) -> None:
    """The rows of GPTQ weights are float32 when the update comes to them."""
    base = tmp_path / "Base"
    dense = quantized.write_gptq("llama", base, config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    plain = checkpoints.write("llama", tmp_path / "plain", dtype="float16")
    trained(plain, tmp_path / "adapter", target_modules=ATTENTION)
    found = merged(base, (tmp_path / "adapter", 1.0))
    for update in open_adapter(tmp_path / "adapter").updates:
        assert update.target in dense
        assert not np.array_equal(found[update.target], dense[update.target])
    without, over = merged(plain), merged(plain, (tmp_path / "adapter", 1.0))
    for name, weight in dense.items():
        np.testing.assert_allclose(found[name] - weight, over[name] - without[name], atol=1e-6)


# -- run by llama.cpp -------------------------------------------------------------------------------------------------


def torch_ids(rows: int) -> list[int]:
    ids: list[int] = np.random.default_rng(5).integers(3, rows, 32).tolist()
    return ids


def as_tensor(ids: list[int]) -> Any:
    import torch

    return torch.tensor(ids)


def forward(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def run_in_llama_cpp(path: Path, ids: list[int], adapter: Path | None = None, factor: float = 1.0) -> np.ndarray:
    """Logits of every position. llama_adapter_lora_init refuses what does not fit."""
    import llama_cpp

    llama = open_llama(path)
    if adapter is not None:
        lora = llama_cpp.llama_adapter_lora_init(llama.model, os.fsencode(adapter))
        assert lora
        loras, factors = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(factor)
        assert llama_cpp.llama_set_adapters_lora(llama.ctx, loras, 1, factors) == 0
    llama.eval(ids)
    found = np.array(llama.scores[: len(ids)])
    llama.close()
    return found


def error_of(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(((found - expected) ** 2).mean() / (expected**2).mean())


@pytest.mark.parametrize("name", [*(name for name in ADAPTERS if ADAPTERS[name][0] != "gemma3"), *PARTED])
def test_logits_of_the_merged_model_as_of_the_adapted_one(tmp_path: Path, name: str) -> None:
    """Gemma is left out: ggml's GELU is a table."""
    kind, config = {**ADAPTERS, **PARTED}[name]
    base = base_of(kind, tmp_path)
    ids = torch_ids(json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    expected = forward(trained(base, tmp_path / "adapter", **config), ids)
    run(request(base, outtype="f32", outfile=tmp_path / "m.gguf", lora=((tmp_path / "adapter", 1.0),)))
    assert error_of(run_in_llama_cpp(tmp_path / "m.gguf", ids), expected) < 1e-9


@pytest.mark.parametrize("name", ALONE)
def test_llama_cpp_applies_the_adapter(tmp_path: Path, name: str) -> None:
    kind, config = ADAPTERS[name]
    base = base_of(kind, tmp_path)
    ids = torch_ids(json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    expected = forward(trained(base, tmp_path / "adapter", **config), ids)
    run(request(base, outtype="f32", outfile=tmp_path / "base.gguf"))
    run(request(tmp_path / "adapter", outfile=tmp_path / "lora.gguf"))
    without = run_in_llama_cpp(tmp_path / "base.gguf", ids)
    found = run_in_llama_cpp(tmp_path / "base.gguf", ids, tmp_path / "lora.gguf")
    assert error_of(found, expected) < 1e-9
    assert error_of(without, expected) > 1e-4


# -- as the reference converts it -------------------------------------------------------------------------------------


def contents(gguf: Gguf) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    found = {}
    for name, info in gguf.tensors.items():
        data = bytearray(info.nbytes)
        gguf.read_into(info, 0, data)
        found[name] = info.shape, info.format.name, bytes(data)
    return found


@pytest.mark.parametrize("name", AS_THE_REFERENCE)
def test_tensors_of_the_reference_converter(tmp_path: Path, name: str) -> None:
    kind, config = ADAPTERS[name]
    base = base_of(kind, tmp_path)
    trained(base, tmp_path / "adapter", **config)
    run(request(tmp_path / "adapter", outfile=tmp_path / "ours.gguf"))
    theirs = reference.convert_adapter(tmp_path / "adapter", base, tmp_path / "theirs.gguf")
    with open_gguf(tmp_path / "ours.gguf") as mine, open_gguf(theirs) as other:
        assert contents(mine) == contents(other)
        for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
            assert mine.metadata[key] == other.metadata[key]
