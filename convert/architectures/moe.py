"""Mixtures of experts, all blocks sparse or the first ones dense; DeepSeek's latent attention; LFM2's convolutions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gguf.constants import MODEL_ARCH, ExpertGatingFuncType, Keys

from ggufsmith.container.values import boolean, f32, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.dense import ERNIE4_5, GRANITE, LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    EXPERTS,
    FEED_FORWARD,
    HEAD_NORMS,
    HEAD_SIZE,
    INVERSE_FREQUENCIES,
    NORMS,
    OPTIONAL,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    ROTARY,
    SILU,
    SIZES,
    STATED_HEAD_SIZE,
    VOCAB_SIZE,
    T,
    constant,
    rope_field,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op, Part, Shape
from ggufsmith.convert.reorder import Chain, Squeeze, Turn

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
GROUPS = (
    ConfigKey(Keys.LLM.EXPERT_GROUP_COUNT, u32, ("n_group",), None),
    ConfigKey(Keys.LLM.EXPERT_GROUP_USED_COUNT, u32, ("topk_group",), None),
)
SHARED_COUNT = ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("n_shared_experts",), 0)
WEIGHTS_SCALE = ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, ("routed_scaling_factor",), 1.0)
WEIGHTS_NORM = ConfigKey(
    Keys.LLM.EXPERT_WEIGHTS_NORM, boolean, computed=lambda config, dims: bool(config.first("norm_topk_prob"))
)
BEYOND = "blocks for multi-token prediction, which llama.cpp does not run for this architecture"

GRANITE_MOE = replace(
    GRANITE,
    arch=MODEL_ARCH.GRANITE_MOE,
    classes=("GraniteMoeForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *LLAMA_ATTENTION, *EXPERTS),
    keys=(*GRANITE.keys, *EXPERT_COUNTS),
    models="Granite 3 (mixture of experts)",
    fused=(replace(PACKED_EXPERTS[0], suffix=".block_sparse_moe.input_linear"),),
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
        TensorRule(T.OUTPUT, "vocab embd", fallback=T.TOKEN_EMBD),
        *NORMS,
        *ATTENTION,
        TensorRule(T.ATTN_Q_NORM, "q"),
        TensorRule(T.ATTN_K_NORM, "kv"),
        *EXPERTS,
        PROBS_BIAS,
    ),
    keys=(*SIZES, *HEAD_SIZE, *EXPERT_COUNTS, *EXPERT_LENGTH, gating(SIGMOID), ROTARY),
    models="MiniMax-M2",
    rope=Rope(theta=5e6),
    fused=(BIAS,),
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
        TensorRule(T.NEXTN_EH_PROJ, "embd embd2", on="mtp"),
        TensorRule(T.NEXTN_ENORM, "embd", on="mtp"),
        TensorRule(T.NEXTN_HNORM, "embd", on="mtp"),
        TensorRule(T.NEXTN_EMBED_TOKENS, "vocab embd", on="mtp", need=OPTIONAL),
        TensorRule(T.NEXTN_SHARED_HEAD_HEAD, "vocab embd", on="mtp", need=OPTIONAL),
        TensorRule(T.NEXTN_SHARED_HEAD_NORM, "embd", on="mtp", need=OPTIONAL),
    ),
    keys=(
        *(*SIZES, *HEAD_SIZE, *EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, SHARED_COUNT, LEAD),
        *(gating(SIGMOID), WEIGHTS_SCALE, WEIGHTS_NORM, ROTARY),
        ConfigKey(
            Keys.LLM.NEXTN_PREDICT_LAYERS, computed=lambda config, dims: sum("mtp" in kind for kind in dims.kinds)
        ),
    ),
    models="GLM-4.5, GLM-4.6, GLM-4.7",
    rope=Rope(scaling=("linear", "yarn"), partial=0.5),
    fused=(BIAS, *PACKED_EXPERTS),
    require=SILU,
    defaults={"max_position_embeddings": 131072, "norm_topk_prob": True, "num_experts_per_tok": 8},
    aliases=ROUTED,
    sizes={"shared_ff": shared("n_shared_experts"), "embd2": lambda config: 2 * whole(config, "hidden_size")},
    kinds=lambda config, blocks: [
        kind + " mtp" * (block >= whole(config, "num_hidden_layers", blocks))
        for block, kind in enumerate(dense_lead("first_k_dense_replace")(config, blocks))
    ],
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
        TensorRule(T.OUTPUT, "vocab embd", fallback=T.TOKEN_EMBD),
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


@dataclass(frozen=True)
class Heads(Op):
    """Rows seen as those of so many heads: (heads * n, width) becomes (heads, n, width). No number moves."""

    heads: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) != 2 or source[0] % max(self.heads, 1):
            raise ValueError(f"{list(source)} cannot be divided into {self.heads} heads")
        return (self.heads, source[0] // self.heads, source[1])


def per_head(config: Config, *names: str) -> int:
    """Rows of all heads that have so many each."""
    return whole(config, "num_attention_heads") * sum(whole(config, name) for name in names)


def key_part(dims: Dims) -> Op:
    """The op that takes what makes keys out of kv_b_proj; llama.cpp multiplies queries with it."""
    return Chain(Chain(Heads(dims.heads), Part(0, dims.size("nope"))), Turn())


def value_part(dims: Dims) -> Op:
    """The op that takes what makes values out of kv_b_proj."""
    return Chain(Heads(dims.heads), Part(dims.size("nope"), dims.size("nope") + dims.size("v_dim")))


def log_multiplier(config: Config, dims: Dims) -> float | None:
    """A tenth of mscale_all_dim, as llama.cpp expects it of this architecture alone."""
    found = rope_field("mscale_all_dim")(config, dims)
    return None if found is None else 0.1 * found


DEEPSEEK2 = Architecture(
    MODEL_ARCH.DEEPSEEK2,
    ("DeepseekV2ForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        TensorRule(T.ATTN_Q, "heads_key embd", need=OPTIONAL),
        TensorRule(T.ATTN_Q_A, "q_rank embd", need=OPTIONAL),
        TensorRule(T.ATTN_Q_A_NORM, "q_rank", need=OPTIONAL),
        TensorRule(T.ATTN_Q_B, "heads_key q_rank", need=OPTIONAL),
        TensorRule(T.ATTN_KV_A_MQA, "kv_rope embd"),
        TensorRule(T.ATTN_KV_A_NORM, "kv_rank"),
        TensorRule(T.ATTN_K_B, "heads nope kv_rank"),
        TensorRule(T.ATTN_V_B, "heads v_dim kv_rank"),
        TensorRule(T.ATTN_OUT, "embd heads_v"),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe", need=OPTIONAL),
        *SHARED_BLOCKS,
    ),
    keys=(
        *(replace(key, of=lambda d: 1) if key.name == Keys.Attention.HEAD_COUNT_KV else key for key in SIZES),
        *(VOCAB_SIZE, *EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, SHARED_COUNT, LEAD, gating(SOFTMAX)),
        WEIGHTS_SCALE,
        ConfigKey(Keys.LLM.EXPERT_WEIGHTS_NORM, boolean, computed=lambda c, d: bool(c.first("norm_topk_prob")) or None),
        ConfigKey(Keys.Attention.Q_LORA_RANK, u32, ("q_lora_rank",), None),
        ConfigKey(Keys.Attention.KV_LORA_RANK, of=lambda d: d.size("kv_rank")),
        ConfigKey(Keys.Attention.KEY_LENGTH, of=lambda d: d.size("kv_rope")),
        ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.size("kv_rank")),
        ConfigKey(Keys.Attention.KEY_LENGTH_MLA, of=lambda d: d.size("nope") + d.size("rope_dim")),
        ConfigKey(Keys.Attention.VALUE_LENGTH_MLA, of=lambda d: d.size("v_dim")),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.size("rope_dim")),
        ConfigKey(Keys.Rope.SCALING_YARN_LOG_MUL, f32, computed=log_multiplier),
    ),
    models="DeepSeek-V2, DeepSeek-Coder-V2",
    rope=Rope(scaling=("yarn",)),
    fused=(
        BIAS,
        Fused(".self_attn.kv_b_proj", "heads_kv kv_rank", ((T.ATTN_K_B, key_part), (T.ATTN_V_B, value_part))),
        *PACKED_EXPERTS,
    ),
    require={**SILU, "attention_bias": (False,), "rope_interleave": (True,)},
    defaults={"max_position_embeddings": 2048, "first_k_dense_replace": 0},
    drop=INVERSE_FREQUENCIES,
    aliases=ROUTED,
    sizes={
        "shared_ff": shared("n_shared_experts"),
        "nope": lambda config: whole(config, "qk_nope_head_dim"),
        "rope_dim": lambda config: whole(config, "qk_rope_head_dim"),
        "v_dim": lambda config: whole(config, "v_head_dim"),
        "q_rank": lambda config: whole(config, "q_lora_rank"),
        "kv_rank": lambda config: whole(config, "kv_lora_rank"),
        "kv_rope": lambda config: whole(config, "kv_lora_rank") + whole(config, "qk_rope_head_dim"),
        "heads_key": lambda config: per_head(config, "qk_nope_head_dim", "qk_rope_head_dim"),
        "heads_v": lambda config: per_head(config, "v_head_dim"),
        "heads_kv": lambda config: per_head(config, "qk_nope_head_dim", "v_head_dim"),
    },
    kinds=dense_lead("first_k_dense_replace"),
    head_rows=0,
    beyond=BEYOND,
)
DEEPSEEK3 = replace(
    DEEPSEEK2,
    classes=("DeepseekV3ForCausalLM",),
    keys=tuple(gating(SIGMOID) if key.name == Keys.LLM.EXPERT_GATING_FUNC else key for key in DEEPSEEK2.keys),
    models="DeepSeek-V3, DeepSeek-R1, Kimi-K2 (text), Moonlight",
    defaults={"max_position_embeddings": 4096, "first_k_dense_replace": 3, "norm_topk_prob": True},
)


def conv_kinds(config: Config, blocks: int) -> list[str]:
    """conv or full for every block."""
    given = config.items_of("layer_types", str, blocks)
    full = config.items_of("full_attn_idxs", int)
    usual = ["full_attention" if not full or block in full else "conv" for block in range(blocks)]
    return ["full" if kind == "full_attention" else "conv" for kind in given or usual]


def lfm2_length(config: Config) -> int:
    """Of the feed-forward: two thirds of what the config says, rounded up, if it asks for that."""
    length = whole(config, "block_ff_dim") or whole(config, "intermediate_size")
    if not config.first("block_auto_adjust_ff_dim"):
        return length
    factor, step = config.number("block_ffn_dim_multiplier", default=1.0), whole(config, "block_multiple_of") or 1
    length = int((1.0 if factor is None else factor) * int(2 * length / 3))
    return step * -(-length // step)


LFM2 = Architecture(
    MODEL_ARCH.LFM2,
    ("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    tensors=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        TensorRule(T.TOKEN_EMBD_NORM, "embd"),
        *NORMS,
        *(replace(rule, bias=False, on="full") for rule in (*ATTENTION, *HEAD_NORMS)),
        TensorRule(T.SHORTCONV_CONV, "embd 1 cache", lambda dims: Squeeze(), on="conv"),
        TensorRule(T.SHORTCONV_INPROJ, "embd3 embd", on="conv"),
        TensorRule(T.SHORTCONV_OUTPROJ, "embd embd", on="conv"),
        *(replace(rule, bias=False) for rule in FEED_FORWARD),
    ),
    keys=(
        *(key for key in SIZES if key.name not in (Keys.Attention.HEAD_COUNT_KV, Keys.Attention.LAYERNORM_RMS_EPS)),
        ConfigKey(
            Keys.Attention.HEAD_COUNT_KV,
            i32s,
            computed=lambda config, dims: [dims.kv_heads * ("full" in kind) for kind in dims.kinds],
        ),
        ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, ("norm_eps", "block_norm_eps"), 1e-5),
        VOCAB_SIZE,
        ConfigKey(Keys.ShortConv.L_CACHE, of=lambda d: d.size("cache")),
    ),
    models="LFM2, LFM2.5",
    rope=Rope(theta=1e6),
    require={"conv_bias": (False,)},
    defaults={"max_position_embeddings": 128000, "num_key_value_heads": 8},
    sizes={
        "ff": lfm2_length,
        "cache": lambda config: whole(config, "conv_L_cache", 3),
        "embd3": lambda config: 3 * whole(config, "hidden_size"),
    },
    kinds=conv_kinds,
)

MOE = (GRANITE_MOE, OLMOE, MINIMAX_M2, GLM4_MOE, ERNIE4_5_MOE, DOTS1, DEEPSEEK2, DEEPSEEK3, LFM2)
