"""LFM2: most blocks have a short convolution in place of attention."""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import boolean, f32, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_LENGTH,
    FEED_FORWARD,
    HEAD_NORMS,
    NORMS,
    OPTIONAL,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    SIZES,
    VOCAB_SIZE,
    T,
    without,
)
from ggufsmith.convert.architectures.moe import (
    DENSE_BLOCKS,
    PROBS_BIAS,
    SIGMOID,
    SPARSE_BLOCKS,
    dense_lead,
    gating,
    whole,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.reorder import Squeeze


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
        *without(SIZES, Keys.Attention.HEAD_COUNT_KV, Keys.Attention.LAYERNORM_RMS_EPS),
        ConfigKey(
            Keys.Attention.HEAD_COUNT_KV,
            i32s,
            computed=lambda config, dims: [dims.kv_heads * ("full" in kind) for kind in dims.kinds],
        ),
        ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, ("norm_eps", "block_norm_eps"), 1e-5),
        VOCAB_SIZE,
        ConfigKey(Keys.ShortConv.L_CACHE, names=("conv_L_cache",), of=lambda d: d.size("cache")),
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


def both_ways(config: Config, dims: Dims) -> bool | None:
    """False for a class whose attention looks ahead; llama.cpp then centers the short convolutions too."""
    classes = config.first("architectures")
    return False if isinstance(classes, list) and classes[:1] == ["Lfm2BidirectionalModel"] else None


LFM2_EMBEDDING = replace(
    LFM2,
    classes=("Lfm2Model", "Lfm2BidirectionalModel"),
    tensors=(*LFM2.tensors, TensorRule(T.DENSE_2_OUT, "dense_2 embd", need=OPTIONAL)),
    keys=(
        *LFM2.keys,
        ConfigKey(Keys.Attention.CAUSAL, boolean, computed=both_ways),
        ConfigKey(Keys.LLM.EMBEDDING_LENGTH_OUT, u32, ("dense_2_feat_out",), None),
    ),
    models="LFM2.5-Embedding, LFM2.5-ColBERT",
    pooling=True,
    sizes={**LFM2.sizes, "dense_2": lambda config: whole(config, "dense_2_feat_out")},
)
LFM2_MOE = replace(
    LFM2,
    arch=MODEL_ARCH.LFM2MOE,
    classes=("Lfm2MoeForCausalLM",),
    tensors=(
        *(rule for rule in LFM2.tensors if rule.tensor not in {each.tensor for each in FEED_FORWARD}),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
    ),
    keys=(
        *LFM2.keys,
        *QWEN_EXPERT_COUNTS,
        *EXPERT_LENGTH,
        ConfigKey(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, u32, ("num_dense_layers",), 0),
        gating(SIGMOID),
    ),
    models="LFM2-8B-A1B",
    fused=(
        named(".feed_forward.expert_bias", T.FFN_EXP_PROBS_B, "bias"),
        named(".feed_forward.experts.w1", T.FFN_GATE_EXP),
        named(".feed_forward.experts.w2", T.FFN_DOWN_EXP),
        named(".feed_forward.experts.w3", T.FFN_UP_EXP),
        replace(PACKED_EXPERTS[0], suffix=".feed_forward.experts.gate_up_proj"),
    ),
    require={**LFM2.require, "use_expert_bias": (True,), "norm_topk_prob": (True,), "routed_scaling_factor": (1.0,)},
    kinds=lambda config, blocks: [
        f"{attention} {part}"
        for attention, part in zip(
            conv_kinds(config, blocks), dense_lead("num_dense_layers")(config, blocks), strict=True
        )
    ],
)

RECORDS = (LFM2, LFM2_EMBEDDING, LFM2_MOE)
