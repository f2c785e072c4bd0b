"""Mixtures of experts that came later: North Mini, Hunyuan, Trinity.

How scores become weights of experts, and whether these are normalised, is what the class of transformers does: configs
that it saved say nothing of it, and llama.cpp would take something else.
"""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import boolean, booleans, f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.dense import COHERE2
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_LENGTH,
    EXPERTS,
    HEAD_NORMS,
    HEAD_SIZE,
    LAYER_NORM,
    NORMS,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    ROTARY,
    SHARED_LENGTH,
    SILU,
    SIZES,
    STATED_HEAD_SIZE,
    VOCAB_SIZE,
    WINDOW,
    T,
    layer_types,
)
from ggufsmith.convert.architectures.moe import (
    DENSE_BLOCKS,
    DOUBLE,
    GROUPS,
    LEADING,
    NEXTN,
    NEXTN_IF_ANY,
    NORMALISED,
    SHARED_BLOCKS,
    SIGMOID,
    SOFTMAX,
    SPARSE_BLOCKS,
    dense_lead,
    gating,
    lead,
    led,
    only_first_dense,
    shared,
    whole,
    with_mtp,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch


def cohere_windows(config: Config, dims: Dims) -> list[bool]:
    """Which blocks have a sliding window. The period begins anew behind the dense blocks."""
    blocks = whole(config, "num_hidden_layers")
    dense = min(lead(config), blocks)
    ahead, behind = whole(config, "prefix_dense_sliding_window_pattern", 1), whole(config, "sliding_window_pattern", 4)
    usual = [(k + 1) % max(ahead, 1) != 0 for k in range(dense)]
    usual += [(k + 1) % max(behind, 1) != 0 for k in range(blocks - dense)]
    return [kind == "sliding_attention" for kind in config.items_of("layer_types", str, blocks)] or usual


def cohere_problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    averaged = config.first("shared_expert_combination_strategy") in (None, "average")
    if whole(config, "num_shared_experts") and not averaged:
        return "llama.cpp takes the mean of routed and shared experts"
    if lead(config) and whole(config, "prefix_dense_sliding_window_pattern", 1) != 1:
        return "llama.cpp rotates queries and keys in every dense block"
    return only_first_dense(config)


COHERE2_MOE = replace(
    COHERE2,
    arch=NewArch.COHERE2MOE,
    classes=("Cohere2MoeForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        TensorRule(T.ATTN_NORM, "embd"),
        *(replace(rule, bias=False) for rule in ATTENTION),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        *(replace(rule, when=lambda dims: dims.shared_ff > 0) for rule in SHARED_BLOCKS),
        *NEXTN,
    ),
    keys=(
        *(key for key in COHERE2.keys if key not in (ROTARY, LAYER_NORM)),
        replace(LAYER_NORM, default=None),
        replace(SIZES[-1], default=None),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim),
        *(*QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, LEADING, gating(SOFTMAX), NEXTN_IF_ANY),
        # Scores of the chosen experts alone are normalised by softmax.
        ConfigKey(
            Keys.LLM.EXPERT_WEIGHTS_NORM,
            boolean,
            ("norm_topk_prob",),
            computed=lambda config, dims: (
                config.first("norm_topk_prob") is not False or config.first("scoring_func") != "sigmoid"
            ),
        ),
        ConfigKey(
            Keys.LLM.EXPERT_SHARED_COUNT,
            names=("num_shared_experts",),
            computed=lambda config, dims: whole(config, "num_shared_experts") or None,
        ),
        ConfigKey(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, of=lambda d: d.shared_ff or None, default=None),
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=cohere_windows),
    ),
    models="North Mini Code",
    fused=PACKED_EXPERTS,
    defaults={"layer_norm_eps": 1e-5, "num_experts_per_tok": 2, "num_experts": 8},
    aliases={"expert_selection_fn": "scoring_func"},
    sizes={
        "ff": lambda config: whole(config, "prefix_dense_intermediate_size") or whole(config, "intermediate_size"),
        "expert_ff": lambda config: whole(config, "intermediate_size"),
        "shared_ff": lambda config: whole(config, "num_shared_experts") * whole(config, "intermediate_size"),
        **DOUBLE,
    },
    kinds=with_mtp(led),
    check=cohere_problem,
    tied={},
    appended=True,
)


def hunyuan_problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    if whole(config, "moe_intermediate_size", dims.ff) != dims.ff:
        return "llama.cpp assumes experts of the length intermediate_size"
    return None if whole(config, "num_shared_expert", 1) == 1 else "llama.cpp assumes one shared expert"


HUNYUAN_MOE = Architecture(
    MODEL_ARCH.HUNYUAN_MOE,
    ("HunYuanMoEV1ForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *EXPERTS,
        *(replace(rule, on="") for rule in SHARED_BLOCKS),
    ),
    keys=(
        *(*SIZES, *STATED_HEAD_SIZE, QWEN_EXPERT_COUNTS[0], *EXPERT_LENGTH, SHARED_LENGTH),
        ConfigKey(
            Keys.LLM.EXPERT_USED_COUNT,
            names=("num_experts_per_tok",),
            computed=lambda config, dims: config.integer("num_experts_per_tok"),
        ),
        ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, computed=lambda config, dims: whole(config, "num_shared_expert", 1)),
    ),
    models="Hunyuan-A13B",
    rope=Rope(scaling=("linear", "yarn", "alpha")),
    fused=PACKED_EXPERTS,
    require=SILU,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_experts": 1, "num_experts_per_tok": 1},
    aliases={"moe_topk": "num_experts_per_tok"},
    sizes={"shared_ff": lambda config: whole(config, "intermediate_size")},
    check=hunyuan_problem,
)
HY_V3 = Architecture(
    NewArch.HY_V3,
    ("HYV3ForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        TensorRule(T.FFN_EXP_PROBS_B, "experts", on="moe", part=""),
        *SHARED_BLOCKS,
        *NEXTN,
    ),
    keys=(
        *(*SIZES, *HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, gating(SIGMOID), NORMALISED, NEXTN_IF_ANY),
        ConfigKey(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, of=lambda d: d.shared_ff),
        ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, ("router_scaling_factor",)),
    ),
    models="Hunyuan 3",
    rope=Rope(theta=11158840.0),
    fused=(
        *(named(f".mlp.{name}", T.FFN_EXP_PROBS_B, "") for name in ("expert_bias", "e_score_correction_bias")),
        named(".final_layernorm", T.NEXTN_SHARED_HEAD_NORM),
        *PACKED_EXPERTS,
    ),
    require={**SILU, "route_norm": (True,)},
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "router_scaling_factor": 2.826,
        "num_shared_experts": 1,
    },
    sizes={"shared_ff": shared("num_shared_experts"), **DOUBLE},
    kinds=with_mtp(led),
    check=lambda config, dims: only_first_dense(config),
    appended=True,
)


def afmoe_problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    period = whole(config, "global_attn_every_n_layers", 4) or 4
    same = layer_types(config, dims.blocks, period) == layer_types(Config({}, config.path), dims.blocks, 4)
    return None if same else "llama.cpp assumes full attention, without rotation, in every fourth block"


AFMOE = Architecture(
    MODEL_ARCH.AFMOE,
    ("AfmoeForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        TensorRule(T.ATTN_NORM, "embd"),
        TensorRule(T.ATTN_POST_NORM, "embd"),
        *ATTENTION,
        *HEAD_NORMS,
        TensorRule(T.ATTN_GATE, "q embd"),
        TensorRule(T.FFN_PRE_NORM, "embd"),
        TensorRule(T.FFN_POST_NORM, "embd"),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        TensorRule(T.FFN_EXP_PROBS_B, "experts", on="moe", part="bias"),
        *SHARED_BLOCKS,
    ),
    keys=(
        *(*SIZES, *HEAD_SIZE, *QWEN_EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, gating(SIGMOID), NORMALISED),
        ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("num_shared_experts",)),
        ConfigKey(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, u32, ("num_dense_layers",)),
        ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, ("route_scale",)),
        *(WINDOW, VOCAB_SIZE, ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim)),
    ),
    models="Trinity",
    fused=(named(".expert_bias", T.FFN_EXP_PROBS_B, "bias"), *PACKED_EXPERTS),
    require={**SILU, "mup_enabled": (True,), "route_norm": (True,), "score_func": ("sigmoid",)},
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 16384,
        "num_dense_layers": 1,
        "num_shared_experts": 2,
        "route_scale": 1.0,
        "sliding_window": 1024,
        "mup_enabled": False,
    },
    sizes={"shared_ff": shared("num_shared_experts")},
    kinds=dense_lead("num_dense_layers"),
    check=afmoe_problem,
)

RECORDS = (COHERE2_MOE, HUNYUAN_MOE, HY_V3, AFMOE)
