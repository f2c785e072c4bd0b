"""The classes of models that came later, for `hf.further`."""

from typing import Any

import numpy as np

from ggufsmith.container.errors import Malformed
from ggufsmith.convert.architectures import chameleon, dbrx, hrm, hy_v4, muse_glimmer, step35
from ggufsmith.convert.hf.classes import BLOCK, GEMMA_NAMES, HfClass, T, in_blocks
from ggufsmith.convert.hf.given import Given
from ggufsmith.convert.hf.names import GATE_CORRECTION
from ggufsmith.convert.hf.newer import INDEXED_NAMES, indexed, mlp_kinds
from ggufsmith.convert.hf.rope import FREQS, llama3_parameters
from ggufsmith.convert.hf.several import FULL, SLIDING, A, L, R, layered_rope, windows

GATES = in_blocks({T.ATTN_GATE: "self_attn.gate_proj"})
GATES_OF_HEADS = in_blocks({T.ATTN_GATE: "self_attn.g_proj"})
HRM_SOURCES = {
    "model.z_L_init": ("hrm.z_l_init",),
    f"{BLOCK}attn.gqkv_proj.weight": tuple(f"blk.{{bid}}.attn_{part}.weight" for part in ("gate", "q", "k", "v")),
    f"{BLOCK}mlp.gate_up_proj.weight": ("blk.{bid}.ffn_gate.weight", "blk.{bid}.ffn_up.weight"),
}

B = "transformer.blocks.{bid}."
DBRX_NAMES = {
    T.TOKEN_EMBD: "transformer.wte",
    T.OUTPUT_NORM: "transformer.norm_f",
    T.ATTN_NORM: f"{B}norm_attn_norm.norm_1",
    T.ATTN_QKV: f"{B}norm_attn_norm.attn.Wqkv",
    T.ATTN_OUT: f"{B}norm_attn_norm.attn.out_proj",
    T.ATTN_OUT_NORM: f"{B}norm_attn_norm.norm_2",
    T.FFN_GATE_INP: f"{B}ffn.router.layer",
}
DBRX_SOURCES = {
    f"{B}ffn.experts.mlp.{name}": (f"blk.{{bid}}.ffn_{part}_exps.weight",)
    for name, part in {"w1": "gate", "v1": "up", "w2": "down"}.items()
}


HY_NAMES = INDEXED_NAMES | in_blocks({T.ATTN_GATE: "self_attn.linear_gate"})
HY_SOURCES = {
    **GATE_CORRECTION,
    f"{BLOCK}self_attn.kv_b_proj.weight": ("blk.{bid}.attn_k_b.weight", "blk.{bid}.attn_v_b.weight"),
    f"{BLOCK}self_attn.learnable_sink_param": ("blk.{bid}.attn_sinks.weight",),
    f"{BLOCK}mlp.experts.gate_up_proj": ("blk.{bid}.ffn_gate_exps.weight", "blk.{bid}.ffn_up_exps.weight"),
    f"{BLOCK}mlp.experts.down_proj": ("blk.{bid}.ffn_down_exps.weight",),
    **{f"model.hc_head.hc_head_{part}": (f"output_hc_{part}.weight",) for part in hy_v4.PARTS},
    **{
        f"{BLOCK}hc_{name}_layer.hc_pre.hc_{part}": (f"blk.{{bid}}.hc_{kind}_{part}.weight",)
        for name, kind in {"attn": "attn", "mlp": "ffn"}.items()
        for part in hy_v4.PARTS
    },
}


UNLIMITED = 3e38  # of Hunyuan 4's experts: transformers takes 0 for a limit too


def hunyuan(given: Given) -> dict[str, Any]:
    """Of Hunyuan 4."""
    limits = given.keys.numbers(L.SWIGLU_CLAMP_EXP.format(arch=given.record.name), np.float32, given.blocks)
    return {**indexed(given), "swiglu_limit": UNLIMITED if limits is None else float(str(limits[0]))}


def same_throughout(given: Given, tensor: str) -> float:
    """The one number that every block's vector of this name is filled with. Malformed if they hold others."""
    vectors = {f"blk.{block}.{tensor}": given.vector(f"blk.{block}.{tensor}") for block in range(given.blocks)}
    first = next(iter(vectors.values()))
    for name, vector in vectors.items():
        if vector is None or first is None or not np.all(vector == first[0]):
            raise Malformed("the weights must be one and the same number", where=f"{given.keys.where}: {name}")
    assert first is not None
    return float(str(first[0]))


def muse(given: Given) -> dict[str, Any]:
    """Which blocks of Muse Glimmer rotate, and the scale of its queries."""
    if same_throughout(given, "attn_k_norm.weight") != 1:
        raise Malformed("the weights must be 1", where=f"{given.keys.where}: blk.0.attn_k_norm.weight")
    found, theta = windows(given), given.number(R.FREQ_BASE)
    return {
        **found,
        "layer_rope_theta": [theta if kind == SLIDING else 0 for kind in found["layer_types"]],
        "qk_scale_factor": same_throughout(given, "attn_q_norm.weight"),
        "vision_config": {},
    }


STEP_NAMES = GATES_OF_HEADS | in_blocks(
    {
        T.FFN_GATE_INP: "moe.gate",
        T.FFN_GATE_SHEXP: "share_expert.gate_proj",
        T.FFN_UP_SHEXP: "share_expert.up_proj",
        T.FFN_DOWN_SHEXP: "share_expert.down_proj",
    }
)
STEP_SOURCES = {
    f"{BLOCK}moe.router_bias": ("blk.{bid}.exp_probs_b.bias",),
    **{f"{BLOCK}moe.{part}_proj.weight": (f"blk.{{bid}}.ffn_{part}_exps.weight",) for part in ("gate", "up", "down")},
}


def step(given: Given) -> dict[str, Any]:
    """What differs from block to block in Step 3.5, without the blocks that are appended."""
    total = given.blocks + given.whole(L.NEXTN_PREDICT_LAYERS)
    kinds = [SLIDING if each else FULL for each in given.each(A.SLIDING_WINDOW_PATTERN, total) or [0] * total]
    kinds, heads = kinds[: given.blocks], given.each(A.HEAD_COUNT, total) or [0] * total
    by_kind = dict(zip(kinds, heads, strict=False))
    rope = layered_rope(given)
    freqs = given.vector(FREQS)
    theta = rope[FULL]["rope_theta"]
    if freqs is not None:
        rope[FULL] |= llama3_parameters(freqs[: len(freqs) // 2], theta, given.keys.where)
    rope[FULL]["partial_rotary_factor"] = 0.5
    limits = {
        name: [float(limit) for limit in found[: given.blocks]]
        for name, key in {"swiglu_limits": L.SWIGLU_CLAMP_EXP, "swiglu_limits_shared": L.SWIGLU_CLAMP_SHEXP}.items()
        if (found := given.keys.numbers(key.format(arch=given.record.name), np.float32, total)) is not None
    }
    return {
        **limits,
        "layer_types": kinds,
        "mlp_layer_types": mlp_kinds(given),
        "num_attention_heads": by_kind.get(FULL, heads[0]),
        "num_sliding_attention_heads": by_kind.get(SLIDING, heads[0]),
        "num_key_value_heads": (given.each(A.HEAD_COUNT_KV, total) or [0])[0],
        "rope_parameters": rope,
        "vision_config": {},
    }


LATER = (
    HfClass(chameleon.CHAMELEON, "chameleon", pictures=True),
    HfClass(
        hy_v4.HY_V4,
        "hy_v4",
        sparse=True,
        names=HY_NAMES,
        sources=HY_SOURCES,
        free=frozenset((T.INDEXER_K_NORM,)),
        more=hunyuan,
        lost=("partial_rotary_factor", "head_dim", "first_k_dense_replace"),
    ),
    HfClass(
        step35.STEP35,
        "step3p5",
        names=STEP_NAMES,
        sources=STEP_SOURCES,
        sparse=True,
        more=step,
        lost=("rope_theta", "rope_local_base_freq", "rope_scaling", "partial_rotary_factor", "first_k_dense_replace"),
        pictures=True,
    ),
    HfClass(
        hrm.HRM_TEXT,
        "hrm_text",
        names=GATES | in_blocks({T.ATTN_OUT: "attn.o_proj"}),
        sources=HRM_SOURCES,
        lost=("num_key_value_heads",),
    ),
    HfClass(
        dbrx.DBRX,
        "dbrx",
        names=DBRX_NAMES,
        sources=DBRX_SOURCES,
        sparse=True,
        more=lambda given: {
            "rope_parameters": {"rope_type": "default", "rope_theta": given.number(R.FREQ_BASE) or 10000.0}
        },
        lost=("num_local_experts",),
    ),
    HfClass(muse_glimmer.MUSE_GLIMMER, "muse_glimmer", names=GEMMA_NAMES | GATES, more=muse, pictures=True),
)
