"""The Hugging Face classes that llama.cpp's converter knows and ggufsmith does not yet: they are refused by name.

`tests/conformance/test_zoo.py` compares the list with the converter's own.
"""

LATER = frozenset(
    """
    ArcticForCausalLM
    BailingMoeV3VLForConditionalGeneration BitNetForCausalLM BitnetForCausalLM ChatGLMForConditionalGeneration
    ChatGLMModel CodeShellForCausalLM CogVLMForCausalLM DeciLMForCausalLM DeepseekForCausalLM
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV4DSparkModel DFlash2DraftModel
    DFlashDraftModel DistilBertForSequenceClassification
    DotsOCRForCausalLM DreamModel DSparkDraftModel DSparkSpeculator Eagle3DraftModel
    Eagle3LlamaForCausalLM Eagle3Speculator ExaoneForCausalLM Gemma4DSparkModel
    Glm5vForConditionalGeneration GlmasrModel GPTRefactForCausalLM Granite4VisionForConditionalGeneration
    GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration GraniteSwitchForCausalLM
    Grok1ForCausalLM GrokForCausalLM InternLM3ForCausalLM InternVisionModel
    IQuestCoderForCausalLM JAISLMHeadModel JinaBertForMaskedLM JinaBertModel JinaEmbeddingsV5Model
    KORMoForCausalLM Lfm25AudioTokenizer Lfm2AudioForConditionalGeneration Lfm2DSparkDraftModel
    LightOnOCRForConditionalGeneration LingDSparkModel LLaDAModelLM LLaDAMoEModel LLaDAMoEModelLM
    LlamaBidirectionalModel LlamaForCausalLMEagle3 LlavaStableLMEpochForCausalLM MaincoderForCausalLM
    MambaLMHeadModel MapleForCausalLM MERaLiON2ForConditionalGeneration MiMoV2ForCausalLM MiniCPMForCausalLM
    MiniMaxM1ForCausalLM MiniMaxText01ForCausalLM MuseGlimmerAssistantModel NanbeigeForCausalLM
    NemotronH_Nano_VL_V2 NemotronHPuzzleForCausalLM NeoBERT NeoBERTForSequenceClassification NeoBERTLMHead
    OpenELMForCausalLM OrionForCausalLM PaddleOCRVisionModel PanguEmbeddedForCausalLM Phi4ForCausalLMV
    PLaMo2ForCausalLM Plamo2ForCausalLM PLaMo3ForCausalLM Plamo3ForCausalLM PlamoForCausalLM PLMForCausalLM
    PocketTTSModel Qwen2_5OmniModel Qwen3ASRForConditionalGeneration Qwen3DSparkModel
    Qwen3OmniMoeForConditionalGeneration Qwen3TTSForConditionalGeneration QWenLMHeadModel RADIOModel RND1
    RuGPT3XLForCausalLM Rwkv6ForCausalLM
    RWKV6Qwen2ForCausalLM RWKV7ForCausalLM Rwkv7ForCausalLM RwkvHybridForCausalLM Sarashina2VisionForCausalLM
    Spark2_5ForCausalLM StepVLForConditionalGeneration
    TalkieForCausalLM UltravoxModel UnlimitedOCRForCausalLM VLlama3ForCausalLM WavTokenizerDec XverseForCausalLM
    YoutuVLForConditionalGeneration
    """.split()
)
