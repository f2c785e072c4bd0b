"""GGUF files that are no model, or none that llama.cpp would load, are refused by the quantizer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import small_models as models

from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import Value, string, u32
from ggufsmith.quantize.model_check import check_model
from requesting import plan, request, run

WIDE = np.zeros((256, 256), np.float32)


def refused(path: Path, recipe: str = "q8_0") -> Failure:
    before = sorted(path.parent.iterdir())
    with pytest.raises(Failure) as caught:
        plan(request(path, recipe))
    assert sorted(path.parent.iterdir()) == before
    return caught.value


def keys(architecture: str, **more: Value) -> Mapping[str, Value]:
    named = {key.replace("_", ".", 1): value for key, value in more.items()}
    return {"general.architecture": string(architecture), f"{architecture}.block_count": u32(2), **named}


@pytest.mark.parametrize("recipe", ["q4_K_M", "q8_0", "iq2_xxs", "f16", "bf16", "f32", "copy"])
@pytest.mark.parametrize(
    ("metadata", "names", "what"),
    [
        (keys("llama", general_type=string("adapter")), ["blk.0.attn_q.weight.lora_a"], "a LoRA adapter"),
        (keys("llama"), ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"], "a LoRA adapter"),
        (keys("llama", general_type=string("adapter")), ["blk.0.attn_q.weight"], "a LoRA adapter"),
        (keys("imatrix", general_type=string("imatrix")), ["blk.0.attn_q.weight.in_sum2"], "an importance matrix"),
        (keys("qwen3"), ["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"], "an importance matrix"),
        (keys("controlvector"), ["direction.1"], "a control vector"),
        (keys("llama", general_type=string("vocoder")), ["token_embd.weight"], "of the type 'vocoder'"),
    ],
)
def test_other_kinds_of_files(
    tmp_path: Path, metadata: Mapping[str, Value], names: list[str], what: str, recipe: str
) -> None:
    path = models.write_gguf(tmp_path / "x.gguf", metadata, {name: models.plain(WIDE) for name in names})
    failure = refused(path, recipe)
    assert isinstance(failure, Unsupported)
    assert what in failure.what
    assert failure.fix


@pytest.mark.parametrize("typed", [{"general_type": string("mmproj")}, {}])
def test_projectors_are_quantized(tmp_path: Path, typed: dict[str, Value]) -> None:
    names = ["v.blk.0.attn_q.weight", "v.patch_embd.weight.1", "mm.0.weight", "a.blk.0.conv_dw.weight"]
    path = models.write_gguf(tmp_path / "x.gguf", keys("clip", **typed), {name: models.plain(WIDE) for name in names})
    run(request(path, "q8_0", outfile=tmp_path / "y.gguf"))
    types = {name: info.format.name for name, info in open_gguf(tmp_path / "y.gguf").tensors.items()}
    assert types == dict(zip(names, ["Q8_0", "F32", "Q8_0", "F32"], strict=True))


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", ["v.blk.0.attn_q.weight"]),
        ("llama", ["blk.0.attn_q.weight.extra"]),
        ("llama", ["model.layers.0.self_attn.q_proj.weight"]),
        ("llama", ["blk.x.attn_q.weight"]),
        ("gemma2", ["output.weight"]),
        ("qwen2", ["blk.0.attn_q_norm.weight"]),
        ("mamba", ["blk.0.nothing.weight"]),
    ],
)
def test_tensors_that_the_graph_does_not_know(tmp_path: Path, architecture: str, names: list[str]) -> None:
    tensors = {name: models.plain(WIDE) for name in ["token_embd.weight", *names]}
    failure = refused(models.write_gguf(tmp_path / "x.gguf", keys(architecture), tensors))
    assert isinstance(failure, Unsupported)
    assert "llama.cpp does not know" in failure.what and names[0] in str(failure)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", ["blk.1.ffn_gate_exps.weight", "blk.1.attn_q.bias", "rope_freqs.weight", "blk.0.attn_q.scale"]),
        ("llama", ["rope_factors_long.weight", "blk.0.ffn_gate_shexp.weight", "output.weight"]),
        ("qwen2", ["output.bias"]),
        ("qwen3", ["cls.output.weight"]),
        ("phi3", ["blk.0.attn_qkv.weight", "rope_factors_short.weight"]),
        ("gemma3", ["blk.1.attn_q_norm.weight", "output.weight", "dense_2.weight"]),
        ("mamba", ["blk.0.ssm_a", "blk.0.ssm_dt.bias"]),
        ("t5", ["enc.blk.5.attn_q.weight", "dec.blk.7.cross_attn_q.weight", "enc.output_norm.weight"]),
        ("falcon", ["blk.0.attn_norm_2.weight", "blk.0.attn_qkv.bias"]),
        ("mpt", ["blk.0.ffn.act.scales"]),
        ("wavtokenizer-dec", ["posnet.0.conv1.weight", "convnext.3.gamma.weight"]),
        ("from-the-future", ["blk.9.anything", "x"]),
    ],
)
def test_tensors_that_belong(architecture: str, names: list[str]) -> None:
    metadata = {"general.architecture": string(architecture), "general.type": string("model")}
    check_model(metadata, ["token_embd.weight", *names], "x")


def test_blocks_beyond_the_last() -> None:
    with pytest.raises(Malformed, match=r"2 blocks, but it has its tensor blk\.2\.attn_q\.weight"):
        check_model(keys("llama"), ["blk.1.attn_q.weight", "blk.2.attn_q.weight"], "x")


def test_many_names_are_counted() -> None:
    with pytest.raises(Unsupported, match=r"(?s)20 of its tensors.*and 12 more"):
        check_model(keys("llama"), [f"blk.0.x{k}.weight" for k in range(20)], "x")


@pytest.mark.parametrize("recipe", ["q4_K_M", "q8_0", "f16"])
def test_a_run_that_changes_nothing_is_no_success(tmp_path: Path, recipe: str) -> None:
    vectors = {f"blk.{k}.attn_norm.weight": models.plain(np.ones(64, np.float32)) for k in range(2)}
    failure = refused(models.write_gguf(tmp_path / "x.gguf", keys("llama"), vectors), recipe)
    assert isinstance(failure, Unsupported)
    assert "tensors can have the type" in failure.what and "a vector" in str(failure)


@pytest.mark.parametrize("recipe", ["f32", "copy"])
def test_what_has_the_type_already_is_fine(tmp_path: Path, recipe: str) -> None:
    vectors = {f"blk.{k}.attn_norm.weight": models.plain(np.ones(64, np.float32)) for k in range(2)}
    plan(request(models.write_gguf(tmp_path / "x.gguf", keys("llama"), vectors), recipe))
