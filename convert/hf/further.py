"""All classes that a GGUF file can be turned back into: those of `hf.classes`, and the later architectures."""

from collections.abc import Callable, Mapping
from typing import Any

from gguf.constants import ExpertGatingFuncType, Keys

from ggufsmith.convert.architectures import (
    dense,
    gemma4,
    gpt,
    gpt_oss,
    latent,
    lfm2,
    moe,
    qwen_hybrid,
)
from ggufsmith.convert.architectures import vision_language as vision
from ggufsmith.convert.hf.classes import (
    ATTENTION,
    CLASSIC,
    MIXTRAL_NAMES,
    MLP,
    QKV,
    HfClass,
    T,
)
from ggufsmith.convert.hf.given import Given
from ggufsmith.convert.hf.names import (
    GATE_CORRECTION,
    GEMMA4_NAMES,
    GEMMA4_SOURCES,
    GLM4_MOE_NAMES,
    GLM4_NAMES,
    GPT2_NAMES,
    GPT_OSS_NAMES,
    GPT_OSS_SOURCES,
    GRANITE_NAMES,
    GRANITE_SOURCES,
    HUNYUAN_NAMES,
    LATENT_NAMES,
    LATENT_SOURCES,
    LFM2_NAMES,
    LINEAR_NAMES,
    LINEAR_SOURCES,
    LLAMA4_NAMES,
    LLAMA4_SOURCES,
    MISTRAL4_SOURCES,
    NEXT_SOURCES,
    PHI2_NAMES,
    POST_NORMS,
    SHARED_EXPERTS,
    STARCODER2_NAMES,
    correction,
)
from ggufsmith.convert.hf.states import STATES

A, L, R = Keys.Attention, Keys.LLM, Keys.Rope
NORM_BIASES = frozenset((T.OUTPUT_NORM, T.ATTN_NORM, T.FFN_NORM))
UNGATED = frozenset((T.FFN_UP, T.FFN_DOWN))
EXPERT_BIASES = frozenset((T.FFN_GATE_INP, T.FFN_GATE_EXP, T.FFN_UP_EXP, T.FFN_DOWN_EXP))
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
    found = {
        "rope_type": "yarn",
        "factor": given.number(R.SCALING_FACTOR),
        "original_max_position_embeddings": given.number(R.SCALING_ORIG_CTX_LEN),
        "attention_factor": given.number(R.SCALING_YARN_ATTN_FACTOR),
        "beta_fast": given.number(R.SCALING_YARN_BETA_FAST),
        "beta_slow": given.number(R.SCALING_YARN_BETA_SLOW),
    }
    return {name: value for name, value in found.items() if value is not None}


def sections(interleaved: bool) -> Callable[[Given], dict[str, Any]]:
    """The rotary embedding over time, height and width."""

    def rope(given: Given) -> dict[str, Any]:
        found = given.each(R.DIMENSION_SECTIONS, 4)
        rotary, head = given.whole(R.DIMENSION_COUNT), given.whole(A.KEY_LENGTH)
        parameters = {"rope_type": "default", "rope_theta": given.number(R.FREQ_BASE)}
        if found:
            parameters["mrope_section"] = found[:3]
        if interleaved:
            parameters["mrope_interleaved"] = True
        if 0 < rotary < head:
            parameters["partial_rotary_factor"] = rotary / head
        return {"rope_parameters": parameters}

    return rope


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
DENSE = (
    HfClass(
        dense.OLMO2,
        "olmo3",
        names=POST_NORMS,
        called="Olmo3ForCausalLM",
        when=lambda given: given.number(A.SLIDING_WINDOW) is not None,
        more=layered_windows,
        lost=("rope_theta", "rope_local_base_freq", "rope_scaling"),
    ),
    HfClass(dense.OLMO2, "olmo2", names=POST_NORMS),
    HfClass(dense.OLMO, "olmo"),
    HfClass(dense.SMOLLM3, "smollm3", biases={"attention_bias": ATTENTION, "mlp_bias": MLP}),
    HfClass(
        dense.SEED_OSS,
        "seed_oss",
        names=POST_NORMS,
        biases={"attention_bias": QKV},
        constants={"attention_bias": False},
    ),
    HfClass(dense.GRANITE, "granite", biases={"attention_bias": ATTENTION, "mlp_bias": MLP}),
    HfClass(dense.ARCEE, "arcee", biases={"attention_bias": ATTENTION, "mlp_bias": UNGATED}),
    HfClass(
        dense.STARCODER2,
        "starcoder2",
        names=STARCODER2_NAMES,
        biases={"": NORM_BIASES, "use_bias": ATTENTION | UNGATED},
        constants={"use_bias": False},
        renamed={"layer_norm_eps": "norm_epsilon"},
    ),
    HfClass(
        dense.STABLELM,
        "stablelm",
        biases={"use_qkv_bias": QKV},
        free=NORM_BIASES,
        more=head_norms("qk_layernorm"),
    ),
    HfClass(dense.COHERE, "cohere", biases={"attention_bias": ATTENTION}, more=head_norms("use_qk_norm")),
    HfClass(dense.COHERE2, "cohere2", more=lambda given: {"layer_types": every(4)(given)}),
    HfClass(dense.EXAONE4, "exaone4", names=POST_NORMS, more=windows),
    HfClass(dense.ERNIE4_5, "ernie4_5", biases={"use_bias": ATTENTION | MLP}),
    HfClass(dense.HUNYUAN_DENSE, "hunyuan_v1_dense", names=HUNYUAN_NAMES, biases={"attention_bias": ATTENTION}),
    HfClass(
        dense.JAIS2,
        "jais2",
        biases={"": NORM_BIASES, "attention_bias": ATTENTION, "mlp_bias": UNGATED},
        constants={"attention_bias": False, "mlp_bias": False},
    ),
    HfClass(
        dense.NEMOTRON,
        "nemotron",
        biases={"": NORM_BIASES, "attention_bias": ATTENTION, "mlp_bias": UNGATED},
        renamed={"layer_norm_eps": "norm_eps"},
    ),
    HfClass(dense.GEMMA, "gemma", tokenizer="GemmaTokenizer"),
    HfClass(dense.GLM4, "glm4", names=GLM4_NAMES, biases={"attention_bias": QKV}),
    HfClass(
        dense.PHI2, "phi", names=PHI2_NAMES, biases={"": NORM_BIASES - {T.FFN_NORM} | {T.OUTPUT} | ATTENTION | UNGATED}
    ),
)
HYBRID = (
    HfClass(
        qwen_hybrid.QWEN35,
        "qwen3_5_text",
        names=LINEAR_NAMES,
        sources=LINEAR_SOURCES,
        more=qwen35,
        lost=("partial_rotary_factor", "rope_theta"),
    ),
    HfClass(
        qwen_hybrid.QWEN35_MOE,
        "qwen3_5_moe_text",
        names=LINEAR_NAMES,
        sources=LINEAR_SOURCES,
        sparse=True,
        more=qwen35,
        lost=("partial_rotary_factor", "rope_theta"),
    ),
    HfClass(qwen_hybrid.QWEN3_NEXT, "qwen3_next", names=LINEAR_NAMES, sources=NEXT_SOURCES, sparse=True, more=linear),
    HfClass(lfm2.LFM2, "lfm2", names=LFM2_NAMES, renamed={"rms_norm_eps": "norm_eps"}, more=convolutions),
    HfClass(
        lfm2.LFM2_MOE,
        "lfm2_moe",
        names=LFM2_NAMES,
        sources=correction("feed_forward.expert_bias"),
        sparse=True,
        more=convolutions,
    ),
)
PICTURES = (
    HfClass(
        vision.QWEN2VL,
        "qwen2_vl",
        biases={"": QKV},
        more=sections(interleaved=False),
        lost=("rope_theta",),
        pictures=True,
    ),
    HfClass(vision.QWEN3VL, "qwen3_vl", more=qwen3_vl, lost=("rope_theta",), pictures=True),
    HfClass(
        vision.QWEN3VL_MOE,
        "qwen3_vl_moe",
        sparse=True,
        more=qwen3_vl,
        lost=("rope_theta",),
        pictures=True,
    ),
    HfClass(
        vision.MISTRAL3,
        "ministral3",
        when=lambda given: given.number(A.TEMPERATURE_SCALE) is not None,
        more=mistral3,
    ),
    HfClass(
        vision.MISTRAL3,
        "mistral",
        called="Mistral3ForConditionalGeneration",
        constants={"sliding_window": None},
        pictures=True,
    ),
)
SPARSE = (
    HfClass(
        gpt_oss.GPT_OSS,
        "gpt_oss",
        names=GPT_OSS_NAMES,
        sources=GPT_OSS_SOURCES,
        sparse=True,
        biases={"": EXPERT_BIASES, "attention_bias": ATTENTION},
        constants={"attention_bias": False},
        more=lambda given: {"rope_scaling": {**yarn(given), "truncate": False}},
    ),
    HfClass(
        gemma4.GEMMA4,
        "gemma4_text",
        sparse=None,
        names=GEMMA4_NAMES,
        sources=GEMMA4_SOURCES,
        more=gemma4_layers,
        renamed={"num_local_experts": "num_experts"},
        lost=("use_bidirectional_attention",),
        tokenizer="GemmaTokenizer",
    ),
    HfClass(
        moe.GRANITE_MOE,
        "granitemoe",
        names=GRANITE_NAMES,
        sources=GRANITE_SOURCES,
        sparse=True,
        biases={"attention_bias": ATTENTION},
    ),
    HfClass(moe.OLMOE, "olmoe", sparse=True, biases={"attention_bias": ATTENTION}),
    HfClass(
        moe.MINIMAX_M2,
        "minimax_m2",
        names=MIXTRAL_NAMES,
        sources=correction("block_sparse_moe.e_score_correction_bias"),
        sparse=True,
    ),
    HfClass(
        moe.SOLAR_OPEN,
        "solar_open",
        names=GLM4_MOE_NAMES,
        sources=GATE_CORRECTION,
        sparse=True,
        biases={"attention_bias": QKV},
        when=lambda given: given.number(L.NEXTN_PREDICT_LAYERS) is None,
    ),
    HfClass(
        moe.GLM4_MOE,
        "glm4_moe",
        names=GLM4_MOE_NAMES,
        sources=GATE_CORRECTION,
        sparse=True,
        biases={"attention_bias": QKV},
        more=head_norms("use_qk_norm"),
    ),
    HfClass(
        moe.ERNIE4_5_MOE,
        "ernie4_5_moe",
        names=SHARED_EXPERTS,
        sources=correction("mlp.moe_statics.e_score_correction_bias"),
        sparse=True,
        biases={"use_bias": ATTENTION},
    ),
    HfClass(
        moe.DOTS1,
        "dots1",
        names=SHARED_EXPERTS,
        sources=GATE_CORRECTION,
        sparse=True,
        biases={"attention_bias": ATTENTION},
    ),
    HfClass(
        moe.EXAONE_MOE,
        "exaone_moe",
        names=SHARED_EXPERTS,
        sources=correction("mlp.e_score_correction_bias"),
        sparse=True,
        more=windows,
    ),
    HfClass(
        moe.LLAMA4,
        "llama4_text",
        names=LLAMA4_NAMES,
        sources=LLAMA4_SOURCES,
        sparse=True,
        biases={"attention_bias": ATTENTION},
        renamed={"intermediate_size": "intermediate_size_mlp", "moe_intermediate_size": "intermediate_size"},
    ),
    HfClass(latent.DEEPSEEK2, "deepseek_v2", when=gating(ExpertGatingFuncType.SOFTMAX), **LATENT),
    HfClass(latent.DEEPSEEK3, "deepseek_v3", **LATENT),
    HfClass(latent.MISTRAL4, "mistral4", sparse=True, names=LATENT_NAMES, sources=MISTRAL4_SOURCES, more=mistral4),
)
LEARNED = (
    HfClass(
        gpt.GPT2,
        "gpt2",
        names=GPT2_NAMES,
        biases={"": NORM_BIASES},
        renamed={"layer_norm_eps": "layer_norm_epsilon", "intermediate_size": "n_inner"},
        lost=("num_key_value_heads",),
    ),
    HfClass(
        gpt.GPT_BIGCODE,
        "gpt_bigcode",
        names=GPT2_NAMES,
        biases={"": NORM_BIASES | UNGATED | {T.ATTN_QKV, T.ATTN_OUT}},
        renamed={"layer_norm_eps": "layer_norm_epsilon", "intermediate_size": "n_inner"},
    ),
)
CLASSES = (*CLASSIC, *DENSE, *HYBRID, *PICTURES, *STATES, *SPARSE, *LEARNED)
