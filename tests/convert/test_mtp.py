"""Blocks for multi-token prediction: counted from the tensors, kept or dropped, whatever the config announces."""

from pathlib import Path
from typing import Any

import pytest

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.values import u32
from ggufsmith.convert.config import Config
from ggufsmith.convert.mtp_alone import apart
from ggufsmith.convert.plan import Plan, make_plan
from ggufsmith.convert.stored import StoredTensor
from requesting import request, run

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "layer_types": ["full_attention"],
    "vocab_size": 100,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
BLOCK = {
    "input_layernorm": (64,),
    "post_attention_layernorm": (64,),
    "self_attn.q_proj": (128, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "self_attn.q_norm": (32,),
    "self_attn.k_norm": (32,),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
AROUND = {"fc": (64, 128), "norm": (64,), "pre_fc_norm_embedding": (64,), "pre_fc_norm_hidden": (64,)}
MODEL = {"model.embed_tokens": (100, 64), "model.norm": (64,), **{f"model.layers.0.{k}": v for k, v in BLOCK.items()}}
MTP = {**{f"mtp.{k}": v for k, v in AROUND.items()}, **{f"mtp.layers.0.{k}": v for k, v in BLOCK.items()}}


def plan_of(shapes: dict[str, tuple[int, ...]], *, drop: bool = False, **changes: Any) -> Plan:
    tensors = {f"{k}.weight": StoredTensor(f"{k}.weight", v, "BF16", Path("x"), 0, 2) for k, v in shapes.items()}
    return make_plan(Config({**CONFIG, **changes}, Path("config.json")), tensors, drop_mtp=drop)


@pytest.mark.parametrize("announced", [None, 0, 1])
def test_blocks_that_are_there_are_written_whatever_the_config_announces(announced: int | None) -> None:
    plan = plan_of({**MODEL, **MTP}, mtp_num_hidden_layers=announced)
    assert plan.metadata["qwen35.block_count"] == u32(2)
    assert plan.metadata["qwen35.nextn_predict_layers"] == u32(1)
    assert {"blk.1.nextn.eh_proj.weight", "blk.1.attn_q.weight"} <= {output.name for output in plan.outputs}
    assert any("announces" in note for note in plan.notes) == (announced != 1)


@pytest.mark.parametrize("announced", [0, 1])
def test_blocks_that_are_lost_leave_no_key(announced: int) -> None:
    plan = plan_of(MODEL, mtp_num_hidden_layers=announced)
    assert plan.metadata["qwen35.block_count"] == u32(1)
    assert "qwen35.nextn_predict_layers" not in plan.metadata
    assert any("announces 1" in note for note in plan.notes) == (announced == 1)


def test_blocks_that_are_dropped() -> None:
    plan, without = plan_of({**MODEL, **MTP}, drop=True), plan_of(MODEL)
    assert [output.name for output in plan.outputs] == [output.name for output in without.outputs]
    assert plan.metadata == without.metadata
    assert any("--mtp drop" in note for note in plan.notes)


@pytest.mark.parametrize("lost", ["mtp.fc", "mtp.layers.0.mlp.up_proj", "mtp.pre_fc_norm_hidden"])
def test_blocks_that_are_cut_off_are_refused(lost: str) -> None:
    with pytest.raises(Unsupported) as caught:
        plan_of({name: shape for name, shape in {**MODEL, **MTP}.items() if name != lost})
    assert any("is missing from the checkpoint" in line for line in caught.value.also)


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="--mtp is 'maybe', but it can be keep, drop or only"):
        run(request(tmp_path, mtp="maybe"))


def test_blocks_in_a_file_of_their_own() -> None:
    whole = plan_of({**MODEL, **MTP})
    plan = apart(whole)
    assert plan.metadata == whole.metadata
    kept = {output.name for output in plan.outputs}
    assert kept == {each.name for each in whole.outputs if not each.name.startswith("blk.0.")}
    assert {"token_embd.weight", "output_norm.weight", "blk.1.nextn.eh_proj.weight"} <= kept
    assert "draft model" in plan.notes[0]


def test_a_file_of_blocks_that_are_not_there_is_refused() -> None:
    with pytest.raises(Unsupported, match="holds no blocks for multi-token prediction"):
        apart(plan_of(MODEL))
