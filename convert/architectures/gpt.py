"""GPT-2 and its kin: learned positions, layer norms, one matrix for queries, keys and values."""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.convert.architecture import Architecture, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    BASE,
    EMBEDDINGS,
    LAYER_NORM,
    LAYER_NORMS,
    T,
    without,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.reorder import Turn


def turn(dims: Dims) -> Op:
    """The op of matrices that are stored with their columns as rows."""
    return Turn()


def inner(config: Config) -> int:
    """The length of the feed-forward."""
    return config.integer("n_inner") or 4 * (config.integer("hidden_size") or 0)


GPT_BIGCODE = Architecture(
    MODEL_ARCH.STARCODER,
    ("GPTBigCodeForCausalLM",),
    tensors=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        TensorRule(T.POS_EMBD, "positions embd"),
        *LAYER_NORMS,
        TensorRule(T.ATTN_QKV, "qkv embd", bias=True),
        TensorRule(T.ATTN_OUT, "embd q", bias=True),
        TensorRule(T.FFN_UP, "ff embd", bias=True),
        TensorRule(T.FFN_DOWN, "embd ff", bias=True),
    ),
    keys=(*BASE, LAYER_NORM),
    models="StarCoder, SantaCoder",
    rope=Rope(write_theta=False, scaling=()),
    require={
        "activation_function": ("gelu_pytorch_tanh",),
        "multi_query": (True,),
        "add_cross_attention": (False,),
        "scale_attn_weights": (True,),
    },
    defaults={"num_key_value_heads": 1, "activation_function": "gelu_pytorch_tanh"},
    drop={".attn.bias": "the mask of the attention", ".attn.masked_bias": "the mask of the attention"},
    aliases={
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    },
    sizes={"ff": inner, "positions": lambda config: config.integer("max_position_embeddings") or 0},
)
GPT2 = replace(
    GPT_BIGCODE,
    arch=MODEL_ARCH.GPT2,
    classes=("GPT2LMHeadModel",),
    tensors=(
        *GPT_BIGCODE.tensors[:6],
        TensorRule(T.ATTN_QKV, "embd qkv", turn),
        TensorRule(T.ATTN_QKV, "qkv", part="bias"),
        TensorRule(T.ATTN_OUT, "q embd", turn),
        TensorRule(T.ATTN_OUT, "embd", part="bias"),
        TensorRule(T.FFN_UP, "embd ff", turn),
        TensorRule(T.FFN_UP, "ff", part="bias"),
        TensorRule(T.FFN_DOWN, "ff embd", turn),
        TensorRule(T.FFN_DOWN, "embd", part="bias"),
    ),
    keys=without(GPT_BIGCODE.keys, Keys.Attention.HEAD_COUNT_KV),
    models="GPT-2",
    require={
        "activation_function": ("gelu_new",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    defaults={"activation_function": "gelu_new"},
)

RECORDS = (GPT_BIGCODE, GPT2)
