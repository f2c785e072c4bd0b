"""The classes with state spaces that a GGUF file can be turned back into (see `hf.classes`)."""

from typing import Any

from gguf.constants import Keys

from ggufsmith.convert.architectures import bamba as bamba_record
from ggufsmith.convert.architectures import falcon_h1, hybrid, kimi_linear, state_space
from ggufsmith.convert.hf.classes import ATTENTION, MLP, HfClass
from ggufsmith.convert.hf.given import Given
from ggufsmith.convert.hf.names import (
    BAMBA_NAMES,
    FALCON_H1_NAMES,
    FALCON_H1_SOURCES,
    GRANITE_DENSE_NAMES,
    GRANITE_DENSE_SOURCES,
    GRANITE_SHARED_NAMES,
    GRANITE_SHARED_SOURCES,
    HYBRID_NAMES,
    HYBRID_SOURCES,
    JAMBA_NAMES,
    JAMBA_SOURCES,
    KIMI_NAMES,
    KIMI_SOURCES,
    MAMBA_NAMES,
    MIXER,
    NEMOTRON_MOE_SOURCES,
    NEMOTRON_NAMES,
    mamba_sources,
)

A, L, R, S = Keys.Attention, Keys.LLM, Keys.Rope, Keys.SSM
FULL = "full_attention"
FF = L.FEED_FORWARD_LENGTH
NO_HEADS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def mamba2(given: Given) -> dict[str, Any]:
    """The heads and groups of Mamba 2."""
    inner, heads = given.whole(S.INNER_SIZE), given.whole(S.TIME_STEP_RANK)
    return {
        "num_heads": heads,
        "head_dim": inner // max(heads, 1),
        "n_groups": given.whole(S.GROUP_COUNT),
        "state_size": given.whole(S.STATE_SIZE),
        "conv_kernel": given.whole(S.CONV_KERNEL),
        "expand": inner // max(given.whole(L.EMBEDDING_LENGTH), 1),
    }


def kinds_of(given: Given) -> list[str]:
    """Which blocks attend: those with key-value heads."""
    heads = given.each(A.HEAD_COUNT_KV, given.blocks) or []
    return [FULL if each else "linear_attention" for each in heads]


def kv_heads(given: Given) -> int | None:
    """Of the blocks that attend."""
    return max(given.each(A.HEAD_COUNT_KV, given.blocks) or [], default=0) or None


def granite_hybrid(given: Given) -> dict[str, Any]:
    """States and attention of Granite 4."""
    inner, heads = given.whole(S.INNER_SIZE), given.whole(S.TIME_STEP_RANK)
    found = {
        "mamba_n_heads": heads,
        "mamba_d_head": inner // max(heads, 1),
        "mamba_n_groups": given.whole(S.GROUP_COUNT),
        "mamba_d_state": given.whole(S.STATE_SIZE),
        "mamba_d_conv": given.whole(S.CONV_KERNEL),
        "layer_types": kinds_of(given),
        "num_key_value_heads": kv_heads(given),
        "num_local_experts": given.whole(L.EXPERT_COUNT),
        "num_experts_per_tok": given.whole(L.EXPERT_USED_COUNT),
        "position_embedding_type": "nope" if given.flag(R.SCALING_FINETUNED) is False else "rope",
    }
    return found if given.whole(L.EXPERT_COUNT) else found | {"shared_intermediate_size": given.whole(FF)}


def nemotron(given: Given) -> dict[str, Any]:
    """States, attention and feed-forwards of Nemotron-H, of which every block has one."""
    inner, heads = given.whole(S.INNER_SIZE), given.whole(S.TIME_STEP_RANK)
    lengths = given.each(FF, given.blocks) or [0] * given.blocks
    rest = "moe" if given.whole(L.EXPERT_COUNT) else "mlp"
    kinds = [rest if length else kind for kind, length in zip(kinds_of(given), lengths, strict=False)]
    found = {
        "layers_block_type": kinds,
        "num_key_value_heads": kv_heads(given),
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // max(heads, 1),
        "n_groups": given.whole(S.GROUP_COUNT),
        "ssm_state_size": given.whole(S.STATE_SIZE),
        "conv_kernel": given.whole(S.CONV_KERNEL),
    }
    return found | ({"intermediate_size": max(lengths, default=0)} if rest == "mlp" else {})


def bamba(given: Given) -> dict[str, Any]:
    """States of Bamba, and which blocks attend."""
    found = granite_hybrid(given)
    attending = [block for block, kind in enumerate(found["layer_types"]) if kind == FULL]
    states = {key: value for key, value in found.items() if key.startswith("mamba_")}
    return {
        **states,
        "attn_layer_indices": attending,
        "num_key_value_heads": kv_heads(given),
        "mamba_expand": given.whole(S.INNER_SIZE) // max(given.whole(L.EMBEDDING_LENGTH), 1),
    }


def falcon(given: Given) -> dict[str, Any]:
    """States of Falcon-H1; its scales are in the weights."""
    inner, heads = given.whole(S.INNER_SIZE), given.whole(S.TIME_STEP_RANK)
    return {
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // max(heads, 1),
        "mamba_n_groups": given.whole(S.GROUP_COUNT),
        "mamba_d_state": given.whole(S.STATE_SIZE),
        "mamba_d_conv": given.whole(S.CONV_KERNEL),
        "mamba_rms_norm": given.has("blk.0.ssm_norm.weight"),
        "mamba_norm_before_gate": False,
    }


def jamba(given: Given) -> dict[str, Any]:
    """Which blocks of Jamba attend, and which have experts. Unsupported, if they follow no rule."""
    attending = [block for block, kind in enumerate(kinds_of(given)) if kind == FULL]
    sparse = [block for block in range(given.blocks) if given.has(f"blk.{block}.ffn_gate_inp.weight")]
    return {
        "num_key_value_heads": kv_heads(given),
        "mamba_expand": given.whole(S.INNER_SIZE) // max(given.whole(L.EMBEDDING_LENGTH), 1),
        **dict(zip(("attn_layer_offset", "attn_layer_period"), rhythm(attending, given.blocks), strict=True)),
        **dict(zip(("expert_layer_offset", "expert_layer_period"), rhythm(sparse, given.blocks), strict=True)),
    }


def rhythm(blocks: list[int], count: int) -> tuple[int, int]:
    """The first of these blocks, and after how many the next one comes."""
    if not blocks:
        return count, count + 1
    return blocks[0], blocks[1] - blocks[0] if len(blocks) > 1 else max(count, blocks[0] + 1)


def kimi(given: Given) -> dict[str, Any]:
    """Delta attention and latent attention of Kimi Linear."""
    return {
        "linear_num_heads": given.whole(A.HEAD_COUNT),
        "num_key_value_heads": given.whole(A.HEAD_COUNT),
        "qk_nope_head_dim": given.whole(A.KEY_LENGTH_MLA) - given.whole(R.DIMENSION_COUNT),
        "layer_types": kinds_of(given),
        "mlp_layer_types": [
            "dense" if given.has(f"blk.{block}.ffn_gate.weight") else "sparse" for block in range(given.blocks)
        ],
    }


STATES = (
    HfClass(
        bamba_record.BAMBA,
        "bamba",
        names=BAMBA_NAMES,
        sources=HYBRID_SOURCES,
        biases={"attention_bias": ATTENTION, "mlp_bias": MLP},
        when=lambda given: given.number(A.SCALE) is None,
        more=bamba,
    ),
    HfClass(
        kimi_linear.KIMI_LINEAR,
        "kimi_linear",
        names=KIMI_NAMES,
        sources=KIMI_SOURCES,
        sparse=True,
        more=kimi,
        lost=("head_dim", "first_k_dense_replace"),
    ),
    HfClass(
        hybrid.GRANITE_MOE_SHARED,
        "granitemoeshared",
        names=GRANITE_SHARED_NAMES,
        sources=GRANITE_SHARED_SOURCES,
        sparse=True,
        biases={"attention_bias": ATTENTION},
        when=lambda given: given.has("blk.0.ffn_up_shexp.weight"),
    ),
    HfClass(
        state_space.MAMBA,
        "mamba",
        names=MAMBA_NAMES,
        sources=mamba_sources(MIXER, first=True),
        when=lambda given: not given.flag(S.DT_B_C_RMS),
        lost=NO_HEADS,
    ),
    HfClass(
        state_space.MAMBA,
        "falcon_mamba",
        called="FalconMambaForCausalLM",
        names=MAMBA_NAMES,
        sources=mamba_sources(MIXER, first=True),
        more=lambda given: {"mixer_rms_eps": given.number(A.LAYERNORM_RMS_EPS)},
        lost=NO_HEADS,
    ),
    HfClass(state_space.MAMBA2, "mamba2", names=MAMBA_NAMES, sources=mamba_sources(MIXER), more=mamba2, lost=NO_HEADS),
    HfClass(
        hybrid.GRANITE_HYBRID,
        "granitemoehybrid",
        names=GRANITE_SHARED_NAMES | HYBRID_NAMES,
        sources=GRANITE_SHARED_SOURCES | HYBRID_SOURCES,
        sparse=True,
        more=granite_hybrid,
    ),
    HfClass(
        hybrid.GRANITE_HYBRID_DENSE,
        "granitemoehybrid",
        names=GRANITE_DENSE_NAMES | HYBRID_NAMES,
        sources=GRANITE_DENSE_SOURCES | HYBRID_SOURCES,
        more=granite_hybrid,
    ),
    HfClass(hybrid.NEMOTRON_H, "nemotron_h", names=NEMOTRON_NAMES, sources=mamba_sources(MIXER), more=nemotron),
    HfClass(
        hybrid.NEMOTRON_H_MOE,
        "nemotron_h",
        names=NEMOTRON_NAMES,
        sources=NEMOTRON_MOE_SOURCES,
        sparse=True,
        more=nemotron,
    ),
    HfClass(falcon_h1.FALCON_H1, "falcon_h1", names=FALCON_H1_NAMES, sources=FALCON_H1_SOURCES, more=falcon),
    HfClass(hybrid.JAMBA, "jamba", names=JAMBA_NAMES, sources=JAMBA_SOURCES, sparse=None, more=jamba),
)
