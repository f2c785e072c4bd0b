"""DFlash: draft models that guess a block of tokens at once, from hidden states of several layers of the larger model.

Fused (`fc`), these states give keys and values for every token so far; the queries are those of the last token and of
masks behind it. The embedding and the output are those of the larger model, unless the draft has its own. The second
version convolves each block along the tokens, and chooses among the best tokens by pairs.

Source: Chen et al., "DFlash: Block Diffusion for Flash Speculative Decoding" (arXiv:2602.06036); llama.cpp's
src/models/dflash.cpp, conversion/qwen.py and conversion/muse_glimmer.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.values import boolean, booleans, f32, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    FEED_FORWARD,
    HEAD_NORMS,
    HEAD_SIZE,
    INVERSE_FREQUENCIES,
    NORMS,
    OPTIONAL,
    SILU,
    SIZES,
    T,
    of_target,
    target_rope,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor
from ggufsmith.convert.ops import Copy, Op, RopePermute

LAYERS = "target_layer_ids"


def flat(config: Config) -> Mapping[str, Any]:
    """What is said of drafting, in one object; of the vocabulary, the larger model says what the draft leaves open."""
    size = config.integer("vocab_size") or of_target(config, "vocab_size")
    return {"vocab_size": size, **config.mapping("dflash_config")}


def layers(config: Config, dims: Dims) -> list[int]:
    """The layers of the larger model whose inputs are read; configs name the ones before, by their outputs."""
    return [layer + 1 for layer in config.items_of(LAYERS, int)]


def has_window(config: Config) -> bool:
    """Whether some blocks see only tokens nearby."""
    return config.first("use_sliding_window") is True or config.first("use_swa") is True


def window(config: Config, dims: Dims) -> int | None:
    """How many tokens these see."""
    return config.integer("swa_window_size", "sliding_window") if has_window(config) else None


def narrow(config: Config, dims: Dims) -> list[bool] | None:
    """Which blocks they are."""
    if window(config, dims) is None:
        return None
    kinds = config.items_of("layer_types", str, dims.blocks)
    everywhere = config.first("use_swa") is True
    return [everywhere or kind == "sliding_attention" for kind in kinds or [""] * dims.blocks]


def causal(config: Config, dims: Dims) -> bool | None:
    """Whether a token of the block sees only those before it, where the config says so or the contrary."""
    stated = config.first("is_causal", "causal")
    return None if stated is None else stated is True


def sections(config: Config, dims: Dims) -> list[int] | None:
    """Drafts for models that rotate by time, height and width rotate by time alone."""
    return [dims.head_dim // 2, 0, 0, 0] if "mrope_section" in target_rope(config) else None


def rotary(config: Config, dims: Dims) -> int | None:
    """How many numbers of a head rotate, if not all do."""
    return dims.rotary if dims.rotary != dims.head_dim else None


def softcap(config: Config, dims: Dims) -> float | None:
    """The bound of the logits; 0 stands for none."""
    return config.number("final_logit_softcapping") or None


def halves(heads: str) -> Callable[[Dims], Op]:
    """The op of rows whose pairs rotate in the checkpoint: llama.cpp rotates halves here."""
    return lambda dims: RopePermute(dims.size(heads), undo=True) if dims.size("paired") else Copy()


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp does not run."""
    found, blocks = layers(config, dims), of_target(config, "num_hidden_layers")
    width = of_target(config, "hidden_size")
    if not found or not all(0 < layer < blocks for layer in found):
        return f"{LAYERS} must name layers of the larger model that another follows, of {blocks}; it names {found}"
    if width != dims.embd:
        return (
            f"hidden_size is {dims.embd}, but that of the larger model is {width}, and llama.cpp runs only equal ones"
        )
    if config.first("use_sliding_window") is True and window(config, dims) and not any(narrow(config, dims) or ()):
        return "use_sliding_window is true, but layer_types does not say where"
    return None


def convolves(dims: Dims) -> bool:
    """Whether it is of the second version."""
    return dims.size("kernel") > 0


CONVOLUTIONS = (
    TensorRule(NewTensor.DFLASH_ATTN_CONV_BASE, "2 kernel embd", part=""),
    TensorRule(NewTensor.DFLASH_ATTN_CONV_PROJ, "kernels embd"),
    TensorRule(NewTensor.DFLASH_FFN_CONV_BASE, "2 kernel embd", part=""),
    TensorRule(NewTensor.DFLASH_FFN_CONV_PROJ, "kernels embd"),
    TensorRule(NewTensor.DFLASH_SELECTOR_PREV, "vocab rank"),
    TensorRule(NewTensor.DFLASH_SELECTOR_NEXT, "vocab rank"),
    TensorRule(NewTensor.DFLASH_SELECTOR_HIDDEN, "rank embd"),
)
DFLASH = Architecture(
    NewArch.DFLASH,
    ("DFlashDraftModel", "DFlash2DraftModel"),
    tensors=(
        TensorRule(NewTensor.FC, "embd features"),
        TensorRule(T.ENC_OUTPUT_NORM, "embd"),
        TensorRule(T.TOKEN_EMBD, "vocab embd", need=OPTIONAL),
        TensorRule(T.OUTPUT_NORM, "embd"),
        TensorRule(T.OUTPUT, "vocab embd", need=OPTIONAL),
        *NORMS,
        TensorRule(T.ATTN_Q, ATTENTION[0].shape, halves("heads")),
        TensorRule(T.ATTN_K, ATTENTION[1].shape, halves("kv_heads")),
        *(TensorRule(rule.tensor, rule.shape) for rule in ATTENTION[2:]),
        *(replace(rule, op=halves("one")) for rule in HEAD_NORMS),
        TensorRule(T.ATTN_SINKS, "heads", need=OPTIONAL),
        *(TensorRule(rule.tensor, rule.shape) for rule in FEED_FORWARD),
        *(replace(rule, when=convolves) for rule in CONVOLUTIONS),
    ),
    keys=(
        *SIZES,
        *HEAD_SIZE,
        ConfigKey(Keys.Rope.DIMENSION_COUNT, computed=rotary),
        ConfigKey(Keys.Rope.DIMENSION_SECTIONS, i32s, computed=sections),
        ConfigKey(NewKeys.ATTENTION_VALUE_SCALE, f32, ("attention_value_scale",), None),
        ConfigKey(NewKeys.BLOCK_SIZE, u32, ("block_size",), 16),
        ConfigKey(NewKeys.CONV_KERNEL_SIZE, u32, ("conv_kernel_size",), None),
        ConfigKey(NewKeys.CONV_GROUP_SIZE, u32, ("conv_group_size",), None),
        ConfigKey(NewKeys.SELECTOR_RANK, u32, ("selector_rank",), None),
        ConfigKey(NewKeys.SELECTOR_TOP_K, u32, ("selector_top_k",), None),
        ConfigKey(Keys.LLM.LOGIT_SCALE, f32, ("output_multiplier",), None),
        ConfigKey(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, f32, computed=softcap),
        ConfigKey(Keys.LLM.EMBEDDING_SCALE, f32, ("input_embedding_scale",), None),
        ConfigKey(NewKeys.TARGET_LAYERS, i32s, (LAYERS,), computed=layers),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, computed=window),
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=narrow),
        ConfigKey(Keys.Attention.CAUSAL, boolean, computed=causal),
        ConfigKey(Keys.Tokenizer.MASK_ID, u32, ("mask_token_id",), None),
    ),
    models="DFlash draft models",
    rope=Rope(),
    fused=(
        named("encoder.fc", NewTensor.FC),
        named("encoder.output_norm_enc", T.ENC_OUTPUT_NORM),
        named("attention_conv.base_kernel", NewTensor.DFLASH_ATTN_CONV_BASE, ""),
        named("attention_conv.kernel_projection", NewTensor.DFLASH_ATTN_CONV_PROJ),
        named("mlp_conv.base_kernel", NewTensor.DFLASH_FFN_CONV_BASE, ""),
        named("mlp_conv.kernel_projection", NewTensor.DFLASH_FFN_CONV_PROJ),
        named("candidate_selector.predecessor_codebook", NewTensor.DFLASH_SELECTOR_PREV),
        named("candidate_selector.successor_codebook", NewTensor.DFLASH_SELECTOR_NEXT),
        named("candidate_selector.hidden_projection", NewTensor.DFLASH_SELECTOR_HIDDEN),
        named("hidden_norm", T.ENC_OUTPUT_NORM),
        named("fc", NewTensor.FC),
    ),
    require={**SILU, "attention_bias": (False,)},
    drop=INVERSE_FREQUENCIES,
    derived=flat,
    sizes={
        "features": lambda config: len(config.items_of(LAYERS, int)) * (config.integer("hidden_size") or 0),
        "kernel": lambda config: config.integer("conv_kernel_size") or 0,
        "kernels": lambda config: (
            2
            * (config.integer("conv_kernel_size") or 0)
            * ((config.integer("hidden_size") or 0) // max(config.integer("conv_group_size") or 1, 1))
        ),
        "rank": lambda config: config.integer("selector_rank") or 0,
        "paired": lambda config: int(config.first("rope_is_neox_style") is False),
    },
    check=problem,
    variant=lambda config: "shared" if config.first("has_embed_tokens") is False else "",
    drafts=True,
)
UNTRAINED = {"embed_tokens.": "the embedding of the larger model is meant, as has_embed_tokens says"}
DFLASH = replace(DFLASH, variants={"shared": replace(DFLASH, drop={**DFLASH.drop, **UNTRAINED})})
# Classes of transformers: every layer has its own kind of attention.
MUSE_GLIMMER_ASSISTANT = replace(
    DFLASH,
    classes=("MuseGlimmerAssistantModel",),
    models="the assistant of Muse Glimmer",
    rope=replace(DFLASH.rope, theta=500000.0),
    defaults={"use_sliding_window": True, "sliding_window": 2048, "rms_norm_eps": 1e-5},
    variants={},
)
