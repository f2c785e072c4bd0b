"""The Hugging Face classes that llama.cpp's converter knows and ggufsmith does not yet: they are refused by name.

`tests/conformance/test_zoo.py` compares the list with the converter's own.
"""

LATER = frozenset(
    """
    ArcticForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM BailingMoeV3ForCausalLM
    BailingMoeV3VLForConditionalGeneration BitNetForCausalLM BitnetForCausalLM ChatGLMForConditionalGeneration
    ChatGLMModel CodeShellForCausalLM CogVLMForCausalLM DeciLMForCausalLM DeepseekForCausalLM
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV4DSparkModel DeepseekV4ForCausalLM DFlash2DraftModel
    DFlashDraftModel DistilBertForSequenceClassification Dots3NoteForCausalLM Dots3NoteForConditionalGeneration
    Dots3NoteTextForCausalLM DotsOCRForCausalLM DreamModel DSparkDraftModel DSparkSpeculator Eagle3DraftModel
    Eagle3LlamaForCausalLM Eagle3Speculator ExaoneForCausalLM Gemma4DSparkModel Glm5NextForConditionalGeneration
    Glm5vForConditionalGeneration GlmasrModel GPTRefactForCausalLM
    GraniteSwitchForCausalLM
    Grok1ForCausalLM GrokForCausalLM GroveMoeForCausalLM InternLM3ForCausalLM InternVisionModel
    IQuestCoderForCausalLM JAISLMHeadModel JinaBertForMaskedLM JinaBertModel JinaEmbeddingsV5Model
    KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration KimiVLForConditionalGeneration
    KORMoForCausalLM Lfm25AudioTokenizer Lfm2AudioForConditionalGeneration Lfm2DSparkDraftModel
    LingDSparkModel LLaDAModelLM LLaDAMoEModel LLaDAMoEModelLM
    LlamaBidirectionalModel LlamaForCausalLMEagle3 LlavaStableLMEpochForCausalLM MaincoderForCausalLM
    MambaLMHeadModel MapleForCausalLM MERaLiON2ForConditionalGeneration MiMoV2ForCausalLM MiniCPMForCausalLM
    MiniMaxM1ForCausalLM MiniMaxText01ForCausalLM MuseGlimmerAssistantModel NanbeigeForCausalLM
    NemotronH_Nano_VL_V2 NemotronHPuzzleForCausalLM NeoBERT NeoBERTForSequenceClassification NeoBERTLMHead
    OpenELMForCausalLM OrionForCausalLM PaddleOCRVisionModel PanguEmbeddedForCausalLM Phi4ForCausalLMV
    PLaMo2ForCausalLM Plamo2ForCausalLM PLaMo3ForCausalLM Plamo3ForCausalLM PlamoForCausalLM PLMForCausalLM
    PocketTTSModel Qwen3DSparkModel
    Qwen3TTSForConditionalGeneration Qwen4ExpForCausalLM
    Qwen4ExpForConditionalGeneration QWenLMHeadModel RADIOModel RND1 RuGPT3XLForCausalLM Rwkv6ForCausalLM
    RWKV6Qwen2ForCausalLM RWKV7ForCausalLM Rwkv7ForCausalLM RwkvHybridForCausalLM Sarashina2VisionForCausalLM
    SarvamMoEForCausalLM SmallThinkerForCausalLM Spark2_5ForCausalLM StepVLForConditionalGeneration
    TalkieForCausalLM UltravoxModel UnlimitedOCRForCausalLM VLlama3ForCausalLM WavTokenizerDec XverseForCausalLM
    YoutuVLForConditionalGeneration
    """.split()
)
