"""The mixtures of experts of inclusionAI, called Bailing in configs: Ling and Ring of three generations, GroveMoE.

Sarvam's models are built as the second generation. Source: llama.cpp's src/models/bailingmoe*.cpp, grovemoe.cpp and
their converters; transformers' models/bailing_hybrid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import boolean, f32, f32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.classic import QWEN3_MOE
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_LENGTH,
    EXPERTS,
    HEAD_NORMS,
    NORMS,
    OPTIONAL,
    OUTPUT_OR_EMBEDDING,
    QWEN_EXPERT_COUNTS,
    ROTARY,
    SILU,
    SIZES,
    STATED_HEAD_SIZE,
    VOCAB_SIZE,
    T,
    constant,
    without,
)
from ggufsmith.convert.architectures.kimi_linear import CONVOLUTIONS, KIMI_LINEAR, LATENT, framed
from ggufsmith.convert.architectures.latent import DEEPSEEK2
from ggufsmith.convert.architectures.moe import (
    DENSE_BLOCKS,
    DOUBLE,
    GROUPS,
    LEAD,
    NEXTN,
    NEXTN_COUNT,
    NEXTN_IF_ANY,
    PROBS_BIAS,
    SHARED_BLOCKS,
    SIGMOID,
    SPARSE_BLOCKS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    dense_lead,
    gating,
    led,
    only_first_dense,
    shared,
    whole,
    with_mtp,
)
from ggufsmith.convert.config import Config, as_number
from ggufsmith.convert.gguf_names import NewArch, NewKeys
from ggufsmith.convert.ops import Array, Op, Part, Read, RopePermute, Shape
from ggufsmith.convert.reorder import Chain

QKV = (T.ATTN_Q, T.ATTN_K, T.ATTN_V)
SHARED_COUNT = ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("num_shared_experts",), 0)
NAMES = {"score_function": "scoring_func", "moe_router_enable_expert_bias": "use_expert_bias"}
PLAIN = {**SILU, "use_bias": (False,), "use_qkv_bias": (False,), "norm_head": (False,), "norm_softmax": (False,)}
# Of training, or what tensors show.
SEEN = (
    *("use_expert_bias", "use_rmsnorm", "router_dtype", "output_dropout", "mtp_loss_scaling_factor", "use_qk_norm"),
    *("router_type", "multi_gate", "moe_router_topk_scaling_factor"),
)


@dataclass(frozen=True)
class Centred(Op):
    """A vector less its mean, in float32."""

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        whole = read(0, 0, sources[0][0])
        found: Array = whole[start:stop] - whole.mean(dtype=np.float32)
        return found


@dataclass(frozen=True)
class Decays(Op):
    """exp(x) of a vector as a column: (n,) becomes (n, 1). Computed in float64 and rounded to float32."""

    @property
    def computes(self) -> bool:
        return True

    def shape(self, *sources: Shape) -> Shape:
        return (*sources[0], 1)

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        with np.errstate(over="ignore"):
            found: Array = np.exp(read(0, start, stop).astype(np.float64)).astype(np.float32)
        return found


def cut(part: int) -> Callable[[Dims], Op]:
    """The op that takes queries (0), keys (1) or values (2) out of all three, for llama.cpp's graph of Llama."""

    def op(dims: Dims) -> Op:
        begin = (0, dims.q, dims.q + dims.kv)[part]
        own = Part(begin, begin + (dims.kv if part else dims.q))
        return own if part == 2 else Chain(own, RopePermute(dims.kv_heads if part else dims.heads))

    return op


def centred(dims: Dims) -> Op:
    """The op of Sarvam's biases of experts."""
    return Centred()


def seen(config: Config, dims: Dims) -> str | None:
    """Nothing that llama.cpp's graph of the first generation does otherwise; tensors show what these keys say."""
    config.first(*SEEN)
    return None


def same_width(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph of the second generation does otherwise than the config says."""
    config.first(*SEEN)
    if dims.q != dims.embd:
        return "llama.cpp assumes that all heads together are as wide as the embedding"
    if whole(config, "num_shared_experts") > 1:
        return "llama.cpp takes the length of all shared experts for that of each"
    return None


def shared_length(config: Config) -> int:
    """The length of the shared experts, which has a key of its own."""
    return whole(config, "moe_shared_expert_intermediate_size") or shared("num_shared_experts")(config)


BAILINGMOE = Architecture(
    MODEL_ARCH.BAILINGMOE,
    ("BailingMoeForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *(TensorRule(tensor, f"{rows} embd") for tensor, rows in zip(QKV, ("q", "kv", "kv"), strict=True)),
        TensorRule(T.ATTN_OUT, "embd q"),
        *EXPERTS,
        *(replace(rule, on="") for rule in SHARED_BLOCKS),
    ),
    keys=(
        *(*SIZES, *STATED_HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, SHARED_COUNT, LEAD, WEIGHTS_NORM),
        ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, computed=constant(1.0)),
        *(ROTARY, VOCAB_SIZE),
    ),
    models="Ling (lite, plus), Ring-lite",
    fused=(Fused(".attention.query_key_value", "qkv embd", tuple((tensor, cut(k)) for k, tensor in enumerate(QKV))),),
    require={**PLAIN, "first_k_dense_replace": (0,)},
    defaults={"max_position_embeddings": 16384, "norm_topk_prob": True},
    aliases=NAMES,
    sizes={"shared_ff": shared("num_shared_experts")},
    check=seen,
    head_rows=0,
)
BAILINGMOE2 = Architecture(
    MODEL_ARCH.BAILINGMOE2,
    ("BailingMoeV2ForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        TensorRule(T.ATTN_QKV, "qkv embd"),
        TensorRule(T.ATTN_OUT, "embd q"),
        *HEAD_NORMS,
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe", need=OPTIONAL),
        *SHARED_BLOCKS,
        *NEXTN,
        TensorRule(T.LAYER_OUT_NORM, "embd", on="mtp"),
    ),
    keys=(
        *(*SIZES, *STATED_HEAD_SIZE, *QWEN_EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, SHARED_COUNT, LEAD),
        ConfigKey(
            Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH,
            names=("moe_shared_expert_intermediate_size",),
            of=lambda d: d.shared_ff,
        ),
        *(gating(SIGMOID), WEIGHTS_SCALE, WEIGHTS_NORM, ROTARY, VOCAB_SIZE, NEXTN_COUNT),
    ),
    models="Ling 2.0, Ring 2.0",
    rope=Rope(theta=600000.0, partial=0.5),
    fused=(named(".gate.expert_bias", T.FFN_EXP_PROBS_B, "bias"),),
    require=PLAIN,
    defaults={
        "max_position_embeddings": 32768,
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
        "num_shared_experts": 1,
        "routed_scaling_factor": 2.5,
    },
    aliases=NAMES,
    sizes={"shared_ff": shared_length, **DOUBLE},
    kinds=with_mtp(dense_lead("first_k_dense_replace")),
    check=same_width,
    head_rows=0,
    appended=True,
)
SARVAM_MOE = replace(
    BAILINGMOE2,
    classes=("SarvamMoEForCausalLM",),
    tensors=tuple(
        replace(rule, op=centred) if rule.tensor is T.FFN_EXP_PROBS_B else rule for rule in BAILINGMOE2.tensors
    ),
    models="Sarvam",
    rope=Rope(theta=8e6, partial=1.0),
)


def attends(config: Config, blocks: int) -> list[bool]:
    """Which blocks have latent attention: every so many-th, those behind the last whole group, and appended ones."""
    given = config.items_of("layer_types", str)
    own, group = whole(config, "num_hidden_layers"), max(whole(config, "layer_group_size"), 1)
    full = [kind == "full_attention" for kind in given] or [
        (block + 1) % group == 0 or block >= own // group * group for block in range(own)
    ]
    return [*full, *[True] * (blocks - own)]


def hybrid_kinds(config: Config, blocks: int) -> Sequence[str]:
    """full or linear; dense or moe."""
    words = zip(attends(config, blocks), led(config, blocks), strict=True)
    return [f"{'full' if full else 'linear'} {feeding}" for full, feeding in words]


def delta(config: Config) -> dict[str, Any]:
    """The sizes of delta attention, which the published config has among those of the model."""
    head = config.first("linear_head_dim", "head_dim")
    return {
        "head_dim": head,
        "linear_head_dim": head,
        "linear_num_heads": config.first("num_attention_heads"),
        "linear_conv_kernel_dim": config.first("short_conv_kernel_size", "linear_conv_kernel_dim"),
    }


def limits(name: str) -> Callable[[Config, Dims], list[float] | None]:
    """What numbers within experts may reach, for each block, 0 for anything; None if the config does not say it."""

    def listed(config: Config, dims: Dims) -> list[float] | None:
        found = config.first(name)
        if not isinstance(found, list):
            return None
        values = [0.0 if each is None else as_number(each, name, config.path) for each in found[: dims.blocks]]
        return values + [0.0] * (dims.blocks - len(values))

    return listed


def hybrid_problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph of the third generation does otherwise than the config says."""
    config.first(*SEEN)
    return only_first_dense(config)


BAILINGMOE3 = replace(
    KIMI_LINEAR,
    arch=NewArch.BAILINGMOE3,
    classes=("BailingHybridForCausalLM", "BailingMoeV3ForCausalLM"),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *LATENT,
        TensorRule(T.ATTN_GATE, "heads embd", on="full"),
        *(TensorRule(tensor, "inner embd", on="linear") for tensor in QKV),
        *(TensorRule(tensor, "inner 1 kernel", framed, on="linear") for tensor in CONVOLUTIONS),
        TensorRule(T.SSM_F_A, "inner embd", on="linear"),
        TensorRule(T.SSM_BETA, "heads embd", on="linear"),
        TensorRule(T.SSM_A, "heads", lambda dims: Decays(), on="linear", part=""),
        TensorRule(T.SSM_DT, "inner", on="linear", part="bias"),
        TensorRule(T.SSM_G_A, "inner embd", on="linear", source=T.ATTN_GATE),
        TensorRule(T.SSM_NORM, "head", on="linear"),
        TensorRule(T.ATTN_OUT, "embd inner", on="linear"),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *SHARED_BLOCKS,
        *NEXTN,
        TensorRule(T.LAYER_OUT_NORM, "embd", on="mtp"),
    ),
    keys=(
        *(
            key
            for key in without(KIMI_LINEAR.keys, GROUPS[1].name, Keys.Attention.VALUE_LENGTH)
            if key.name != Keys.LLM.EXPERT_GATING_FUNC
        ),
        *(*GROUPS, gating(SIGMOID), WEIGHTS_NORM, NEXTN_IF_ANY),
        ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.size("head")),
        ConfigKey(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, of=lambda d: d.shared_ff),
        ConfigKey(NewKeys.KDA_SAFE_GATE, boolean, ("kda_safe_gate",), computed=constant(True)),
        ConfigKey(NewKeys.KDA_GATE_LOWER_BOUND, f32, computed=lambda config, dims: config.number("kda_lower_bound")),
        ConfigKey(Keys.LLM.SWIGLU_CLAMP_EXP, f32s, computed=limits("expert_swiglu_limit_list")),
        ConfigKey(Keys.LLM.SWIGLU_CLAMP_SHEXP, f32s, computed=limits("share_expert_swiglu_limit_list")),
    ),
    models="Ling 3.0",
    rope=Rope(theta=6e6, scaling=("yarn",)),
    fused=(
        named(".gate.expert_bias", T.FFN_EXP_PROBS_B, "bias"),
        named(".self_attn.dt_bias", T.SSM_DT, "bias"),
        named(".self_attn.A_log", T.SSM_A, ""),
        named(".self_attn.f_proj", T.SSM_F_A),
        named(".self_attn.g_proj", T.ATTN_GATE),
        DEEPSEEK2.fused[1],
    ),
    spellings={r"\.attention\.dense\.": ".self_attn.o_proj.", r"\.attention\.": ".self_attn."},
    require={
        **PLAIN,
        "attention_bias": (False,),
        "kda_safe_gate": (True,),
        "no_kda_lora": (True,),
        "gated_attention_proj_granularity_type": ("head_wise",),
        "scoring_func": ("sigmoid",),
    },
    defaults={
        "max_position_embeddings": 262144,
        "norm_topk_prob": True,
        "first_k_dense_replace": 2,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "layer_group_size": 6,
        "kda_lower_bound": -5.0,
        "short_conv_kernel_size": 4,
        "routed_scaling_factor": 2.5,
    },
    aliases={**KIMI_LINEAR.aliases, **NAMES},
    derived=delta,
    sizes={
        **KIMI_LINEAR.sizes,
        **DOUBLE,
        "shared_ff": lambda config: (
            whole(config, "moe_shared_expert_intermediate_size") or shared("n_shared_experts")(config)
        ),
    },
    kinds=with_mtp(hybrid_kinds),
    check=hybrid_problem,
    appended=True,
)
GROVEMOE = replace(
    QWEN3_MOE,
    arch=MODEL_ARCH.GROVEMOE,
    classes=("GroveMoeForCausalLM",),
    tensors=(
        *QWEN3_MOE.tensors,
        TensorRule(T.FFN_GATE_CHEXP, "chunks chunk_ff embd", stacked=True),
        TensorRule(T.FFN_UP_CHEXP, "chunks chunk_ff embd", stacked=True),
        TensorRule(T.FFN_DOWN_CHEXP, "chunks embd chunk_ff", stacked=True),
    ),
    keys=(
        *QWEN3_MOE.keys,
        ConfigKey(Keys.LLM.EXPERT_CHUNK_FEED_FORWARD_LENGTH, of=lambda d: d.size("chunk_ff")),
        ConfigKey(Keys.LLM.EXPERTS_PER_GROUP, computed=constant(2)),
        ConfigKey(Keys.LLM.EXPERT_GROUP_SCALE, f32, computed=constant(0.05)),
    ),
    models="GroveMoE",
    fused=(
        *(
            named(f".chunk_experts.experts.{name}", tensor)
            for name, tensor in (
                ("gate_proj", T.FFN_GATE_CHEXP),
                ("up_proj", T.FFN_UP_CHEXP),
                ("down_proj", T.FFN_DOWN_CHEXP),
            )
        ),
        *QWEN3_MOE.fused,
    ),
    spellings={r"\.chunk_experts\.": ".chunk_experts.experts."},
    drop={**QWEN3_MOE.drop, ".expert_bias": "biases of experts, which the model does not use"},
    sizes={
        **QWEN3_MOE.sizes,
        "chunks": lambda config: whole(config, "num_experts") // 2,
        "chunk_ff": lambda config: whole(config, "head_dim") or 128,
    },
)


def layout(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph of SmallThinker does otherwise than the config says."""
    config.first("moe_secondary_expert_scaling_factor", "moe_num_secondary_experts")
    windows, rotating = (config.items_of(name, int, dims.blocks) for name in ("sliding_window_layout", "rope_layout"))
    if any(windows):
        if windows != [int(block % 4 != 0) for block in range(dims.blocks)]:
            return "llama.cpp assumes a sliding window in all but every fourth block, from the first on"
        if config.integer("sliding_window_size") != 4096:
            return "llama.cpp assumes a sliding window of 4096 tokens"
    if rotating and rotating != (windows if any(windows) else [1] * dims.blocks):
        return "llama.cpp assumes that the blocks with a sliding window rotate, or all where none has one"
    return None


def sliding(config: Config, dims: Dims) -> int | None:
    """The sliding window, if a block has one."""
    return config.integer("sliding_window_size") if any(config.items_of("sliding_window_layout", int)) else None


SMALLTHINKER = Architecture(
    MODEL_ARCH.SMALLTHINKER,
    ("SmallThinkerForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *(replace(rule, bias=False) for rule in QWEN3_MOE.tensors if rule.tensor in (*QKV, T.ATTN_OUT)),
        *EXPERTS,
    ),
    keys=(
        *(*SIZES, *STATED_HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH),
        ConfigKey(
            Keys.LLM.EXPERT_GATING_FUNC,
            computed=lambda config, dims: 1 if config.first("moe_primary_router_apply_softmax") else SIGMOID,
        ),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, names=("sliding_window_size",), computed=sliding),
    ),
    models="SmallThinker",
    rope=Rope(theta=1e6),
    require={"moe_enable_early_router": (True,), "moe_enable_secondary_experts": (False,), "norm_topk_prob": (True,)},
    defaults={"max_position_embeddings": 16384},
    aliases={
        "moe_num_primary_experts": "num_experts",
        "moe_num_active_primary_experts": "num_experts_per_tok",
        "moe_ffn_hidden_size": "moe_intermediate_size",
    },
    sizes={"ff": lambda config: whole(config, "moe_intermediate_size")},
    check=layout,
    head_rows=0,
)

RECORDS: tuple[Architecture, ...] = (BAILINGMOE, BAILINGMOE2, SARVAM_MOE, BAILINGMOE3, GROVEMOE, SMALLTHINKER)
