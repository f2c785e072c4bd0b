"""Mixtures of experts: every block sparse, or the first ones dense, or every so many-th sparse."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gguf.constants import MODEL_ARCH, ExpertGatingFuncType, Keys

from ggufsmith.container.values import boolean, f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.classic import LLAMA
from ggufsmith.convert.architectures.dense import ERNIE4_5, EXAONE4, GRANITE, LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    EXPERTS,
    FEED_FORWARD,
    HEAD_NORMS,
    HEAD_SIZE,
    NO_SCALING,
    NORMS,
    OPTIONAL,
    OUTPUT_OR_EMBEDDING,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    ROTARY,
    SILU,
    SIZES,
    STATED_HEAD_SIZE,
    VISION_TOWER,
    T,
    constant,
    expert_half,
    without,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.reorder import Chain, Turn

SIGMOID, SOFTMAX = ExpertGatingFuncType.SIGMOID.value, ExpertGatingFuncType.SOFTMAX.value
GATINGS = {"sigmoid": SIGMOID, "softmax": SOFTMAX}
BIAS = named(".e_score_correction_bias", T.FFN_EXP_PROBS_B, "bias")
PROBS_BIAS = TensorRule(T.FFN_EXP_PROBS_B, "experts", part="bias")


def gating(usual: int) -> ConfigKey:
    """How scores become weights of experts: as the config says, else as the class of transformers does."""

    def function(config: Config, dims: Dims) -> int:
        stated = config.first("scoring_func")
        return GATINGS.get(stated, usual) if isinstance(stated, str) else usual

    return ConfigKey(Keys.LLM.EXPERT_GATING_FUNC, computed=function)


def whole(config: Config, name: str, default: int = 0) -> int:
    """A number of the config that is no less than 0."""
    return max(config.integer(name, default=default) or 0, 0)


def dense_lead(name: str) -> Callable[[Config, int], list[str]]:
    """dense for as many first blocks as the config key says, moe for the others."""
    return lambda config, blocks: ["dense" if block < whole(config, name) else "moe" for block in range(blocks)]


def with_mtp(kinds: Callable[[Config, int], Sequence[str]]) -> Callable[[Config, int], list[str]]:
    """The same kinds, with mtp for the blocks behind those of the model."""
    return lambda config, blocks: [
        kind + " mtp" * (block >= whole(config, "num_hidden_layers", blocks))
        for block, kind in enumerate(kinds(config, blocks))
    ]


def lead(config: Config) -> int:
    """How many of the first blocks are dense."""
    kinds = config.items_of("mlp_layer_types", str)
    first = next((block for block, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    return first if kinds else whole(config, "first_k_dense_replace")


def led(config: Config, blocks: int) -> list[str]:
    """dense for the first blocks, moe for the others."""
    return ["dense" if block < lead(config) else "moe" for block in range(blocks)]


def only_first_dense(config: Config) -> str | None:
    """A sentence if blocks behind the first sparse one are dense."""
    later = config.items_of("mlp_layer_types", str)[lead(config) :]
    return "llama.cpp assumes that every block behind the first sparse one is sparse" if "dense" in later else None


def shared(count: str) -> Callable[[Config], int]:
    """The length of all shared experts together."""
    return lambda config: whole(config, count) * whole(config, "moe_intermediate_size")


DENSE_BLOCKS = tuple(TensorRule(rule.tensor, rule.shape, on="dense") for rule in FEED_FORWARD)
SPARSE_BLOCKS = tuple(replace(rule, on="moe", when=lambda dims: True) for rule in EXPERTS)
SHARED_BLOCKS = (
    TensorRule(T.FFN_GATE_SHEXP, "shared_ff embd", on="moe"),
    TensorRule(T.FFN_UP_SHEXP, "shared_ff embd", on="moe"),
    TensorRule(T.FFN_DOWN_SHEXP, "embd shared_ff", on="moe"),
)
ROUTED = {"n_routed_experts": "num_experts"}
LEAD = ConfigKey(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, names=("first_k_dense_replace",), default=0)
LEADING = ConfigKey(
    Keys.LLM.LEADING_DENSE_BLOCK_COUNT, names=("first_k_dense_replace",), computed=lambda config, dims: lead(config)
)
GROUPS = (
    ConfigKey(Keys.LLM.EXPERT_GROUP_COUNT, u32, ("n_group",), None),
    ConfigKey(Keys.LLM.EXPERT_GROUP_USED_COUNT, u32, ("topk_group",), None),
)
SHARED_COUNT = ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("n_shared_experts",), 0)
WEIGHTS_SCALE = ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, ("routed_scaling_factor",), 1.0)
WEIGHTS_NORM = ConfigKey(
    Keys.LLM.EXPERT_WEIGHTS_NORM,
    boolean,
    ("norm_topk_prob",),
    computed=lambda config, dims: bool(config.first("norm_topk_prob")),
)
NORMALISED = ConfigKey(Keys.LLM.EXPERT_WEIGHTS_NORM, boolean, computed=constant(True))
ROTARY_STATED = ConfigKey(
    Keys.Rope.DIMENSION_COUNT,
    names=("rotary_dim",),
    computed=lambda config, dims: config.integer("rotary_dim", default=dims.rotary),
)
# Blocks for multi-token prediction, of architectures that have them as further layers.
NEXTN = (
    TensorRule(T.NEXTN_EH_PROJ, "embd embd2", on="mtp"),
    TensorRule(T.NEXTN_ENORM, "embd", on="mtp"),
    TensorRule(T.NEXTN_HNORM, "embd", on="mtp"),
    TensorRule(T.NEXTN_EMBED_TOKENS, "vocab embd", on="mtp", need=OPTIONAL),
    TensorRule(T.NEXTN_SHARED_HEAD_HEAD, "vocab embd", on="mtp", need=OPTIONAL),
    TensorRule(T.NEXTN_SHARED_HEAD_NORM, "embd", on="mtp", need=OPTIONAL),
)
DOUBLE: Mapping[str, Callable[[Config], int]] = {"embd2": lambda config: 2 * whole(config, "hidden_size")}
NEXTN_COUNT = ConfigKey(
    Keys.LLM.NEXTN_PREDICT_LAYERS, computed=lambda config, dims: sum("mtp" in kind for kind in dims.kinds)
)
NEXTN_IF_ANY = replace(NEXTN_COUNT, computed=lambda config, dims: sum("mtp" in kind for kind in dims.kinds) or None)
BEYOND = "blocks for multi-token prediction, which llama.cpp does not run for this architecture"

GRANITE_MOE = replace(
    GRANITE,
    arch=MODEL_ARCH.GRANITE_MOE,
    classes=("GraniteMoeForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *LLAMA_ATTENTION, *EXPERTS),
    keys=(*GRANITE.keys, *EXPERT_COUNTS),
    models="Granite 3 (mixture of experts)",
    fused=(
        replace(PACKED_EXPERTS[0], suffix=".block_sparse_moe.input_linear"),
        # What transformers 5 calls them in memory.
        replace(PACKED_EXPERTS[0], suffix=".block_sparse_moe.experts.gate_up_proj"),
        named(".block_sparse_moe.experts.down_proj", T.FFN_DOWN_EXP),
        named(".block_sparse_moe.router", T.FFN_GATE_INP),
    ),
    defaults={"max_position_embeddings": 2048, "num_local_experts": 8, "num_experts_per_tok": 2},
)
OLMOE = Architecture(
    MODEL_ARCH.OLMOE,
    ("OlmoeForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        TensorRule(T.ATTN_Q_NORM, "q"),
        TensorRule(T.ATTN_K_NORM, "kv"),
        *EXPERTS,
    ),
    keys=(*SIZES[:-1], ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, computed=constant(1e-5)), *QWEN_EXPERT_COUNTS),
    models="OLMoE",
    fused=PACKED_EXPERTS,
    require={**SILU, "norm_topk_prob": (False,), "clip_qkv": (), "rms_norm_eps": (1e-5,)},
    defaults={"max_position_embeddings": 4096, "num_experts_per_tok": 8},
    check=lambda config, dims: (
        None if dims.heads == dims.kv_heads else "llama.cpp assumes as many key-value heads as heads"
    ),
)
MINIMAX_M2 = Architecture(
    MODEL_ARCH.MINIMAXM2,
    ("MiniMaxM2ForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *ATTENTION,
        TensorRule(T.ATTN_Q_NORM, "q"),
        TensorRule(T.ATTN_K_NORM, "kv"),
        *EXPERTS,
        PROBS_BIAS,
    ),
    keys=(*SIZES, *HEAD_SIZE, *EXPERT_COUNTS, *EXPERT_LENGTH, gating(SIGMOID), ROTARY_STATED),
    models="MiniMax-M2",
    rope=Rope(theta=5e6),
    fused=(BIAS, *PACKED_EXPERTS),
    require={**SILU, "scoring_func": ("sigmoid",)},
    defaults={"max_position_embeddings": 196608, "num_experts_per_tok": 8},
)
GLM4_MOE = Architecture(
    MODEL_ARCH.GLM4_MOE,
    ("Glm4MoeForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        TensorRule(T.ATTN_NORM, "embd"),
        TensorRule(T.ATTN_POST_NORM, "embd"),
        *ATTENTION,
        *(replace(rule, need=OPTIONAL) for rule in HEAD_NORMS),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *SHARED_BLOCKS,
        *NEXTN,
    ),
    keys=(
        *(*SIZES, *HEAD_SIZE, *EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, SHARED_COUNT, LEAD),
        *(gating(SIGMOID), WEIGHTS_SCALE, WEIGHTS_NORM, ROTARY),
        NEXTN_COUNT,
    ),
    models="GLM-4.5, GLM-4.6, GLM-4.7",
    rope=Rope(scaling=("linear", "yarn"), partial=0.5),
    fused=(BIAS, *PACKED_EXPERTS),
    require=SILU,
    defaults={"max_position_embeddings": 131072, "norm_topk_prob": True, "num_experts_per_tok": 8},
    aliases=ROUTED,
    sizes={"shared_ff": shared("n_shared_experts"), **DOUBLE},
    kinds=with_mtp(dense_lead("first_k_dense_replace")),
    appended=True,
)
ERNIE4_5_MOE = replace(
    ERNIE4_5,
    arch=MODEL_ARCH.ERNIE4_5_MOE,
    classes=("Ernie4_5_MoeForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        TensorRule(T.FFN_EXP_PROBS_B, "1 experts", on="moe", part="bias"),
        *SHARED_BLOCKS,
    ),
    keys=(
        *SIZES,
        *STATED_HEAD_SIZE,
        *EXPERT_COUNTS,
        *EXPERT_LENGTH,
        ConfigKey(Keys.LLM.INTERLEAVE_MOE_LAYER_STEP, u32, ("moe_layer_interval",), 1),
        ConfigKey(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, u32, ("moe_layer_start_index",), 0),
        ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("moe_num_shared_experts",), 0),
        ConfigKey(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, of=lambda d: d.shared_ff or None, default=None),
    ),
    models="ERNIE 4.5 (mixture of experts, text)",
    fused=(BIAS, *PACKED_EXPERTS),
    require={**SILU, "use_bias": (False,), "moe_layer_interval": (1,)},
    drop={
        **ERNIE4_5.drop,
        **dict.fromkeys(("mtp_block.", "mtp_emb_norm.", "mtp_hidden_norm.", "mtp_linear_proj."), BEYOND),
    },
    aliases={"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"},
    sizes={"shared_ff": shared("moe_num_shared_experts")},
    kinds=dense_lead("moe_layer_start_index"),
)
DOTS1 = Architecture(
    MODEL_ARCH.DOTS1,
    ("Dots1ForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe", need=OPTIONAL),
        *SHARED_BLOCKS,
    ),
    keys=(
        *(*SIZES, *STATED_HEAD_SIZE, *EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, SHARED_COUNT, LEAD),
        *(gating(SIGMOID), WEIGHTS_SCALE, WEIGHTS_NORM),
    ),
    models="dots.llm1",
    fused=(BIAS, *PACKED_EXPERTS),
    require=SILU,
    defaults={"max_position_embeddings": 2048, "norm_topk_prob": False},
    aliases=ROUTED,
    sizes={"shared_ff": shared("n_shared_experts")},
    kinds=dense_lead("first_k_dense_replace"),
    check=OLMOE.check,
)


SOLAR_OPEN = replace(
    GLM4_MOE,
    classes=("SolarOpenForCausalLM",),
    keys=without(GLM4_MOE.keys, Keys.LLM.NEXTN_PREDICT_LAYERS),
    models="Solar Open",
    rope=replace(GLM4_MOE.rope, partial=1.0, theta=1e6),
    defaults={**GLM4_MOE.defaults, "first_k_dense_replace": 0},
)
EXAONE_MOE = Architecture(
    MODEL_ARCH.EXAONE_MOE,
    ("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *SHARED_BLOCKS,
    ),
    keys=(
        *(*EXAONE4.keys, *QWEN_EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, LEAD, gating(SIGMOID)),
        *(WEIGHTS_SCALE, WEIGHTS_NORM, NO_SCALING),
        ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("num_shared_experts",), 0),
        ConfigKey(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, of=lambda d: d.shared_ff),
        ConfigKey(Keys.LLM.NEXTN_PREDICT_LAYERS, computed=constant(0)),
    ),
    models="K-EXAONE",
    rope=Rope(theta=1e6, scaling=()),
    fused=(BIAS, *PACKED_EXPERTS),
    require=SILU,
    defaults={
        "rms_norm_eps": 1e-5,
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 2048,
    },
    drop={"mtp.": BEYOND},
    aliases={"first_last_k_dense_replace": "first_k_dense_replace"},
    sizes={"shared_ff": shared("num_shared_experts")},
    kinds=dense_lead("first_k_dense_replace"),
)


def every_step(config: Config, blocks: int) -> list[str]:
    """moe for every so many-th block of Llama 4, dense for the others."""
    step = whole(config, "interleave_moe_layer_step", 1) or 1
    return ["moe" if (block + 1) % step == 0 else "dense" for block in range(blocks)]


def turned_half(k: int) -> Callable[[Dims], Op]:
    """The op that cuts gate (0) or up (1) out of packed experts that are stored with their columns as rows."""
    return lambda dims: Chain(Turn(), expert_half(k)(dims))


LLAMA4 = replace(
    LLAMA,
    arch=MODEL_ARCH.LLAMA4,
    classes=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *DENSE_BLOCKS, *SPARSE_BLOCKS, *SHARED_BLOCKS),
    keys=(
        *(*LLAMA.keys, *EXPERT_LENGTH),
        ConfigKey(Keys.LLM.INTERLEAVE_MOE_LAYER_STEP, u32, ("interleave_moe_layer_step",), 1),
    ),
    models="Llama 4 (text)",
    rope=replace(LLAMA.rope, theta=500000.0),
    fused=(
        Fused(
            ".experts.gate_up_proj",
            "experts embd expert_gate_up",
            ((T.FFN_GATE_EXP, turned_half(0)), (T.FFN_UP_EXP, turned_half(1))),
        ),
        Fused(".experts.down_proj", "experts expert_ff embd", ((T.FFN_DOWN_EXP, lambda dims: Turn()),)),
    ),
    require={
        **LLAMA.require,
        "attention_chunk_size": (8192,),
        "floor_scale": (8192,),
        "attn_scale": (0.1,),
        "no_rope_layer_interval": (4,),
    },
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    drop={**LLAMA.drop, **VISION_TOWER},
    sizes={
        "ff": lambda config: whole(config, "intermediate_size_mlp"),
        "expert_ff": lambda config: whole(config, "intermediate_size"),
        "shared_ff": lambda config: whole(config, "intermediate_size"),
    },
    kinds=every_step,
)

RECORDS = (GRANITE_MOE, OLMOE, MINIMAX_M2, GLM4_MOE, ERNIE4_5_MOE, DOTS1, SOLAR_OPEN, EXAONE_MOE, LLAMA4)
