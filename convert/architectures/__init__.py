"""The architectures, as data. Adding one is adding a record to a module here, and its classes to MODULES; the words are
explained in `convert/architecture.py`.

Which tensors and keys each graph reads: src/models/*.cpp of llama.cpp. Defaults: the configuration classes of
transformers. Tensor and key names: `gguf.constants`; Hugging Face names: `gguf.tensor_mapping`.
"""

from collections.abc import Mapping

from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.by_class import ByClass

# Module -> the classes (`architectures` in config.json) that its RECORDS are for, in the order of the documentation.
MODULES: Mapping[str, str] = {
    "classic": """
        LlamaForCausalLM LLaMAForCausalLM LlamaModel InternLM3ForCausalLM MistralForCausalLM MistralModel
        MixtralForCausalLM Qwen2ForCausalLM Qwen2Model Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3Model
        Qwen3MoeForCausalLM Phi3ForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration
    """,
    "dense": """
        Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM OLMoForCausalLM SmolLM3ForCausalLM SeedOssForCausalLM
        GraniteForCausalLM ArceeForCausalLM Starcoder2ForCausalLM StableLmForCausalLM StableLMEpochForCausalLM
        CohereForCausalLM Cohere2ForCausalLM Exaone4ForCausalLM Ernie4_5ForCausalLM Ernie4_5_ForCausalLM
        HunYuanDenseV1ForCausalLM Jais2ForCausalLM NemotronForCausalLM GemmaForCausalLM GlmForCausalLM
        Glm4ForCausalLM PhiForCausalLM
    """,
    "qwen_hybrid": """
        Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM
        Qwen3_5MoeForConditionalGeneration Qwen3NextForCausalLM
    """,
    "gpt_oss": "GptOssForCausalLM",
    "gemma4": "Gemma4ForCausalLM Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration",
    "vision_language": """
        Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration Qwen2VLModel
        Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Ministral3ForCausalLM
        Mistral3ForConditionalGeneration SmolVLMForConditionalGeneration Idefics3ForConditionalGeneration
        LlavaForConditionalGeneration Exaone4_5_ForConditionalGeneration Lfm2VlForConditionalGeneration
        Glm4vForConditionalGeneration GlmOcrForConditionalGeneration Glm4vMoeForConditionalGeneration
        InternVLForConditionalGeneration InternVLChatModel PaddleOCRVLForConditionalGeneration
        HunYuanVLForConditionalGeneration JanusForConditionalGeneration MiniCPMV4_6ForConditionalGeneration
        DotsOCRForCausalLM StepVLForConditionalGeneration LightOnOcrForConditionalGeneration
        LightOnOCRForConditionalGeneration
    """,
    "moe": """
        GraniteMoeForCausalLM OlmoeForCausalLM MiniMaxM2ForCausalLM Glm4MoeForCausalLM Ernie4_5_MoeForCausalLM
        Dots1ForCausalLM SolarOpenForCausalLM ExaoneMoeForCausalLM ExaoneMoEForCausalLM Llama4ForCausalLM
        Llama4ForConditionalGeneration
    """,
    "newer_moe": "Cohere2MoeForCausalLM HunYuanMoEV1ForCausalLM HYV3ForCausalLM AfmoeForCausalLM",
    "latent": """
        DeepseekV2ForCausalLM DeepseekV3ForCausalLM Kimi_K25ForConditionalGeneration
        KimiK25ForConditionalGeneration KimiVLForConditionalGeneration Glm4MoeLiteForCausalLM
        Mistral4ForCausalLM MistralLarge3ForCausalLM YoutuForCausalLM
    """,
    "mimo": "MiMoV2FlashForCausalLM",
    "laguna": "LagunaForCausalLM",
    "minimax_m3": "MiniMaxM3SparseForConditionalGeneration MiniMaxM3SparseForCausalLM",
    "sparse_attention": "DeepseekV32ForCausalLM GlmMoeDsaForCausalLM",
    "lfm2": "Lfm2ForCausalLM LFM2ForCausalLM Lfm2Model Lfm2BidirectionalModel Lfm2MoeForCausalLM",
    "gpt": "GPTBigCodeForCausalLM GPT2LMHeadModel",
    "fused_heads": """
        GPTNeoXForCausalLM FalconForCausalLM RWForCausalLM BloomForCausalLM BloomModel MptForCausalLM
        MPTForCausalLM InternLM2ForCausalLM
    """,
    "baichuan": "BaiChuanForCausalLM BaichuanForCausalLM",
    "encoders": """
        BertModel BertForMaskedLM BertForSequenceClassification DistilBertModel DistilBertForMaskedLM
        XLMRobertaModel XLMRobertaForSequenceClassification RobertaModel RobertaForSequenceClassification
        CamembertModel NomicBertModel ModernBertModel ModernBertForMaskedLM ModernBertForSequenceClassification
        EuroBertModel JinaEmbeddingsV5Model Gemma3TextModel T5EncoderModel
    """,
    "state_space": "MambaForCausalLM FalconMambaForCausalLM Mamba2ForCausalLM",
    "hybrid": "GraniteMoeSharedForCausalLM GraniteMoeHybridForCausalLM NemotronHForCausalLM JambaForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "activations": "ApertusForCausalLM",
    "phimoe": "PhimoeForCausalLM PhiMoEForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "gemma3n": "Gemma3nForCausalLM Gemma3nForConditionalGeneration",
    "windows": "GraniteSWAForCausalLM GraniteMoeSWAForCausalLM MellumForCausalLM",
    "t5": """
        T5ForConditionalGeneration T5WithLMHeadModel MT5ForConditionalGeneration UMT5ForConditionalGeneration
        UMT5Model
    """,
    "kimi_linear": "KimiLinearForCausalLM KimiLinearModel",
    "hrm": "HrmTextForCausalLM",
    "muse_glimmer": "MuseGlimmerForConditionalGeneration",
    "dbrx": "DbrxForCausalLM",
    "bamba": "BambaForCausalLM",
    "step35": "Step3p7ForConditionalGeneration Step3p5ForCausalLM",
    "hy_v4": "HYV4ForCausalLM",
    "chameleon": "ChameleonForConditionalGeneration ChameleonForCausalLM",
    "chatglm": "QWenLMHeadModel ChatGLMModel ChatGLMForConditionalGeneration",
    "kin": """
        Phi4ForCausalLMV MiniCPMForCausalLM ExaoneForCausalLM OrionForCausalLM XverseForCausalLM
        PanguEmbeddedForCausalLM MaincoderForCausalLM KORMoForCausalLM
    """,
    "bitnet": "BitnetForCausalLM BitNetForCausalLM",
    "deci": "DeciLMForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "further_encoders": "LlamaBidirectionalModel JinaBertForMaskedLM JinaBertModel NeoBERTLMHead NeoBERT",
    "deepseek4": "DeepseekV4ForCausalLM",
    "glm5_next": "Glm5NextForConditionalGeneration",
    "kimi_k3": "KimiK3ForConditionalGeneration",
    "ling": """
        BailingMoeForCausalLM BailingMoeV2ForCausalLM SarvamMoEForCausalLM BailingHybridForCausalLM
        BailingMoeV3ForCausalLM GroveMoeForCausalLM SmallThinkerForCausalLM
    """,
    "hearing": """
        VoxtralForConditionalGeneration Qwen2AudioForConditionalGeneration
        AudioFlamingo3ForConditionalGeneration GraniteSpeechForConditionalGeneration
        GraniteSpeechPlusForConditionalGeneration Qwen3ASRForConditionalGeneration
        Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel Qwen3OmniMoeForConditionalGeneration
    """,
    "granite_vision": "Granite4VisionForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForCausalLM Qwen4ExpForConditionalGeneration",
    "dots3": "Dots3NoteForCausalLM Dots3NoteForConditionalGeneration Dots3NoteTextForCausalLM",
    "drafts": """
        Gemma4AssistantForCausalLM Gemma4UnifiedAssistantForCausalLM LlamaForCausalLMEagle3
        Eagle3LlamaForCausalLM Eagle3DraftModel Eagle3Speculator DFlashDraftModel DFlash2DraftModel
        MuseGlimmerAssistantModel Qwen3DSparkModel DSparkDraftModel DSparkSpeculator Lfm2DSparkDraftModel
        LingDSparkModel
    """,
}

ARCHITECTURES: ByClass[Architecture] = ByClass(__name__, MODULES)

# Config keys that say nothing about the converted model: training, generation defaults, bookkeeping. Special token ids
# are read by the tokenizer, the rope keys by convert/rope.py.
IGNORED = frozenset(
    """
    _name_or_path architectures attention_bias attention_dropout attn_implementation auto_map bos_token_id
    cache_implementation chunk_size_feed_forward compression_config decoder_sparse_step dtype embd_pdrop
    eos_token_id hidden_dropout id2label initializer_range is_decoder is_encoder_decoder label2id layer_types
    max_window_layers mlp_bias mlp_only_layers model_type num_experts num_labels num_local_experts
    output_attentions output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type
    qkv_bias quantization quantization_config resid_pdrop return_dict router_aux_loss_coef router_jitter_noise
    sep_token_id sliding_window task_specific_params tie_word_embeddings tokenizer_class torch_dtype
    transformers_version unk_token_id unsloth_fixed unsloth_version use_cache use_sliding_window vocab_size
    rope_interleaved boi_token_index eoi_token_index image_token_index audio_token_index mm_tokens_per_image text_config
    vision_config _sliding_window_pattern sliding_window_pattern residual_dropout embedding_dropout use_bias
    use_qkv_bias qk_layernorm use_qk_norm image_token_id video_token_id vision_start_token_id
    vision_end_token_id projector_hidden_act vision_feature_layer multimodal_projector_bias spatial_merge_size
    enable_moe_block moe_layer_end_index moe_norm_min attn_pdrop summary_type summary_use_proj
    summary_proj_to_labels summary_first_dropout summary_activation reorder_and_upcast_attn n_ctx
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 block_multiple_of block_ffn_dim_multiplier
    num_nextn_predict_layers qk_head_dim topk_method mlp_layer_types moe_layers no_rope_layers
    attn_temperature_tuning initial_context_length experts_per_token mamba_ssm_dtype audio_config audio_token_id
    boa_token_id eoa_token_id boi_token_id eoi_token_id vision_soft_tokens_per_image ep_size aux_loss_alpha
    seq_aux moe_layer_freq _pad_token_id scale_factor downsample_factor projector_bias projector_hidden_size
    projector_use_layernorm eoa_token_index image_seq_length vision_feature_select_strategy
    attention_probs_dropout_prob hidden_dropout_prob classifier_dropout gradient_checkpointing pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type directionality dropout qa_dropout
    seq_classif_dropout sinusoidal_pos_embds sentence_transformers sbert_ce_default_activation_function
    cls_token_id mask_token_id classifier_pooling decoder_bias sparse_prediction sparse_pred_ignore_index
    deterministic_flash_attn initializer_cutoff_factor mlp_dropout dense_seq_output fused_bias_fc fused_dropout_add_ln
    max_trained_positions pad_vocab_size_multiple parallel_block_tied_norm scale_attn_by_inverse_layer_idx
    scale_attn_weights use_flash_attn use_xentropy ffn_div moe_impl moe_resid_pdrop moe_every_n_layers
    expert_choice_router num_shared_experts router_aux_loss_coef add_pooling_layer use_bidirectional_attention
    merged_hidden_size video_token_index shared_intermediate_size prefix_dense_sliding_window_pattern
    enable_moe_fp32_combine add_full_attention_sink_bias
    add_swa_attention_sink_bias
    rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_init_scheme time_step_max time_step_min
    time_step_scale use_associative_scan use_mambapy use_mamba_kernels mamba_ssm_cache_dtype chunk_size
    mamba_chunk_size num_logits_to_keep pad_vocab_size_multiple norm_before_gate fused_add_norm time_step_rank
    bias_dropout_fusion emb_pdrop embedding_fraction init_config init_device learned_pos_emb masked_softmax_fusion
    offset_alibi skip_bias_add skip_bias_add_qkv slow_but_exact tokenizer_name verbose z_loss_weight
    moe_shared_expert_overlap mtp_layers_block_type mtp_hybrid_override_pattern hidden_dropout
    input_jitter_noise lm_head_bias altup_coef_clip mtp_layer_types mtp_mlp_layer_types num_mtp_layers
    num_decoder_layers decoder_start_token_id dropout_rate initializer_factor scale_decoder_outputs is_gated_act
    im_start_id im_end_id im_newline_id downsample_ratio image_start_token_id image_end_token_id video_start_token_id
    video_end_token_id vq_config downsample_mode drop_vision_last_layer insert_layer_id merge_kernel_size merger_times
    image_size patch_size
    tie_encoder_decoder output_past use_grouped_topk embedding_initializer_range
    L_bp_cycles out_hidden_size z_loss_coefficient
    use_ordered_embeddings num_centroids centroid_intermediate_top_k
    add_qkv_bias apply_query_key_layer_scaling fp32_residual_connection bf16 fp16 fp32 onnx_safe attn_dropout_prob
    emb_dropout_prob prefix_projection embed_dropout max_tokenizer_truncation bias embedding_init_range
    decoder_init_range flash_attention base_scale dim_head emb_pooler model_max_length input_bits
    encoder_config projector_config downsample_rate window_size timestamp_token_id token_classification_bias
    talker_config code2wav_config enable_audio_output audio_start_token_id audio_end_token_id
    position_id_per_seconds user_token_id system_token_id assistant_token_id im_start_token_id im_end_token_id
    tts_bos_token_id tts_eos_token_id tts_pad_token_id
    understand_projector_stride llm_config force_image_size dynamic_image_size image_fold max_dynamic_patch
    min_dynamic_patch pad2square ps_version select_layer template system_message use_backbone_lora use_llm_lora
    use_thumbnail use_bfloat16 add_cross_attention bad_words_ids begin_suppress_tokens cross_attention_hidden_size
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix pruned_heads
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature tf_legacy_loss
    top_k top_p torchscript typical_p _attn_implementation_autoset _commit_hash speculators_config
    speculators_model_type speculators_version num_target_layers eagle_config
    projector_dropout qformer_config image_grid_pinpoints
    enable_confidence_head confidence_head_with_markov training_block_size
    seconds_per_chunk token2wav_config
    """.split()
)
