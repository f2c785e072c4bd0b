"""The classes whose queries, keys and values are one matrix, head by head, for `hf.further`."""

from typing import Any

from gguf.constants import MODEL_TENSOR, Keys

from ggufsmith.convert.architectures import fused_heads
from ggufsmith.convert.hf.classes import HfClass
from ggufsmith.convert.hf.given import Given

A = Keys.Attention
T = MODEL_TENSOR
PARTS = {
    T.ATTN_NORM: "input_layernorm",
    T.FFN_NORM: "post_attention_layernorm",
    T.FFN_UP: "mlp.dense_h_to_4h",
    T.FFN_DOWN: "mlp.dense_4h_to_h",
}
NEOX = "gpt_neox.layers.{bid}."
NEOX_NAMES = {
    T.TOKEN_EMBD: "gpt_neox.embed_in",
    T.OUTPUT_NORM: "gpt_neox.final_layer_norm",
    T.OUTPUT: "embed_out",
    T.ATTN_QKV: f"{NEOX}attention.query_key_value",
    T.ATTN_OUT: f"{NEOX}attention.dense",
    **{tensor: NEOX + name for tensor, name in PARTS.items()},
}
H = "transformer.h.{bid}."
BLOOM_NAMES = {
    T.TOKEN_EMBD: "transformer.word_embeddings",
    T.TOKEN_EMBD_NORM: "transformer.word_embeddings_layernorm",
    T.OUTPUT_NORM: "transformer.ln_f",
    T.ATTN_QKV: f"{H}self_attention.query_key_value",
    T.ATTN_OUT: f"{H}self_attention.dense",
    **{tensor: H + name for tensor, name in PARTS.items()},
}
ONE_NORM = {**BLOOM_NAMES, T.ATTN_NORM_2: f"{H}ln_attn"}  # which the files of this class do not have
TWO_NORMS = {**ONE_NORM, T.ATTN_NORM: f"{H}ln_mlp"}
B = "transformer.blocks.{bid}."
MPT_NAMES = {
    T.TOKEN_EMBD: "transformer.wte",
    T.OUTPUT_NORM: "transformer.norm_f",
    T.ATTN_NORM: f"{B}norm_1",
    T.ATTN_QKV: f"{B}attn.Wqkv",
    T.ATTN_OUT: f"{B}attn.out_proj",
    T.FFN_NORM: f"{B}norm_2",
    T.FFN_UP: f"{B}ffn.up_proj",
    T.FFN_DOWN: f"{B}ffn.down_proj",
}


def two_norms(given: Given) -> bool:
    """Whether attention and feed-forward of a Falcon have a norm each."""
    return given.has("blk.0.attn_norm_2.weight")


def falcon(given: Given) -> dict[str, Any]:
    """Which Falcon it is."""
    several = given.whole(A.HEAD_COUNT_KV) > 1
    if not several and not two_norms(given):
        return {"new_decoder_architecture": False, "multi_query": True}
    return {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2 if two_norms(given) else 1}


def mpt(given: Given) -> dict[str, Any]:
    """The attention of an MPT."""
    return {"attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": given.number(A.CLAMP_KQV)}}


FALCON: dict[str, Any] = {
    "more": falcon,
    "renamed": {
        "hidden_size": "hidden_size",
        "intermediate_size": "ffn_hidden_size",
        "layer_norm_eps": "layer_norm_epsilon",
        "num_attention_heads": "num_attention_heads",
        "num_hidden_layers": "num_hidden_layers",
        "num_key_value_heads": "num_kv_heads",
    },
}
FUSED_HEADS = (
    HfClass(
        fused_heads.GPT_NEOX,
        "gpt_neox",
        names=NEOX_NAMES,
        renamed={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        lost=("num_key_value_heads",),
    ),
    HfClass(fused_heads.FALCON, "falcon", names=TWO_NORMS, when=two_norms, **FALCON),
    HfClass(fused_heads.FALCON, "falcon", names=ONE_NORM, **FALCON),
    HfClass(
        fused_heads.BLOOM,
        "bloom",
        names=BLOOM_NAMES,
        renamed={"layer_norm_eps": "layer_norm_epsilon"},
        lost=("num_key_value_heads", "intermediate_size"),
    ),
    HfClass(
        fused_heads.MPT,
        "mpt",
        names=MPT_NAMES,
        more=mpt,
        renamed={"layer_norm_eps": "layer_norm_epsilon"},
        lost=("num_key_value_heads", "intermediate_size"),
    ),
)
