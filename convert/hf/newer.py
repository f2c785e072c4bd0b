"""The classes of mixtures of experts that came later, for `hf.further`."""

from collections.abc import Callable
from typing import Any

from gguf.constants import ExpertGatingFuncType

from ggufsmith.convert.architectures import laguna, mimo, minimax_m3, newer_moe, phimoe, sparse_attention
from ggufsmith.convert.architectures import windows as narrow
from ggufsmith.convert.gguf_names import NewKeys, NewTensor
from ggufsmith.convert.hf.classes import ATTENTION, BLOCK, MIXTRAL_NAMES, MLP, QKV, HfClass, T, in_blocks
from ggufsmith.convert.hf.given import Given
from ggufsmith.convert.hf.names import GATE_CORRECTION, HUNYUAN_NAMES, LATENT_NAMES, SHARED_EXPERTS, correction
from ggufsmith.convert.hf.several import (
    FULL,
    LATENT,
    SLIDING,
    A,
    L,
    R,
    every,
    latent_sizes,
    layered_rope,
    layered_windows,
    windows,
)

SHARED_MLP = in_blocks(
    {
        T.FFN_GATE_SHEXP: "mlp.shared_mlp.gate_proj",
        T.FFN_UP_SHEXP: "mlp.shared_mlp.up_proj",
        T.FFN_DOWN_SHEXP: "mlp.shared_mlp.down_proj",
    }
)
TRINITY_NAMES = SHARED_EXPERTS | in_blocks(
    {
        T.ATTN_POST_NORM: "post_attention_layernorm",
        T.ATTN_GATE: "self_attn.gate_proj",
        T.FFN_PRE_NORM: "pre_mlp_layernorm",
        T.FFN_POST_NORM: "post_mlp_layernorm",
        T.FFN_GATE_INP: "mlp.router.gate",
    }
)
SINKS = {f"{BLOCK}self_attn.sinks": ("blk.{bid}.attn_sinks.weight",)}
GRANITE_SWA_SOURCES = {
    **SINKS,
    f"{BLOCK}block_sparse_moe.router.weight": ("blk.{bid}.ffn_gate_inp.weight",),
    f"{BLOCK}block_sparse_moe.experts.gate_up_proj": ("blk.{bid}.ffn_gate_up_exps.weight",),
    f"{BLOCK}block_sparse_moe.experts.down_proj": ("blk.{bid}.ffn_down_exps.weight",),
    f"{BLOCK}shared_mlp.input_linear.weight": ("blk.{bid}.ffn_up_shexp.weight",),
    f"{BLOCK}shared_mlp.output_linear.weight": ("blk.{bid}.ffn_down_shexp.weight",),
}
MINIMAX_NAMES = MIXTRAL_NAMES | in_blocks(
    {
        T.FFN_GATE_SHEXP: "block_sparse_moe.shared_experts.gate_proj",
        T.FFN_UP_SHEXP: "block_sparse_moe.shared_experts.up_proj",
        T.FFN_DOWN_SHEXP: "block_sparse_moe.shared_experts.down_proj",
        NewTensor.INDEXER_Q_PROJ: "self_attn.index_q_proj",
        NewTensor.INDEXER_K_PROJ: "self_attn.index_k_proj",
        NewTensor.INDEXER_Q_NORM: "self_attn.index_q_norm",
        T.INDEXER_K_NORM: "self_attn.index_k_norm",
    }
)
INDEXED_NAMES = LATENT_NAMES | in_blocks(
    {
        T.INDEXER_K_NORM: "self_attn.indexer.k_norm",
        T.INDEXER_PROJ: "self_attn.indexer.weights_proj",
        T.INDEXER_ATTN_K: "self_attn.indexer.wk",
        T.INDEXER_ATTN_Q_B: "self_attn.indexer.wq_b",
    }
)


def mlp_kinds(given: Given) -> list[str]:
    """dense or sparse, for every block."""
    return ["dense" if given.has(f"blk.{block}.ffn_gate.weight") else "sparse" for block in range(given.blocks)]


def cohere(given: Given) -> dict[str, Any]:
    """Of Cohere 2 with experts."""
    softmax = given.whole(L.EXPERT_GATING_FUNC) == ExpertGatingFuncType.SOFTMAX.value
    pattern = given.each(A.SLIDING_WINDOW_PATTERN, given.blocks) or []
    return {
        "layer_types": [SLIDING if each else FULL for each in pattern],
        "mlp_layer_types": mlp_kinds(given),
        "expert_selection_fn": "softmax" if softmax else "sigmoid",
    }


def partial(given: Given, count: str) -> float:
    """The part of a head that rotates."""
    return given.whole(count) / max(given.whole(A.KEY_LENGTH), 1)


def mimo2(given: Given) -> dict[str, Any]:
    """Of MiMo-V2."""
    total = given.blocks + given.whole(L.NEXTN_PREDICT_LAYERS)
    narrow = (given.each(A.SLIDING_WINDOW_PATTERN, total) or [])[: given.blocks]
    heads = given.each(A.HEAD_COUNT_KV, total) or []
    rope = layered_rope(given)
    for each in rope.values():
        each["partial_rotary_factor"] = partial(given, R.DIMENSION_COUNT)
    pairs = zip(heads, narrow, strict=False)
    return {
        "num_key_value_heads": next((count if not each else count // 2 for count, each in pairs), None),
        "layer_types": [SLIDING if each else FULL for each in narrow],
        "mlp_layer_types": mlp_kinds(given),
        "rope_parameters": rope,
    }


def laguna_layers(given: Given) -> dict[str, Any]:
    """What differs from block to block in Laguna."""
    counts = given.each(A.HEAD_COUNT, given.blocks) or []
    usual = [block % 4 != 0 for block in range(given.blocks)] if given.number(A.SLIDING_WINDOW) else []
    narrow = given.each(A.SLIDING_WINDOW_PATTERN, given.blocks) or usual or [False] * given.blocks
    rope = layered_rope(given)
    rope[FULL]["partial_rotary_factor"] = partial(given, R.DIMENSION_COUNT)
    rope[SLIDING]["partial_rotary_factor"] = partial(given, R.DIMENSION_COUNT_SWA) or 1.0
    per_head = bool(counts) and given.shape("blk.0.attn_gate.weight")[0] == counts[0]
    return {
        "num_attention_heads": next(iter(counts), None),
        "num_attention_heads_per_layer": counts,
        "layer_types": [SLIDING if each else FULL for each in narrow],
        "mlp_layer_types": mlp_kinds(given),
        "gating": "per-head" if per_head else "per-element",
        "rope_parameters": rope,
    }


def indexed(given: Given) -> dict[str, Any]:
    """Of latent attention with an indexer."""
    kinds = given.each(NewKeys.INDEXER_TYPES, given.blocks)
    found = {**latent_sizes(given), "mlp_layer_types": mlp_kinds(given)}
    return found if kinds is None else {**found, "indexer_types": ["full" if each else "shared" for each in kinds]}


def granite_windows(given: Given) -> dict[str, Any]:
    """Which blocks of Granite have a window, and which rotate."""
    theta = given.number(R.FREQ_BASE)
    rotated = given.each(NewKeys.ROPE_PATTERN, given.blocks) or [True] * given.blocks
    return {**windows(given), "layer_rope_theta": [theta if each else 0.0 for each in rotated]}


def with_pictures(make: Callable[[Given], dict[str, Any]]) -> Callable[[Given], dict[str, Any]]:
    """The same beside an encoder, of which a file of the language model says nothing."""
    return lambda given: {**make(given), "vision_config": {}}


def minimax_m3_layers(given: Given) -> dict[str, Any]:
    """What differs from block to block in MiniMax-M3."""
    kinds = mlp_kinds(given)
    return {
        "mlp_layer_types": kinds,
        "layer_types": ["full_attention" if kind == "dense" else "minimax_m3_sparse" for kind in kinds],
        "shared_intermediate_size": given.whole(L.EXPERT_FEED_FORWARD_LENGTH) * given.whole(L.EXPERT_SHARED_COUNT),
        "partial_rotary_factor": partial(given, R.DIMENSION_COUNT),
    }


INDEXED: dict[str, Any] = {**LATENT, "names": INDEXED_NAMES, "more": indexed, "free": frozenset((T.INDEXER_K_NORM,))}
NEWER = (
    HfClass(
        newer_moe.COHERE2_MOE,
        "cohere2_moe",
        names=SHARED_EXPERTS,
        sparse=True,
        more=cohere,
        renamed={
            "intermediate_size": "prefix_dense_intermediate_size",
            "moe_intermediate_size": "intermediate_size",
        },
    ),
    HfClass(
        newer_moe.HUNYUAN_MOE,
        "hunyuan_v1_moe",
        names=HUNYUAN_NAMES | SHARED_MLP | in_blocks({T.FFN_GATE_INP: "mlp.gate.wg"}),
        sparse=True,
        biases={"attention_bias": ATTENTION},
        lost=("shared_expert_intermediate_size",),
    ),
    HfClass(
        newer_moe.HY_V3,
        "hy_v3",
        names=SHARED_MLP | in_blocks({T.FFN_GATE_INP: "mlp.router.gate"}),
        sources={f"{BLOCK}mlp.expert_bias": ("blk.{bid}.exp_probs_b",)},
        sparse=True,
        biases={"attention_bias": ATTENTION},
        more=lambda given: {"mlp_layer_types": mlp_kinds(given)},
    ),
    HfClass(
        newer_moe.AFMOE,
        "afmoe",
        names=TRINITY_NAMES,
        sources=correction("mlp.expert_bias"),
        sparse=True,
        biases={"attention_bias": ATTENTION},
        more=lambda given: {"layer_types": every(4)(given)},
    ),
    HfClass(
        narrow.GRANITE_SWA,
        "granite_swa",
        sources=SINKS,
        biases={"attention_bias": ATTENTION, "mlp_bias": MLP},
        more=granite_windows,
    ),
    HfClass(
        narrow.GRANITE_MOE_SWA,
        "granitemoe_swa",
        sources=GRANITE_SWA_SOURCES,
        sparse=True,
        biases={"attention_bias": ATTENTION},
        more=granite_windows,
    ),
    HfClass(
        narrow.MELLUM,
        "mellum",
        sparse=True,
        biases={"attention_bias": ATTENTION},
        more=layered_windows,
        lost=("rope_theta", "rope_local_base_freq", "rope_scaling", "use_sliding_window"),
    ),
    HfClass(
        phimoe.PHIMOE,
        "phimoe",
        names=MIXTRAL_NAMES,
        sparse=True,
        biases={"attention_bias": QKV},
        constants={"lm_head_bias": True},
    ),
    HfClass(sparse_attention.DEEPSEEK32, "deepseek_v32", **INDEXED),
    HfClass(sparse_attention.GLM_DSA, "glm_moe_dsa", **INDEXED),
    HfClass(
        mimo.MIMO2,
        "mimo_v2_flash",
        sources={**GATE_CORRECTION, f"{BLOCK}self_attn.attention_sink_bias": ("blk.{bid}.attn_sinks.weight",)},
        sparse=True,
        biases={"attention_bias": QKV},
        more=mimo2,
        renamed={"rms_norm_eps": "rms_norm_eps"},
        lost=("rope_theta", "swa_rope_theta", "rope_local_base_freq", "partial_rotary_factor"),
    ),
    HfClass(
        laguna.LAGUNA,
        "laguna",
        names=in_blocks({T.ATTN_GATE: "self_attn.g_proj"}),
        sources=correction("mlp.experts.e_score_correction_bias"),
        sparse=True,
        biases={"attention_bias": ATTENTION},
        more=laguna_layers,
        lost=("rope_theta", "rope_local_base_freq", "rope_scaling", "partial_rotary_factor"),
    ),
    HfClass(
        minimax_m3.MINIMAX_M3,
        "minimax_m3_vl",
        names=MINIMAX_NAMES,
        sources=correction("block_sparse_moe.e_score_correction_bias"),
        sparse=True,
        more=with_pictures(minimax_m3_layers),
        pictures=True,
    ),
)
