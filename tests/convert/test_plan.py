"""Plans: every architecture, every spelling of the same checkpoint, and everything that must stop a conversion."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.values import u32
from ggufsmith.convert.architectures.later import LATER, WHY
from ggufsmith.convert.config import Config
from ggufsmith.convert.plan import Plan, make_plan
from ggufsmith.convert.stored import StoredTensor

VOCAB = 320


def sources(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> dict[str, StoredTensor]:
    """Headers without files: a plan needs no bytes."""
    return {
        name: StoredTensor(name, shape, dtype, Path("x"), 0, 2 * int(np.prod(shape))) for name, shape in shapes.items()
    }


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    return checkpoints.config_of(kind, **{"vocab_size": VOCAB, **changes})


def plan_of(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor] | None = None) -> Plan:
    tensors = sources(dict(checkpoints.shapes(config))) if tensors is None else tensors
    return make_plan(Config(config, Path("config.json")), tensors)


def outputs(plan: Plan) -> dict[str, tuple[tuple[int, ...], str, bool]]:
    return {o.name: (o.shape, repr(o.op), o.keep_f32) for o in plan.outputs}


def problems(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor] | None = None) -> tuple[str, ...]:
    with pytest.raises(Unsupported) as caught:
        plan_of(config, tensors)
    return caught.value.also


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_every_kind_uses_every_tensor(kind: str) -> None:
    config = config_of(kind)
    plan = plan_of(config)
    used = {source.name for output in plan.outputs for source in output.sources}
    assert used == {name for name, _ in checkpoints.shapes(config)}
    assert all(output.shape for output in plan.outputs)


def test_an_encoder_alone_is_no_language_model() -> None:
    config = {**config_of("qwen3"), "architectures": ["Qwen3VLForConditionalGeneration"]}
    with pytest.raises(Unsupported, match="no tensor of a language model, only the vision encoder"):
        plan_of(
            config, sources({"model.visual.blocks.0.norm1.weight": (64,), "model.visual.pos_embed.weight": (16, 64)})
        )


def test_query_and_key_are_permuted_by_their_own_heads() -> None:
    made = outputs(plan_of(config_of("llama-bias")))
    assert made["blk.0.attn_q.weight"] == ((256, 256), "RopePermute(heads=4, undo=False, rotary=0)", False)
    assert made["blk.0.attn_k.weight"] == ((128, 256), "RopePermute(heads=2, undo=False, rotary=0)", False)
    assert made["blk.0.attn_q.bias"] == ((256,), "RopePermute(heads=4, undo=False, rotary=0)", True)
    assert made["blk.0.attn_k.bias"] == ((128,), "RopePermute(heads=2, undo=False, rotary=0)", True)
    assert made["blk.0.attn_v.weight"][1] == "Copy()"
    assert outputs(plan_of(config_of("qwen2")))["blk.0.attn_q.weight"][1] == "Copy()"


def test_what_stays_in_float32() -> None:
    made = outputs(plan_of(config_of("qwen2-moe")))
    assert {name.removeprefix("blk.0.") for name, (*_, f32) in made.items() if f32 and "blk.1." not in name} == {
        "attn_norm.weight",
        "ffn_norm.weight",
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "ffn_gate_inp.weight",
        "ffn_gate_inp_shexp.weight",
        "output_norm.weight",
    }


def test_names_without_the_model_prefix() -> None:
    config = config_of("qwen3")
    bare = sources({name.removeprefix("model."): shape for name, shape in checkpoints.shapes(config)})
    assert outputs(plan_of({**config, "architectures": ["Qwen3Model"]}, bare)) == outputs(plan_of(config))


def test_packed_experts_are_the_separate_ones() -> None:
    config = config_of("qwen3-moe")
    separate = dict(checkpoints.shapes(config))
    packed = {name: shape for name, shape in separate.items() if ".experts." not in name}
    for i in range(2):
        packed[f"model.layers.{i}.mlp.experts.gate_up_proj"] = (4, 512, 256)
        packed[f"model.layers.{i}.mlp.experts.down_proj"] = (4, 256, 256)
    made = outputs(plan_of(config, sources(packed)))
    assert {name: made[name][0] for name in made} == {n: s for n, (s, *_) in outputs(plan_of(config)).items()}
    assert made["blk.1.ffn_up_exps.weight"][1] == "Part(begin=256, end=512)"


def test_transposed_packed_experts_are_noticed() -> None:
    config = config_of("qwen3-moe")
    packed = {name: shape for name, shape in checkpoints.shapes(config) if ".experts." not in name}
    for i in range(2):
        packed[f"model.layers.{i}.mlp.experts.gate_up_proj"] = (4, 256, 512)
        packed[f"model.layers.{i}.mlp.experts.down_proj"] = (4, 256, 256)
    found = problems(config, sources(packed))
    assert "model.layers.0.mlp.experts.gate_up_proj: shape [4, 256, 512], but the config says [4, 512, 256]" in found


def test_the_tensors_decide_about_tied_embeddings() -> None:
    tied = config_of("llama", tie_word_embeddings=True)
    untied = config_of("llama")
    assert "output.weight" not in outputs(plan_of(tied))
    assert "output.weight" in outputs(plan_of(untied))
    lie = plan_of(tied, sources(dict(checkpoints.shapes(untied))))
    assert "output.weight" in outputs(lie)
    assert "output.weight" not in outputs(plan_of(untied, sources(dict(checkpoints.shapes(tied)))))


def test_qwen2_moe_without_a_head_takes_the_embedding_since_llama_cpp_wants_one() -> None:
    config = config_of("qwen2-moe", tie_word_embeddings=True)
    head = next(output for output in plan_of(config).outputs if output.name == "output.weight")
    assert [source.name for source in head.sources] == ["model.embed_tokens.weight"]


def test_the_tensors_decide_about_the_head_size() -> None:
    config = config_of("llama", head_dim=128)
    right = sources(dict(checkpoints.shapes(config)))
    for claimed in (None, 64, 128):
        plan = plan_of({key: v for key, v in {**config, "head_dim": claimed}.items() if v is not None}, right)
        assert plan.dims.head_dim == 128
        assert plan.metadata["llama.rope.dimension_count"] == u32(128)


def test_the_embedding_decides_about_the_vocabulary() -> None:
    config = config_of("llama")
    plan = plan_of({**config, "vocab_size": 5}, sources(dict(checkpoints.shapes(config))))
    assert plan.metadata["llama.vocab_size"] == u32(VOCAB)


def test_a_vocabulary_alone_needs_no_tensors() -> None:
    plan = make_plan(Config(config_of("llama"), Path("config.json")), None)
    assert plan.outputs == ()
    assert plan.metadata == plan_of(config_of("llama")).metadata


# -- what must stop a conversion --------------------------------------------------------------------------------------


def without(config: Mapping[str, Any], *names: str, **extra: tuple[int, ...]) -> dict[str, StoredTensor]:
    shapes = {name: shape for name, shape in checkpoints.shapes(config) if name not in names}
    return sources({**shapes, **{name.replace("__", "."): shape for name, shape in extra.items()}})


def test_all_problems_come_at_once() -> None:
    config = config_of("llama", hidden_act="gelu")
    found = problems(
        config,
        without(config, "model.norm.weight", "model.layers.1.mlp.up_proj.weight", model__layers__0__mlp__wrong=(4, 4)),
    )
    assert len(found) == 4
    assert "output_norm.weight: its source is missing from the checkpoint" in found
    assert "blk.1.ffn_up.weight: its source is missing from the checkpoint" in found
    assert any(line.startswith("model.layers.0.mlp.wrong: there is no GGUF tensor for it") for line in found)
    assert "config.json: hidden_act is 'gelu', but llama.cpp assumes 'silu'" in found


def test_an_unknown_tensor_names_the_nearest_known_one() -> None:
    config = config_of("llama")
    found = problems(config, without(config, model__layers__0__self_attn__q_prj__weight=(4, 4)))
    assert "nearest known name is model.layers.0.self_attn.q_proj" in found[0]


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "g_idx", "qzeros", "absmax"])
def test_a_quantization_companion_that_nobody_reads(name: str) -> None:
    config = config_of("llama")
    found = problems(config, without(config, **{f"model__layers__0__mlp__up_proj__{name}": (4, 4)}))
    assert f"a companion of a quantized tensor ({name})" in found[0]


def test_a_shape_that_contradicts_the_config() -> None:
    found = problems(config_of("llama"), without(config_of("llama", intermediate_size=512)))
    assert "model.layers.0.mlp.gate_proj.weight: shape [512, 256], but the config says [768, 256]" in found


def test_an_expert_missing_in_one_layer() -> None:
    config = config_of("mixtral")
    found = problems(config, without(config, "model.layers.1.block_sparse_moe.experts.2.w1.weight"))
    assert found == ("blk.1.ffn_gate_exps.weight: 3 experts for 4, missing [2]",)


def test_more_experts_than_the_config_says() -> None:
    found = problems(config_of("mixtral", num_local_experts=2), without(config_of("mixtral")))
    assert "config.json: 2 experts, but the tensors hold 4" in found


def test_a_dense_layer_among_experts_has_no_place() -> None:
    config = config_of("qwen3-moe")
    found = problems(config, without(config, model__layers__0__mlp__up_proj__weight=(768, 256)))
    assert any("model.layers.0.mlp.up_proj.weight" in line for line in found)


def test_integer_weights_are_named() -> None:
    tensors = dict(plan_sources := without(config_of("llama")))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = StoredTensor(name, plan_sources[name].shape, "I8", Path("x"), 0, 1)
    assert problems(config_of("llama"), tensors) == (f"{name}: I8 weights are not supported (F32, F16, BF16 are)",)


def test_an_unknown_class_names_the_nearest() -> None:
    wrong = (
        r"LlamaForCausalLN is not supported, as llama.cpp has no runtime for it; the nearest known one is LlamaForCau"
    )
    with pytest.raises(Unsupported, match=wrong):
        plan_of({**config_of("llama"), "architectures": ["LlamaForCausalLN"]})


@pytest.mark.parametrize("name", ["MapleForCausalLM", "PlamoForCausalLM", "Rwkv6ForCausalLM"])
def test_a_class_that_llama_cpp_knows_is_refused_by_name(name: str) -> None:
    with pytest.raises(Unsupported, match=f"{name} is known to llama.cpp, but ggufsmith does not convert it yet"):
        plan_of({**config_of("llama"), "architectures": [name]})


@pytest.mark.parametrize("name", WHY)
def test_a_class_that_cannot_be_converted_says_why(name: str) -> None:
    assert name in LATER
    with pytest.raises(Unsupported, match=re.escape(f"does not convert it: {WHY[name]}")):
        plan_of({**config_of("llama"), "architectures": [name]})


@pytest.mark.parametrize("classes", [None, [], "LlamaForCausalLM", [3]])
def test_a_config_without_a_class(classes: object) -> None:
    with pytest.raises(Malformed, match='"architectures" must name the model class'):
        plan_of({**config_of("llama"), "architectures": classes})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "2"),
        ("num_hidden_layers", True),
        ("hidden_size", 0),
        ("num_attention_heads", 0),
        ("num_key_value_heads", -2),
        ("intermediate_size", 10**30),
        ("rope_theta", "high"),
        ("rope_scaling", [1]),
    ],
)
def test_impossible_config_values_name_the_key(key: str, value: object) -> None:
    with pytest.raises(Malformed, match=key):
        plan_of({**config_of("llama"), key: value}, without(config_of("llama")))


def test_norm_topk_prob_must_be_what_the_graph_does() -> None:
    assert problems(config_of("qwen3-moe", norm_topk_prob=False)) == (
        "config.json: norm_topk_prob is False, but llama.cpp assumes True",
    )


def test_gemma_attention_scale_must_be_what_the_graph_does() -> None:
    assert problems(config_of("gemma2", query_pre_attn_scalar=224)) == (
        "config.json: query_pre_attn_scalar is 224, but llama.cpp assumes 128",
    )


# -- reports ----------------------------------------------------------------------------------------------------------


def test_notes_say_what_is_left_out() -> None:
    config = config_of("qwen2", surprising_key=3, use_sliding_window=True)
    inverse = {"model__layers__0__self_attn__rotary_emb__inv_freq": (32,), "mtp__fc__weight": (4, 4)}
    notes = plan_of(config, without(config, **inverse)).notes
    assert "1 dropped: recomputed from rope_theta" in notes
    assert any(note.startswith("1 dropped: the multi-token prediction head") for note in notes)
    assert "these keys of config.json are not used: surprising_key" in notes
    assert any(note.startswith("use_sliding_window is True") for note in notes)


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_ordinary_configs_raise_no_notes_about_keys(kind: str) -> None:
    assert not [
        note
        for note in plan_of(config_of(kind, torch_dtype="bfloat16")).notes
        if note.startswith("these keys of config.json")
    ]


def test_a_text_config_inside_a_larger_model() -> None:
    text = config_of("gemma3")
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    tensors = {f"language_model.{name}": shape for name, shape in checkpoints.shapes(text)}
    tensors["vision_tower.x.weight"] = (3, 3)
    plan = plan_of(outer, sources(tensors))
    assert outputs(plan) == outputs(plan_of(text))
    assert "1 dropped: the vision encoder; this converts the text model" in plan.notes


def test_a_plan_needs_no_json_order() -> None:
    config = config_of("llama")
    shapes = dict(reversed(list(checkpoints.shapes(config))))
    assert outputs(plan_of(config, sources(shapes))) == outputs(plan_of(json.loads(json.dumps(config))))


@pytest.mark.parametrize("epsilon", [float("nan"), float("inf"), 1e300, 10**400, -1e-5, "1e-5", True])
def test_numbers_that_no_key_can_hold_are_problems(epsilon: object) -> None:
    assert any("rms_norm_eps must be a number" in line for line in problems(config_of("llama", rms_norm_eps=epsilon)))


@pytest.mark.parametrize("change", [{"num_local_experts": 0}, {"num_experts_per_tok": 0}, {"num_experts_per_tok": 9}])
def test_experts_that_the_tensors_do_not_have_are_problems(change: dict[str, int]) -> None:
    config = config_of("mixtral")
    tensors = sources(dict(checkpoints.shapes(config)))
    assert any("experts" in line for line in problems({**config, **change}, tensors))


def test_packed_experts_without_a_shape_are_a_problem() -> None:
    config = config_of("qwen3-moe")
    tensors = sources(dict(checkpoints.shapes(config)))
    kept = {name: source for name, source in tensors.items() if ".experts." not in name}
    kept |= sources({"model.layers.0.mlp.experts.down_proj": ()})
    assert any("shape []" in line or "experts" in line for line in problems(config, kept))


@pytest.mark.parametrize("digits", ["²", "٣", "9" * 10, "9" * 5000], ids=lambda digits: digits[:12])
@pytest.mark.parametrize(
    "name", ["model.layers.{}.self_attn.q_proj.weight", "model.layers.0.mlp.experts.{}.up_proj.weight"]
)
def test_a_number_in_a_name_that_is_none(name: str, digits: str) -> None:
    config = config_of("qwen3-moe")
    more = {**dict(checkpoints.shapes(config)), name.format(digits): (256, 256)}
    found = problems(config, sources(more))
    assert any(digits[:9] in problem for problem in found)
