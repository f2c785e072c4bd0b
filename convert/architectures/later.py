"""The Hugging Face classes that llama.cpp's converter knows and ggufsmith does not yet: they are refused by name.

`tests/conformance/test_zoo.py` compares the list with the converter's own.
"""

from collections.abc import Collection, Mapping, Sequence

from ggufsmith.container.text import nearest

LATER = frozenset(
    """
    ArcticForCausalLM BailingMoeV3VLForConditionalGeneration CodeShellForCausalLM CogVLMForCausalLM
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV4DSparkModel DistilBertForSequenceClassification
    DreamModel Gemma4DSparkModel Glm5vForConditionalGeneration GlmasrModel GPTRefactForCausalLM
    GraniteSwitchForCausalLM Grok1ForCausalLM GrokForCausalLM InternVisionModel IQuestCoderForCausalLM
    JAISLMHeadModel Lfm25AudioTokenizer Lfm2AudioForConditionalGeneration LLaDAModelLM LLaDAMoEModel
    LLaDAMoEModelLM LlavaStableLMEpochForCausalLM MambaLMHeadModel MapleForCausalLM
    MERaLiON2ForConditionalGeneration MiMoV2ForCausalLM MiniMaxM1ForCausalLM MiniMaxText01ForCausalLM
    NanbeigeForCausalLM NemotronH_Nano_VL_V2 NemotronHPuzzleForCausalLM NeoBERTForSequenceClassification
    OpenELMForCausalLM PaddleOCRVisionModel Plamo2ForCausalLM PLaMo2ForCausalLM PLaMo3ForCausalLM
    Plamo3ForCausalLM PlamoForCausalLM PLMForCausalLM PocketTTSModel Qwen3TTSForConditionalGeneration RADIOModel
    RND1 RuGPT3XLForCausalLM Rwkv6ForCausalLM RWKV6Qwen2ForCausalLM Rwkv7ForCausalLM RWKV7ForCausalLM
    RwkvHybridForCausalLM Sarashina2VisionForCausalLM Spark2_5ForCausalLM TalkieForCausalLM UltravoxModel
    UnlimitedOCRForCausalLM VLlama3ForCausalLM WavTokenizerDec YoutuVLForConditionalGeneration
    """.split()
)

PLAMO2 = "llama.cpp does not return from its first token"
DRAFT = "its drafts hold parts that are not written yet"
# Of some of them, what prevents it (docs/architectures.md has more).
WHY: Mapping[str, str] = {
    "DistilBertForSequenceClassification": "llama.cpp computes a tanh in the classifier, where the model has a ReLU",
    "GlmasrModel": "llama.cpp adds positions to its encoder, which rotates half of every head",
    "UltravoxModel": "its folders hold no text model",
    "PocketTTSModel": "it writes sound, by graphs for which there are no records",
    "Plamo2ForCausalLM": PLAMO2,
    "PLaMo2ForCausalLM": PLAMO2,
    "MiMoV2ForCausalLM": "its weights are stored in parts for several devices",
    "Gemma4DSparkModel": DRAFT,
    "DeepseekV4DSparkModel": DRAFT,
}


def refusal(classes: Sequence[str], known: Collection[str]) -> str:
    """What to say of a model of these classes, of which none is known."""
    near = next(iter(nearest(classes[0], known)), None)
    later = next((name for name in classes if name in LATER), None)
    if later is None:
        what = f"architecture {classes[0]} is not supported, as llama.cpp has no runtime for it"
        return what + (f"; the nearest known one is {near}" if near else "")
    if why := WHY.get(later):
        return f"architecture {later} is known to llama.cpp, but ggufsmith does not convert it: {why}"
    what = f"architecture {later} is known to llama.cpp, but ggufsmith does not convert it yet"
    return what + (f"; the nearest one that it converts is {near}" if near else "")
