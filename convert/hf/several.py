"""Config keys that are made of several keys of a GGUF file, or of its tensors: functions that `hf.further` names."""

from collections.abc import Callable, Mapping
from typing import Any

from gguf.constants import ExpertGatingFuncType, Keys

from ggufsmith.convert.hf.given import Given
from ggufsmith.convert.hf.names import GATE_CORRECTION, LATENT_NAMES, LATENT_SOURCES
from ggufsmith.convert.hf.rope import yarn_parameters

A, L, R = Keys.Attention, Keys.LLM, Keys.Rope
SLIDING, FULL = "sliding_attention", "full_attention"


def every(period: int) -> Callable[[Given], list[str]]:
    """The kinds of attention where every so many-th block has none but the whole context."""
    return lambda given: [FULL if (block + 1) % period == 0 else SLIDING for block in range(given.blocks)]


def windows(given: Given) -> dict[str, Any]:
    """The window, and which blocks have it."""
    pattern = given.each(A.SLIDING_WINDOW_PATTERN, given.blocks)
    kinds = [SLIDING if each else FULL for each in pattern or [False] * given.blocks]
    return {"sliding_window": given.number(A.SLIDING_WINDOW), "layer_types": kinds}


def layered_windows(given: Given) -> dict[str, Any]:
    """The same, where both kinds of blocks have a rotary embedding of their own."""
    return {**windows(given), "rope_parameters": layered_rope(given)}


def layered_rope(given: Given) -> dict[str, Any]:
    """The rotary embedding of blocks with a window, and without."""
    theta = given.number(R.FREQ_BASE)
    local = given.number(R.FREQ_BASE_SWA) or theta
    found: dict[str, Any] = {FULL: {"rope_type": "default", "rope_theta": theta}}
    if given.number(R.SCALING_FACTOR) is not None:
        found[FULL] |= yarn(given)
    return {**found, SLIDING: {"rope_type": "default", "rope_theta": local}}


def yarn(given: Given) -> dict[str, Any]:
    """The parameters of YaRN."""
    factor = given.number(R.SCALING_FACTOR)
    stated = {} if factor is None else {"factor": factor}
    return {"rope_type": "yarn", **stated, **yarn_parameters(given.number)}


def sections(interleaved: bool) -> Callable[[Given], dict[str, Any]]:
    """The rotary embedding over time, height and width."""

    def rope(given: Given) -> dict[str, Any]:
        found = given.each(R.DIMENSION_SECTIONS, 4)
        rotary = given.whole(R.DIMENSION_COUNT)
        head = given.whole(A.KEY_LENGTH) or given.whole(L.EMBEDDING_LENGTH) // max(given.whole(A.HEAD_COUNT), 1)
        parameters = {"rope_type": "default", "rope_theta": given.number(R.FREQ_BASE)}
        if found:
            parameters["mrope_section"] = found[:3]
        if interleaved:
            parameters["mrope_interleaved"] = True
        if 0 < rotary < head:
            parameters["partial_rotary_factor"] = rotary / head
        return {"rope_parameters": parameters}

    return rope


def turns_by_sections(given: Given) -> bool:
    """Whether time, height and width have sections of the rotary embedding, as in models that see."""
    return R.DIMENSION_SECTIONS.format(arch=given.record.name) in given.keys.metadata


def xd_rope(given: Given) -> dict[str, Any]:
    """The rotary embedding of HunYuan-VL."""
    alpha = given.number(R.SCALING_ALPHA)
    parameters = {"rope_type": "default", "rope_theta": given.number(R.FREQ_BASE)}
    if alpha:
        parameters |= {"rope_type": "dynamic", "alpha": alpha, "factor": given.number(R.SCALING_FACTOR) or 1.0}
    found = given.each(R.DIMENSION_SECTIONS, 4)
    return {"rope_parameters": {**parameters, **({"mrope_section": found} if found else {})}}


def qwen3_vl(given: Given) -> dict[str, Any]:
    """Of Qwen3-VL, whose encoder reaches into so many of the first blocks."""
    layers = list(range(min(given.whole(L.NUM_DEEPSTACK_LAYERS), given.blocks)))
    return {**sections(interleaved=True)(given), "vision_config": {"deepstack_visual_indexes": layers}}


def linear(given: Given) -> dict[str, Any]:
    """What linear attention has besides its keys."""
    pattern = given.each("{arch}.attention.recurrent_layers", given.blocks + given.whole(L.NEXTN_PREDICT_LAYERS))
    period = given.whole(L.FULL_ATTENTION_INTERVAL) or 4
    recurrent = pattern or [(block + 1) % period != 0 for block in range(given.blocks)]
    heads = max(given.whole(Keys.SSM.TIME_STEP_RANK), 1)
    return {
        "linear_value_head_dim": given.whole(Keys.SSM.INNER_SIZE) // heads,
        "layer_types": ["linear_attention" if each else FULL for each in recurrent[: given.blocks]],
    }


def qwen35(given: Given) -> dict[str, Any]:
    """Of Qwen3.5."""
    return {**linear(given), **sections(interleaved=True)(given)}


def latent_sizes(given: Given) -> dict[str, Any]:
    """Of latent attention."""
    rotary = given.whole(R.DIMENSION_COUNT)
    found: dict[str, Any] = {
        "qk_nope_head_dim": given.whole(A.KEY_LENGTH_MLA) - rotary,
        "num_key_value_heads": given.whole(A.HEAD_COUNT),
        "q_lora_rank": given.number(A.Q_LORA_RANK),
        "norm_topk_prob": bool(given.flag(L.EXPERT_WEIGHTS_NORM)),
    }
    multiplier = given.number(R.SCALING_YARN_LOG_MUL)
    if given.number(R.SCALING_FACTOR) is None:
        return found
    scale = (
        {} if multiplier is None else {"mscale": round(10 * multiplier, 6), "mscale_all_dim": round(10 * multiplier, 6)}
    )
    return {**found, "rope_scaling": {**yarn(given), **scale}}


def mistral4(given: Given) -> dict[str, Any]:
    """Of Mistral 4, which sees the part of a head that rotates in a head of both parts."""
    head = given.whole(A.KEY_LENGTH_MLA)
    partial = given.whole(R.DIMENSION_COUNT) / max(head, 1)
    found = latent_sizes(given)
    if "rope_scaling" in found:
        found["rope_scaling"] |= {"llama_4_scaling_beta": given.number(A.TEMPERATURE_SCALE) or 0.0}
    return {**found, "head_dim": head, "partial_rotary_factor": partial}


def mistral3(given: Given) -> dict[str, Any]:
    """The rotary embedding of Ministral 3."""
    multiplier = given.number(R.SCALING_YARN_LOG_MUL)
    scale = {} if multiplier is None else {"mscale": multiplier, "mscale_all_dim": multiplier}
    beta = {"llama_4_scaling_beta": given.number(A.TEMPERATURE_SCALE)}
    return {"rope_scaling": {**yarn(given), **scale, **beta}}


def gemma4_layers(given: Given) -> dict[str, Any]:
    """What differs from block to block in Gemma 4."""
    blocks = given.blocks
    types = windows(given)["layer_types"]
    lengths = given.each(L.FEED_FORWARD_LENGTH, blocks) or [0] * blocks
    heads = given.each(A.HEAD_COUNT_KV, blocks) or [given.whole(A.HEAD_COUNT)] * blocks
    by_kind = dict(zip(types, heads, strict=True))
    alone = [block for block in range(blocks) if types[block] == FULL and not given.has(f"blk.{block}.attn_v.weight")]
    own = blocks - given.whole(A.SHARED_KV_LAYERS)
    found: dict[str, Any] = {
        "layer_types": types,
        "intermediate_size": lengths[0],
        "use_double_wide_mlp": lengths[-1] != lengths[0],
        "num_key_value_heads": by_kind.get(SLIDING, heads[0]),
        "attention_k_eq_v": any(block < own for block in alone),
        "enable_moe_block": given.whole(L.EXPERT_COUNT) > 0,
    }
    if by_kind.get(FULL, heads[0]) != found["num_key_value_heads"]:
        found["num_global_key_value_heads"] = by_kind[FULL]
    if given.has("per_layer_token_embd.weight"):
        found["vocab_size_per_layer_input"] = given.shape("per_layer_token_embd.weight")[0]
    return found


def gemma3n_layers(given: Given) -> dict[str, Any]:
    """Which blocks of Gemma 3n have a window, and how long their feed-forwards are."""
    return {
        **layered_windows(given),
        "intermediate_size": given.each(L.FEED_FORWARD_LENGTH, given.blocks),
        "vocab_size_per_layer_input": given.shape("per_layer_token_embd.weight")[0],
    }


def convolutions(given: Given) -> dict[str, Any]:
    """Which blocks of LFM2 have a short convolution, and the heads of the others."""
    heads = given.each(A.HEAD_COUNT_KV, given.blocks) or []
    return {
        "num_key_value_heads": max(heads, default=0) or None,
        "layer_types": [FULL if each else "conv" for each in heads],
        "block_auto_adjust_ff_dim": False,
    }


def head_norms(key: str) -> Callable[[Given], dict[str, Any]]:
    """The config key that says whether queries and keys have norms."""
    return lambda given: {key: given.has("blk.0.attn_q_norm.weight")}


def gating(kind: ExpertGatingFuncType) -> Callable[[Given], bool]:
    """Whether experts are weighed so."""
    return lambda given: given.whole(L.EXPERT_GATING_FUNC) == kind.value


LATENT: Mapping[str, Any] = {
    "sparse": True,
    "names": LATENT_NAMES,
    "sources": LATENT_SOURCES,
    "more": latent_sizes,
    "lost": ("partial_rotary_factor", "head_dim"),
}
DENSE_LATENT: Mapping[str, Any] = {
    **LATENT,
    "sparse": False,
    "sources": {name: made for name, made in LATENT_SOURCES.items() if name not in GATE_CORRECTION},
    "more": lambda given: {key: value for key, value in latent_sizes(given).items() if key != "norm_topk_prob"},
}
