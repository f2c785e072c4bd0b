"""The language models of those that hear: Voxtral, Qwen2-Audio, Audio Flamingo, Granite Speech, Qwen3-ASR and -Omni.

Their encoders are left out.
"""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import i32s
from ggufsmith.convert.architecture import ConfigKey, Dims
from ggufsmith.convert.architectures.classic import LLAMA, QWEN2, QWEN3, QWEN3_MOE
from ggufsmith.convert.architectures.dense import GRANITE
from ggufsmith.convert.architectures.groups import AUDIO_TOWER, mrope_sections
from ggufsmith.convert.architectures.vision_language import QWEN2VL, QWEN3VL, QWEN3VL_MOE, SECTIONS
from ggufsmith.convert.config import Config

HEARS = next(iter(AUDIO_TOWER.values()))

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
GRANITE_SPEECH = replace(
    GRANITE,
    classes=("GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration"),
    models="Granite Speech (text)",
    drop={**GRANITE.drop, **dict.fromkeys(("encoder.", "projector."), HEARS)},
    pooling=False,
    warn={
        "has_lora_adapter": (
            (False,),
            "transformers adds the model's adapter where there is sound; with llama.cpp, load it with --lora "
            "(gguf-convert makes its file of a folder that holds the adapter_* files alone)",
        )
    },
)


def sections(config: Config, dims: Dims) -> list[int] | None:
    """How the dimensions of a head are divided; if nothing says it, 24, 20 and 20 of 64 pairs."""
    pairs = dims.rotary // 2
    height = pairs * 20 // 64
    return mrope_sections((pairs - 2 * height, height, height))(config, dims)


# What it hears takes the places of tokens, each at one position, so that it does not matter how these are divided.
QWEN3_ASR = replace(
    QWEN3,
    arch=MODEL_ARCH.QWEN3VL,
    classes=("Qwen3ASRForConditionalGeneration",),
    keys=(
        *QWEN3.keys,
        ConfigKey(Keys.Rope.DIMENSION_SECTIONS, i32s, computed=sections),
        ConfigKey(Keys.LLM.NUM_DEEPSTACK_LAYERS, of=lambda dims: 0),
    ),
    models="Qwen3-ASR (text)",
    rope=replace(QWEN3.rope, theta=1e6),
    drop={**QWEN3.drop, **AUDIO_TOWER},
    defaults={"max_position_embeddings": 65536, "head_dim": 128},
    spellings={r"^thinker\.": ""},
    pooling=False,
)
SPEAKS = "what speaks; this converts the model that writes"
QWEN2_5_OMNI = replace(
    QWEN2VL,
    classes=("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"),
    models="Qwen2.5-Omni (what it writes)",
    drop={**QWEN2VL.drop, **AUDIO_TOWER, "talker.": SPEAKS, "token2wav.": SPEAKS},
    spellings={r"^thinker\.": ""},
)
# The thinker. llama.cpp cannot load its encoder of images beside that of sound, so that no image reaches its layers.
QWEN3_OMNI = replace(
    QWEN3VL_MOE,
    classes=("Qwen3OmniMoeForConditionalGeneration",),
    keys=(*QWEN3_MOE.keys, SECTIONS, ConfigKey(Keys.LLM.NUM_DEEPSTACK_LAYERS, of=lambda dims: 0)),
    models="Qwen3-Omni (what it writes)",
    drop={**QWEN3VL.drop, **AUDIO_TOWER, "talker.": SPEAKS, "code2wav.": SPEAKS},
    spellings={r"^thinker\.": ""},
)

RECORDS = (VOXTRAL, QWEN2_AUDIO, AUDIO_FLAMINGO, GRANITE_SPEECH, QWEN3_ASR, QWEN2_5_OMNI, QWEN3_OMNI)
