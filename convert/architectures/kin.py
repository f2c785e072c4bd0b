"""Models much like Llama whose classes are their publishers' own, and not in transformers."""

import math
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys, RopeScalingType

from ggufsmith.container.values import f32, string, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope
from ggufsmith.convert.architectures.classic import PHI3, QWEN2
from ggufsmith.convert.architectures.dense import LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    BASE,
    EMBEDDINGS,
    FEED_FORWARD,
    HEAD_NORMS,
    INVERSE_FREQUENCIES,
    LAYER_NORM,
    LAYER_NORMS,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    ROTARY,
    SILU,
    SIZES,
    STATED_HEAD_SIZE,
    VISION_TOWER,
    VOCAB_SIZE,
    constant,
    rope_fields,
    without,
)
from ggufsmith.convert.config import Config

META_LAYOUT = ConfigKey(Keys.LLM.TENSOR_DATA_LAYOUT, string, computed=constant("Meta AI original pth"))
UNBIASED = tuple(replace(rule, bias=False) for rule in (*ATTENTION, *FEED_FORWARD))


def residual_scale(config: Config, dims: Dims) -> float:
    """What MiniCPM multiplies the output of attention and feed-forward by."""
    return (config.number("scale_depth") or 1.0) / math.sqrt(dims.blocks)


def logit_scale(config: Config, dims: Dims) -> float:
    """What MiniCPM divides hidden states by in front of the head."""
    return dims.embd / (config.number("dim_model_base") or 1.0)


def longrope(config: Config, dims: Dims) -> str | None:
    """The type of a scaling with factors of its own for long contexts, without which llama.cpp does not read them."""
    fields = rope_fields(config)
    kind = fields.get("rope_type") or fields.get("type")
    return RopeScalingType.LONGROPE.value if kind in ("longrope", "su") else None


def trained_context(config: Config, dims: Dims) -> int | None:
    """How many tokens such a model was trained with before; from there on llama.cpp takes the factors for long ones."""
    found = rope_fields(config).get("original_max_position_embeddings")
    return found if longrope(config, dims) and isinstance(found, int) else None


MINICPM = Architecture(
    MODEL_ARCH.MINICPM,
    ("MiniCPMForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *LLAMA_ATTENTION, *FEED_FORWARD),
    keys=(
        *SIZES,
        *STATED_HEAD_SIZE,
        ConfigKey(Keys.LLM.EMBEDDING_SCALE, f32, ("scale_emb",), 1.0),
        ConfigKey(Keys.LLM.RESIDUAL_SCALE, f32, ("scale_depth",), computed=residual_scale),
        ConfigKey(Keys.LLM.LOGIT_SCALE, f32, ("dim_model_base",), computed=logit_scale),
        ConfigKey(Keys.Rope.SCALING_TYPE, string, computed=longrope),
        ConfigKey(Keys.Rope.SCALING_ORIG_CTX_LEN, computed=trained_context),
    ),
    rope=Rope(scaling=("linear", "dynamic", "longrope", "su")),
    require={**SILU, "attention_bias": (False,), "num_experts": (0,)},
    warn={"sparse_config": ((), "llama.cpp attends to the whole context at any length")},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    drop=INVERSE_FREQUENCIES,
    models="MiniCPM, MiniCPM 2, MiniCPM4",
)
EXAONE = Architecture(
    MODEL_ARCH.EXAONE,
    ("ExaoneForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *UNBIASED),
    keys=(*SIZES, *STATED_HEAD_SIZE, ROTARY),
    rope=Rope(scaling=("linear", "llama3")),
    require={"activation_function": ("silu",)},
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    drop=INVERSE_FREQUENCIES,
    models="EXAONE 3, 3.5 and Deep",
    aliases={"layer_norm_epsilon": "rms_norm_eps", "num_layers": "num_hidden_layers"},
)
ORION = Architecture(
    MODEL_ARCH.ORION,
    ("OrionForCausalLM",),
    tensors=(EMBEDDINGS[0], OUTPUT_OR_EMBEDDING, *LAYER_NORMS, *UNBIASED),
    keys=(*BASE, replace(LAYER_NORM, names=("rms_norm_eps",)), META_LAYOUT),
    rope=Rope(scaling=()),
    require={**SILU, "attention_bias": (False,)},
    drop=INVERSE_FREQUENCIES,
    models="Orion 14B",
    aliases={"max_sequence_length": "max_position_embeddings"},
)
XVERSE = Architecture(
    MODEL_ARCH.XVERSE,
    ("XverseForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *(replace(rule, bias=False) for rule in (*LLAMA_ATTENTION, *FEED_FORWARD)),
    ),
    keys=(
        *without(SIZES, Keys.Attention.HEAD_COUNT_KV),
        ConfigKey(Keys.Attention.HEAD_COUNT_KV, u32, ("num_key_value_heads",), None),
        *(*STATED_HEAD_SIZE, META_LAYOUT, ROTARY),
    ),
    rope=Rope(scaling=()),
    require={**SILU, "num_experts": (), "moe_top_k": ()},
    defaults={"max_position_embeddings": 8192},
    drop=INVERSE_FREQUENCIES,
    models="XVERSE 7B, 13B and 65B",
)
PANGU = Architecture(
    MODEL_ARCH.PANGU_EMBED,
    ("PanguEmbeddedForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *(replace(rule, bias=True) for rule in ATTENTION), *UNBIASED[4:]),
    keys=(
        *SIZES,
        VOCAB_SIZE,
        ROTARY,
        ConfigKey(Keys.Attention.KEY_LENGTH, of=lambda d: d.head_dim),
        ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.head_dim),
    ),
    rope=Rope(scaling=("linear", "yarn"), theta=16e6),
    require={**SILU, "bias": (True,)},
    defaults={"max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
    drop=INVERSE_FREQUENCIES,
    models="openPangu Embedded",
)
MAINCODER = Architecture(
    MODEL_ARCH.MAINCODER,
    ("MaincoderForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *UNBIASED, *HEAD_NORMS),
    keys=(*SIZES, *STATED_HEAD_SIZE, ROTARY),
    rope=Rope(scaling=()),
    require={**SILU, "attention_bias": (False,), "mlp_bias": (False,), "use_qk_norm": (True,)},
    models="Maincoder",
)
KORMO = replace(
    QWEN2,
    classes=("KORMoForCausalLM",),
    keys=(*SIZES, *STATED_HEAD_SIZE),
    rope=Rope(theta=500000.0),
    defaults={"max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    pooling=False,
    models="KORMo",
)

PHI4_VISION = replace(
    PHI3,
    classes=("Phi4ForCausalLMV",),
    drop={**PHI3.drop, **VISION_TOWER, "mm_projector.": VISION_TOWER["vision_tower."]},
    models="Phi-4-reasoning-vision (text)",
)

RECORDS = (PHI4_VISION, MINICPM, EXAONE, ORION, XVERSE, PANGU, MAINCODER, KORMO)
