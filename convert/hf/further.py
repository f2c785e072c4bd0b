"""All classes that a GGUF file can be turned back into: those of `hf.classes`, and the later architectures."""

from gguf.constants import ExpertGatingFuncType, Keys

from ggufsmith.convert.architectures import (
    activations,
    dense,
    gemma3n,
    gemma4,
    gpt,
    gpt_oss,
    latent,
    lfm2,
    minicpm3,
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
    in_blocks,
)
from ggufsmith.convert.hf.fused_heads import FUSED_HEADS
from ggufsmith.convert.hf.later import LATER
from ggufsmith.convert.hf.names import (
    APERTUS_NAMES,
    GATE_CORRECTION,
    GEMMA3N_NAMES,
    GEMMA3N_SOURCES,
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
from ggufsmith.convert.hf.newer import NEWER
from ggufsmith.convert.hf.several import (
    DENSE_LATENT,
    LATENT,
    convolutions,
    every,
    gating,
    gemma3n_layers,
    gemma4_layers,
    head_norms,
    layered_windows,
    linear,
    mistral3,
    mistral4,
    qwen3_vl,
    qwen35,
    sections,
    windows,
    yarn,
)
from ggufsmith.convert.hf.states import STATES

L, A = Keys.LLM, Keys.Attention
NORM_BIASES = frozenset((T.OUTPUT_NORM, T.ATTN_NORM, T.FFN_NORM))
UNGATED = frozenset((T.FFN_UP, T.FFN_DOWN))
EXPERT_BIASES = frozenset((T.FFN_GATE_INP, T.FFN_GATE_EXP, T.FFN_UP_EXP, T.FFN_DOWN_EXP))

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
    HfClass(activations.APERTUS, "apertus", names=APERTUS_NAMES),
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
    HfClass(
        dense.GLM,
        "glm",
        names=GLM4_NAMES,
        biases={"attention_bias": QKV},
        constants={"attention_bias": False},
        more=lambda given: {"head_dim": given.whole(L.EMBEDDING_LENGTH) // max(given.whole(A.HEAD_COUNT), 1)},
    ),
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
    HfClass(latent.YOUTU, "youtu", when=lambda given: given.whole(L.EXPERT_COUNT) == 0, **DENSE_LATENT),
    HfClass(latent.DEEPSEEK2, "deepseek_v2", when=gating(ExpertGatingFuncType.SOFTMAX), **LATENT),
    HfClass(
        latent.GLM4_MOE_LITE, "glm4_moe_lite", when=lambda given: given.whole(L.NEXTN_PREDICT_LAYERS) > 0, **LATENT
    ),
    HfClass(latent.DEEPSEEK3, "deepseek_v3", **LATENT),
    HfClass(latent.MISTRAL4, "mistral4", sparse=True, names=LATENT_NAMES, sources=MISTRAL4_SOURCES, more=mistral4),
)
STREAMS = (
    HfClass(
        gemma3n.GEMMA3N,
        "gemma3n_text",
        names=GEMMA3N_NAMES,
        sources=GEMMA3N_SOURCES,
        more=gemma3n_layers,
        lost=("rope_theta", "rope_local_base_freq"),
        tokenizer="GemmaTokenizer",
    ),
)
LATENTS = (
    HfClass(
        minicpm3.MINICPM3,
        "minicpm3",
        names=LATENT_NAMES | in_blocks({T.ATTN_KV_B: "self_attn.kv_b_proj"}),
        more=lambda given: {"qk_nope_head_dim": given.whole(A.KEY_LENGTH) - given.whole(Keys.Rope.DIMENSION_COUNT)},
        lost=("partial_rotary_factor",),
    ),
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
CLASSES = (
    *(*CLASSIC, *DENSE, *HYBRID, *PICTURES, *STATES, *SPARSE, *NEWER, *STREAMS, *LATENTS, *LEARNED),
    *FUSED_HEADS,
    *LATER,
)
