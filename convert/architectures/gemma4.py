"""Gemma 4 in its three shapes: dense, with embeddings for every layer (E2B, E4B), and with experts.

Blocks with a sliding window and those without have heads of different sizes, and different numbers of key-value heads;
the last blocks of some models take keys and values from earlier ones; without a window, values may be the keys.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import Value, booleans, f32, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    EXPERT_COUNTS,
    GELU,
    INVERSE_FREQUENCIES,
    OPTIONAL,
    SIZES,
    VISION_TOWER,
    T,
    layer_types,
    sparse,
    without,
)
from ggufsmith.convert.config import Config

PERIOD = 6  # of blocks without a window, where layer_types is silent


def own_kinds(config: Config, blocks: int) -> list[str]:
    """The kind of attention of every block."""
    return layer_types(config, blocks, PERIOD)


def full_size(config: Config, name: str, key: str, usual: int) -> int:
    """A size of the blocks without a window: under a name of its own, or in the settings of single layers."""
    found = config.integer(name)
    layers = config.mapping("per_layer_config")
    for block, kind in enumerate(own_kinds(config, config.integer("num_hidden_layers") or 0)):
        fields = layers.get(str(block))
        if found is None and kind == "full_attention" and isinstance(fields, Mapping):
            value = fields.get(key)
            found = value if isinstance(value, int) and not isinstance(value, bool) else None
    return found if found is not None and found > 0 else usual


def full_head(config: Config) -> int:
    """The head size of blocks without a window."""
    return full_size(config, "global_head_dim", "head_dim", config.integer("head_dim") or 0)


def full_kv_heads(config: Config) -> int:
    """The number of key-value heads of blocks without a window."""
    return full_size(config, "num_global_key_value_heads", "num_key_value_heads", kv_heads(config))


def kv_heads(config: Config) -> int:
    """The number of key-value heads of blocks with a window."""
    return config.integer("num_key_value_heads", default=config.integer("num_attention_heads")) or 0


def shared(config: Config) -> int:
    """How many of the last blocks take keys and values from earlier ones."""
    return max(config.integer("num_kv_shared_layers", default=0) or 0, 0)


def kinds(config: Config, blocks: int) -> list[str]:
    """window or full; kv or shared; v where values are not the keys; wide or narrow."""
    first, double = blocks - shared(config), bool(config.first("use_double_wide_mlp"))
    equal = bool(config.first("attention_k_eq_v"))
    found = []
    for block, kind in enumerate(own_kinds(config, blocks)):
        full = kind == "full_attention"
        words = ["full" if full else "window", "kv" if block < first else "shared"]
        words += ["wide" if double and block >= first else "narrow"]
        found.append(" ".join([*words, *(["v"] if not (full and equal) else [])]))
    return found


def per_layer(config: Config) -> int:
    """The length of a layer's own embedding, 0 without."""
    return max(config.integer("hidden_size_per_layer_input", default=0) or 0, 0)


def has_per_layer(dims: Dims) -> bool:
    """Whether layers have embeddings of their own."""
    return dims.size("ple") > 0


def number_or_array(value: int | list[int]) -> Value:
    """One number for all blocks, or one for each."""
    return i32s(value) if isinstance(value, list) else u32(value)


def lengths(config: Config, dims: Dims) -> int | list[int]:
    """Of the feed-forward."""
    wide = [("wide" in kind) for kind in dims.kinds]
    return [dims.ff * (1 + each) for each in wide] if config.first("use_double_wide_mlp") else dims.ff


def head_counts(config: Config, dims: Dims) -> int | list[int]:
    """Of keys and values."""
    named_apart = config.first("num_global_key_value_heads") is not None or full_kv_heads(config) != dims.kv_heads
    each = [dims.size("g_kv_heads") if "full" in kind else dims.kv_heads for kind in dims.kinds]
    return each if named_apart else dims.kv_heads


def expert_length(config: Config, dims: Dims) -> int | None:
    """Of the feed-forward of one expert."""
    return config.integer("expert_intermediate_size", "moe_intermediate_size")


def both_attentions(tensor: Any, window: str, full: str, on: str = "", **more: Any) -> tuple[TensorRule, TensorRule]:
    """A tensor whose shape is another in blocks without a window."""
    return (
        TensorRule(tensor, window, on=f"window {on}", **more),
        TensorRule(tensor, full, on=f"full {on}", **more),
    )


NORMS = (T.OUTPUT_NORM, T.ATTN_NORM, T.ATTN_POST_NORM, T.FFN_PRE_NORM, T.FFN_POST_NORM)
EXPERT_NORMS = (T.FFN_PRE_NORM_2, T.FFN_POST_NORM_1, T.FFN_POST_NORM_2)
GEMMA4 = Architecture(
    MODEL_ARCH.GEMMA4,
    ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    tensors=(
        TensorRule(T.TOKEN_EMBD, "vocab embd"),
        *(TensorRule(tensor, "embd") for tensor in NORMS),
        *both_attentions(T.ATTN_Q, "q embd", "gq embd"),
        *both_attentions(T.ATTN_K, "kv embd", "gkv embd", "kv"),
        *both_attentions(T.ATTN_V, "kv embd", "gkv embd", "kv v"),
        *both_attentions(T.ATTN_OUT, "embd q", "embd gq"),
        *both_attentions(T.ATTN_Q_NORM, "head_dim", "g_head_dim"),
        *both_attentions(T.ATTN_K_NORM, "head_dim", "g_head_dim", "kv"),
        *both_attentions(T.ATTN_K, "kv embd", "gkv embd", "shared", need=OPTIONAL),
        *both_attentions(T.ATTN_V, "kv embd", "gkv embd", "shared v", need=OPTIONAL),
        *both_attentions(T.ATTN_K_NORM, "head_dim", "g_head_dim", "shared", need=OPTIONAL),
        *(
            TensorRule(tensor, shape.replace("ff", length), on=on)
            for tensor, shape in ((T.FFN_GATE, "ff embd"), (T.FFN_UP, "ff embd"), (T.FFN_DOWN, "embd ff"))
            for on, length in (("narrow", "ff"), ("wide", "gate_up"))
        ),
        TensorRule(T.LAYER_OUT_SCALE, "1", need=OPTIONAL),
        TensorRule(T.FFN_GATE_INP, "experts embd", when=sparse),
        TensorRule(T.FFN_GATE_INP, "embd", when=sparse, part="scale"),
        TensorRule(T.FFN_GATE_UP_EXP, "experts expert_gate_up embd", when=sparse),
        TensorRule(T.FFN_DOWN_EXP, "experts embd expert_ff", when=sparse),
        TensorRule(T.FFN_DOWN_EXP, "experts", when=sparse, part="scale"),
        *(TensorRule(tensor, "embd", when=sparse) for tensor in EXPERT_NORMS),
        TensorRule(T.PER_LAYER_TOKEN_EMBD, "ple_vocab ple_all", when=has_per_layer),
        TensorRule(T.PER_LAYER_MODEL_PROJ, "ple_all embd", when=has_per_layer),
        TensorRule(T.PER_LAYER_PROJ_NORM, "ple", when=has_per_layer),
        TensorRule(T.PER_LAYER_INP_GATE, "ple embd", when=has_per_layer),
        TensorRule(T.PER_LAYER_PROJ, "embd ple", when=has_per_layer),
        TensorRule(T.PER_LAYER_POST_NORM, "embd", when=has_per_layer),
    ),
    keys=(
        *without(SIZES, Keys.LLM.FEED_FORWARD_LENGTH, Keys.Attention.HEAD_COUNT_KV),
        ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, number_or_array, computed=lengths),
        ConfigKey(Keys.Attention.HEAD_COUNT_KV, number_or_array, computed=head_counts),
        ConfigKey(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, f32, ("final_logit_softcapping",), None),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",)),
        ConfigKey(
            Keys.Attention.SLIDING_WINDOW_PATTERN,
            booleans,
            computed=lambda config, dims: ["window" in kind for kind in dims.kinds],
        ),
        ConfigKey(
            Keys.Attention.SHARED_KV_LAYERS,
            names=("num_kv_shared_layers",),
            computed=lambda config, dims: shared(config),
        ),
        ConfigKey(
            Keys.LLM.EMBD_LENGTH_PER_LAYER_INP, names=("hidden_size_per_layer_input",), of=lambda d: d.size("ple")
        ),
        ConfigKey(Keys.Attention.KEY_LENGTH, names=("global_head_dim",), of=lambda d: d.size("g_head_dim")),
        ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.size("g_head_dim")),
        ConfigKey(Keys.Attention.KEY_LENGTH_SWA, names=("head_dim",), of=lambda d: d.head_dim),
        ConfigKey(Keys.Attention.VALUE_LENGTH_SWA, of=lambda d: d.head_dim),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.size("g_head_dim")),
        ConfigKey(Keys.Rope.DIMENSION_COUNT_SWA, of=lambda d: d.head_dim),
        *EXPERT_COUNTS,
        ConfigKey(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, names=("moe_intermediate_size",), computed=expert_length),
    ),
    models="Gemma 4 (text)",
    rope=Rope(theta=1e6, local_theta=10000.0, scaling=("proportional",), partial=0.25),
    fused=(
        named(".router.scale", T.FFN_GATE_INP, "scale"),
        named(".router.per_expert_scale", T.FFN_DOWN_EXP, "scale"),
    ),
    # "vision": the patches of a picture also look ahead, which llama.cpp does; a text does not.
    require={**GELU, "use_bidirectional_attention": (False, "vision"), "attention_bias": (False,)},
    defaults={
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "head_dim": 256,
        "sliding_window": 512,
        "num_kv_shared_layers": 0,
        "rms_norm_eps": 1e-6,
    },
    tied={"lm_head.weight": T.TOKEN_EMBD},
    drop={
        **VISION_TOWER,
        "audio_tower.": "the audio encoder; this converts the text model",
        "embed_vision.": "the vision projector; this converts the text model",
        "embed_audio.": "the audio projector; this converts the text model",
        **INVERSE_FREQUENCIES,
    },
    aliases={"top_k_experts": "num_experts_per_tok"},
    sizes={
        "g_head_dim": full_head,
        "g_kv_heads": full_kv_heads,
        "gq": lambda config: (config.integer("num_attention_heads") or 0) * full_head(config),
        "gkv": lambda config: full_kv_heads(config) * full_head(config),
        "ple": per_layer,
        "ple_all": lambda config: per_layer(config) * (config.integer("num_hidden_layers") or 0),
        "ple_vocab": lambda config: config.integer("vocab_size_per_layer_input", "vocab_size") or 0,
    },
    kinds=kinds,
    head_rows=0,
)

# Its picture and its sound are patches that one matrix makes embeddings of; the text model is that of Gemma 4.
GEMMA4_UNIFIED = replace(
    GEMMA4,
    classes=("Gemma4UnifiedForConditionalGeneration",),
    models="Gemma 4 Unified (text)",
    drop={
        **GEMMA4.drop,
        "vision_embedder.": "the projector of pictures; this converts the text model",
    },
)

RECORDS = (GEMMA4, GEMMA4_UNIFIED)
