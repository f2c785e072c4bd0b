"""The language models of those that see or hear: Qwen-VL, Mistral 3, SmolVLM, LFM2-VL, Voxtral, Qwen2-Audio.

Their encoders are left out.
"""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32, i32s
from ggufsmith.convert.architecture import ConfigKey, Dims, Fused, copy
from ggufsmith.convert.architectures.classic import LLAMA, QWEN2, QWEN3, QWEN3_MOE
from ggufsmith.convert.architectures.groups import (
    AUDIO_TOWER,
    PACKED_EXPERTS,
    VISION_TOWER,
    T,
    mrope_sections,
    rope_field,
)
from ggufsmith.convert.architectures.latent import MISTRAL4
from ggufsmith.convert.architectures.lfm2 import LFM2
from ggufsmith.convert.config import Config


def deepstack(config: Config, dims: Dims) -> int:
    """How many layers of the encoder reach into the language model."""
    layers = config.mapping("vision_config").get("deepstack_visual_indexes", [])
    return len(layers) if isinstance(layers, list) else 0


def mistral3_check(config: Config, dims: Dims) -> str | None:
    """A sentence if the rotary embedding is not what llama.cpp's graph assumes, else None."""
    kind = rope_kind(config)
    if config.first("model_type") == "ministral3" and kind != "yarn":
        return f"the rope type of ministral3 is {kind!r}, but llama.cpp assumes 'yarn'"
    return None


def rope_kind(config: Config) -> object:
    """The rope type that the config names."""
    return {**config.mapping("rope_scaling"), **config.mapping("rope_parameters")}.get("rope_type")


SECTIONS = ConfigKey(Keys.Rope.DIMENSION_SECTIONS, i32s, computed=mrope_sections())
DEEPSTACK = ConfigKey(Keys.LLM.NUM_DEEPSTACK_LAYERS, computed=deepstack)

QWEN2VL = replace(
    QWEN2,
    arch=MODEL_ARCH.QWEN2VL,
    classes=("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    keys=(*QWEN2.keys, SECTIONS),
    models="Qwen2-VL, Qwen2.5-VL (text)",
    rope=replace(QWEN2.rope, theta=1e6),
    defaults={"max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
    drop={**QWEN2.drop, **VISION_TOWER},
    pooling=False,
)
QWEN3VL = replace(
    QWEN3,
    arch=MODEL_ARCH.QWEN3VL,
    classes=("Qwen3VLForConditionalGeneration",),
    keys=(*QWEN3.keys, SECTIONS, DEEPSTACK),
    models="Qwen3-VL (text)",
    rope=replace(QWEN3.rope, theta=5e6),
    drop={**QWEN3.drop, **VISION_TOWER},
    defaults={"max_position_embeddings": 128000, "head_dim": 128},
    pooling=False,
)
QWEN3VL_MOE = replace(
    QWEN3_MOE,
    arch=MODEL_ARCH.QWEN3VLMOE,
    classes=("Qwen3VLMoeForConditionalGeneration",),
    keys=(*QWEN3_MOE.keys, SECTIONS, DEEPSTACK),
    models="Qwen3-VL (mixture of experts, text)",
    rope=QWEN3VL.rope,
    fused=(
        replace(PACKED_EXPERTS[0], either=True),
        Fused("mlp.experts.down_proj", "experts embd expert_ff", ((T.FFN_DOWN_EXP, copy),), either=True),
    ),
    drop=QWEN3VL.drop,
    require={**QWEN3_MOE.require, "norm_topk_prob": (True,)},
    defaults={**QWEN3VL.defaults, "norm_topk_prob": True, "num_experts_per_tok": 8},
)
MISTRAL3 = replace(
    LLAMA,
    arch=MODEL_ARCH.MISTRAL3,
    classes=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    keys=(
        *LLAMA.keys,
        ConfigKey(Keys.Rope.SCALING_YARN_LOG_MUL, f32, computed=rope_field("mscale_all_dim")),
        ConfigKey(Keys.Attention.TEMPERATURE_SCALE, f32, computed=rope_field("llama_4_scaling_beta")),
    ),
    models="Mistral Small 3.1 and 3.2, Devstral, Magistral, Ministral 3 (text)",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    drop={**LLAMA.drop, **VISION_TOWER},
    check=mistral3_check,
    variants={"mistral4": MISTRAL4},
)

SMOLVLM = replace(
    LLAMA,
    classes=("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    models="SmolVLM, Idefics 3 (text)",
    defaults={**LLAMA.defaults, "num_attention_heads": 32},  # which SmolVLM 2.2B leaves out
    drop={**LLAMA.drop, **VISION_TOWER, "connector.": next(iter(VISION_TOWER.values()))},
    pooling=False,
)
LLAVA = replace(
    LLAMA,
    classes=("LlavaForConditionalGeneration",),
    models="Pixtral 12B, LLaVA 1.5 (text)",
    drop={**LLAMA.drop, **VISION_TOWER},
    pooling=False,
)
LFM2VL = replace(
    LFM2,
    classes=("Lfm2VlForConditionalGeneration",),
    models="LFM2-VL (text)",
    drop={**LFM2.drop, **VISION_TOWER},
    pooling=False,
)

VOXTRAL = replace(
    LLAMA,
    classes=("VoxtralForConditionalGeneration",),
    models="Voxtral (text)",
    rope=replace(LLAMA.rope, theta=1e8),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    drop={**LLAMA.drop, **AUDIO_TOWER},
    pooling=False,
)
QWEN2_AUDIO = replace(
    QWEN2,
    classes=("Qwen2AudioForConditionalGeneration",),
    models="Qwen2-Audio (text)",
    drop={**QWEN2.drop, **AUDIO_TOWER},
    defaults={
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
    },
    pooling=False,
)

AUDIO_FLAMINGO = replace(
    QWEN2,
    classes=("AudioFlamingo3ForConditionalGeneration",),
    models="Audio Flamingo 3 (text)",
    drop={**QWEN2.drop, **AUDIO_TOWER},
    pooling=False,
)

VISION_LANGUAGE = (
    *(QWEN2VL, QWEN3VL, QWEN3VL_MOE, MISTRAL3, SMOLVLM, LLAVA, LFM2VL, VOXTRAL, QWEN2_AUDIO),
    AUDIO_FLAMINGO,
)
