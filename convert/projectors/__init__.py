"""The projectors, as data. Adding one is adding a record to a module here, and its classes to MODULES; the words are
explained in `record`.
"""

from collections.abc import Mapping

from ggufsmith.convert.by_class import ByClass
from ggufsmith.convert.projectors.record import Projector

# Module -> the classes (`architectures` in config.json) that its RECORDS are for, in the order of the documentation.
MODULES: Mapping[str, str] = {
    "qwen": """
        Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration Qwen3VLForConditionalGeneration
        Qwen3VLMoeForConditionalGeneration Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration
        Qwen4ExpForConditionalGeneration
    """,
    "glm": "Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration GlmOcrForConditionalGeneration",
    "siglip": """
        Gemma3ForConditionalGeneration Lfm2VlForConditionalGeneration Idefics3ForConditionalGeneration
        SmolVLMForConditionalGeneration
    """,
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "pixtral": """
        Mistral3ForConditionalGeneration MistralLarge3ForCausalLM LlavaForConditionalGeneration
        LightOnOcrForConditionalGeneration LightOnOCRForConditionalGeneration
    """,
    "internvl": "InternVLForConditionalGeneration InternVLChatModel",
    "paddle": "PaddleOCRVLForConditionalGeneration",
    "hunyuan": "HunYuanVLForConditionalGeneration",
    "janus": "JanusForConditionalGeneration",
    "minicpm": "MiniCPMV4_6ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "whisper": """
        VoxtralForConditionalGeneration Qwen2AudioForConditionalGeneration
        AudioFlamingo3ForConditionalGeneration
    """,
    "granite_speech": "GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration",
    "qwen_audio": "Qwen3ASRForConditionalGeneration Qwen3OmniMoeForConditionalGeneration",
    "exaone": "Exaone4_5_ForConditionalGeneration",
    "dots": "DotsOCRForCausalLM",
    "step": "Step3p7ForConditionalGeneration StepVLForConditionalGeneration",
    "granite_vision": "Granite4VisionForConditionalGeneration",
    "qwen_omni": "Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel",
    "kimi": "KimiVLForConditionalGeneration Kimi_K25ForConditionalGeneration KimiK25ForConditionalGeneration",
}

PROJECTORS: ByClass[Projector] = ByClass(__name__, MODULES)
