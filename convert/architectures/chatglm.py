"""Qwen (1), ChatGLM 2 and 3 and GLM-4 9B, as their publishers' own classes have them: nothing of transformers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.dense import GLM
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    SIZES,
    T,
    without,
)
from ggufsmith.convert.config import Config


def qwen_unlike(config: Config, dims: Dims) -> str | None:
    """A sentence if heads are not the embedding divided among them, as llama.cpp's graph has it."""
    config.first("seq_length")  # behind which use_dynamic_ntk and use_logn_attn begin
    if dims.heads * dims.head_dim != dims.embd:
        return f"kv_channels is {dims.head_dim}, but llama.cpp assumes {dims.embd} / {dims.heads}"
    return None


def chatglm_unlike(config: Config, dims: Dims) -> str | None:
    """A sentence for ChatGLM 1, and for ChatGLM 2 of 32k, which stretches its positions instead of changing a base."""
    if config.first("position_encoding_2d") is not None:
        return "this is ChatGLM 1, for which llama.cpp has no graph"
    if "chatglm2" in str(config.first("_name_or_path")) and config.first("rope_ratio") not in (None, 1):
        return "rope_ratio stretches positions in ChatGLM 2, which is not supported"
    return qwen_unlike(config, dims)


def chatglm_base(config: Config) -> Mapping[str, Any]:
    """The base of the rotary embedding, which the config states as a multiple of 10000."""
    ratio = config.number("rope_ratio")
    return {} if ratio is None else {"rope_theta": 10000.0 * ratio}


QWEN = Architecture(
    MODEL_ARCH.QWEN,
    ("QWenLMHeadModel",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        TensorRule(T.ATTN_QKV, "qkv embd"),
        TensorRule(T.ATTN_QKV, "qkv", part="bias"),
        TensorRule(T.ATTN_OUT, "embd q"),
        *(replace(rule, bias=False) for rule in FEED_FORWARD),
    ),
    keys=(
        *without(SIZES, Keys.LLM.FEED_FORWARD_LENGTH, Keys.Attention.HEAD_COUNT_KV),
        ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, u32, ("intermediate_size",)),  # of gate and up together
    ),
    rope=Rope(scaling=()),
    require={"no_bias": (True,), "rotary_pct": (1.0,), "scale_attn_weights": (True,)},
    warn={
        "use_dynamic_ntk": ((False,), "beyond seq_length, llama.cpp does not change the base of the rotary embedding"),
        "use_logn_attn": ((False,), "beyond seq_length, llama.cpp does not scale queries by their position"),
    },
    drop=INVERSE_FREQUENCIES,
    check=qwen_unlike,
    models="Qwen (1)",
    aliases={"layer_norm_epsilon": "rms_norm_eps", "kv_channels": "head_dim"},
    sizes={"ff": lambda config: (config.integer("intermediate_size") or 0) // 2},
)
CHATGLM = replace(
    GLM,
    classes=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    tensors=(
        *GLM.tensors[:5],
        TensorRule(T.ATTN_QKV, "qkv embd", bias=True),
        *GLM.tensors[-3:],
    ),
    require={
        "add_bias_linear": (False,),
        "apply_residual_connection_post_layernorm": (False,),
        "rmsnorm": (True,),
        "post_layer_norm": (True,),
        "original_rope": (True,),
        "multi_query_attention": (True,),
        "pre_seq_len": (),
        "quantization_bit": (0,),
    },
    defaults={"rms_norm_eps": 1e-5},
    drop={".rotary_pos_emb.inv_freq": "recomputed from rope_ratio"},
    check=chatglm_unlike,
    derived=chatglm_base,
    spellings={r"^transformer\.": ""},
    models="ChatGLM 2, ChatGLM 3, GLM-4 9B (as first published)",
    aliases={
        "num_layers": "num_hidden_layers",
        "seq_length": "max_position_embeddings",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
        "multi_query_group_num": "num_key_value_heads",
        "layernorm_epsilon": "rms_norm_eps",
        "padded_vocab_size": "vocab_size",
    },
)

RECORDS = (QWEN, CHATGLM)
