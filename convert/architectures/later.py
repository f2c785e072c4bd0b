"""The Hugging Face classes that llama.cpp's converter knows and ggufsmith does not yet: they are refused by name.

`tests/conformance/test_zoo.py` compares the list with the converter's own.
"""

LATER = frozenset(
    """
    ArcticForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM BailingMoeV3ForCausalLM
    BailingMoeV3VLForConditionalGeneration
    CodeShellForCausalLM CogVLMForCausalLM
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV4DSparkModel DeepseekV4ForCausalLM DFlash2DraftModel
    DFlashDraftModel DistilBertForSequenceClassification Dots3NoteForCausalLM Dots3NoteForConditionalGeneration
    Dots3NoteTextForCausalLM DotsOCRForCausalLM DreamModel DSparkDraftModel DSparkSpeculator Eagle3DraftModel
    Eagle3LlamaForCausalLM Eagle3Speculator Gemma4DSparkModel Glm5NextForConditionalGeneration
    Glm5vForConditionalGeneration GlmasrModel GPTRefactForCausalLM Granite4VisionForConditionalGeneration
    GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration GraniteSwitchForCausalLM
    Grok1ForCausalLM GrokForCausalLM GroveMoeForCausalLM InternVisionModel
    IQuestCoderForCausalLM JAISLMHeadModel
    KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration KimiVLForConditionalGeneration
    Lfm25AudioTokenizer Lfm2AudioForConditionalGeneration Lfm2DSparkDraftModel
    LightOnOCRForConditionalGeneration LingDSparkModel LLaDAModelLM LLaDAMoEModel LLaDAMoEModelLM
    LlamaForCausalLMEagle3 LlavaStableLMEpochForCausalLM
    MambaLMHeadModel MapleForCausalLM MERaLiON2ForConditionalGeneration MiMoV2ForCausalLM
    MiniMaxM1ForCausalLM MiniMaxText01ForCausalLM MuseGlimmerAssistantModel NanbeigeForCausalLM
    NemotronH_Nano_VL_V2 NemotronHPuzzleForCausalLM NeoBERTForSequenceClassification
    OpenELMForCausalLM PaddleOCRVisionModel
    PLaMo2ForCausalLM Plamo2ForCausalLM PLaMo3ForCausalLM Plamo3ForCausalLM PlamoForCausalLM PLMForCausalLM
    PocketTTSModel Qwen2_5OmniModel Qwen3ASRForConditionalGeneration Qwen3DSparkModel
    Qwen3OmniMoeForConditionalGeneration Qwen3TTSForConditionalGeneration Qwen4ExpForCausalLM
    Qwen4ExpForConditionalGeneration RADIOModel RND1 RuGPT3XLForCausalLM Rwkv6ForCausalLM
    RWKV6Qwen2ForCausalLM RWKV7ForCausalLM Rwkv7ForCausalLM RwkvHybridForCausalLM Sarashina2VisionForCausalLM
    SarvamMoEForCausalLM SmallThinkerForCausalLM Spark2_5ForCausalLM StepVLForConditionalGeneration
    TalkieForCausalLM UltravoxModel UnlimitedOCRForCausalLM VLlama3ForCausalLM WavTokenizerDec
    YoutuVLForConditionalGeneration
    """.split()
)
