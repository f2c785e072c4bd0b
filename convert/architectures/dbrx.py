"""DBRX: fused queries, keys and values that are clipped, and all experts of a block in three matrices.

Source: llama.cpp's src/models/dbrx.cpp and conversion/dbrx.py.
"""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, TensorRule
from ggufsmith.convert.architectures.groups import (
    BASE,
    EMBEDDINGS,
    EXPERTS,
    OUTPUT_OR_EMBEDDING,
    QWEN_EXPERT_COUNTS,
    T,
    constant,
)
from ggufsmith.convert.architectures.moe import whole
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.reorder import Chain, Split, Turn


def apart(dims: Dims) -> Op:
    """The op of experts that lie one below the other."""
    return Split(dims.experts)


def turned_apart(dims: Dims) -> Op:
    """The same of experts whose columns are stored as rows."""
    return Chain(apart(dims), Turn())


def unlike(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    experts = config.mapping("ffn_config")
    config.mapping("attn_config")
    activation = experts.get("ffn_act_fn") or {"name": "silu"}
    if activation != {"name": "silu"}:
        return f"ffn_act_fn is {activation!r:.80}, but llama.cpp assumes SiLU"
    if experts.get("moe_normalize_expert_weights", 1) != 1:
        return "llama.cpp divides the weights of experts by their sum, but moe_normalize_expert_weights is not 1"
    return None


DBRX = Architecture(
    MODEL_ARCH.DBRX,
    ("DbrxForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        TensorRule(T.ATTN_NORM, "embd"),
        TensorRule(T.ATTN_QKV, "qkv embd"),
        TensorRule(T.ATTN_OUT, "embd q"),
        TensorRule(T.ATTN_OUT_NORM, "embd"),
        replace(EXPERTS[0], typed=True),
        TensorRule(T.FFN_GATE_EXP, "expert_rows embd", apart),
        TensorRule(T.FFN_UP_EXP, "expert_rows embd", apart),
        TensorRule(T.FFN_DOWN_EXP, "expert_rows embd", turned_apart),
    ),
    keys=(
        *BASE,
        *QWEN_EXPERT_COUNTS,
        ConfigKey(Keys.Attention.LAYERNORM_EPS, f32, computed=constant(1e-5)),
        ConfigKey(Keys.Attention.CLAMP_KQV, f32, ("clip_qkv",), 0.0),
    ),
    models="DBRX",
    defaults={"max_position_embeddings": 2048, "intermediate_size": 3584, "num_experts": 4, "num_experts_per_tok": 1},
    aliases={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings",
        "attn_config.kv_n_heads": "num_key_value_heads",
        "attn_config.clip_qkv": "clip_qkv",
        "attn_config.rope_theta": "rope_theta",
        "ffn_config.ffn_hidden_size": "intermediate_size",
        "ffn_config.moe_num_experts": "num_experts",
        "ffn_config.moe_top_k": "num_experts_per_tok",
    },
    sizes={
        "experts": lambda config: whole(config, "num_experts"),
        "expert_rows": lambda config: whole(config, "num_experts") * whole(config, "intermediate_size"),
    },
    check=unlike,
)

RECORDS = (DBRX,)
