"""The architectures, as data. Adding one is adding a record here; the words are explained in `convert/architecture.py`.

Which tensors and keys each graph reads: src/models/*.cpp of llama.cpp. Defaults: the configuration classes of
transformers. Tensor and key names: `gguf.constants`; Hugging Face names: `gguf.tensor_mapping`.
"""

from collections.abc import Mapping

from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.architectures.activations import ACTIVATIONS
from ggufsmith.convert.architectures.baichuan import BAICHUAN, BAICHUAN2
from ggufsmith.convert.architectures.bamba import BAMBA
from ggufsmith.convert.architectures.chameleon import CHAMELEON
from ggufsmith.convert.architectures.classic import CLASSIC
from ggufsmith.convert.architectures.dbrx import DBRX
from ggufsmith.convert.architectures.deepseek4 import DEEPSEEK4
from ggufsmith.convert.architectures.dense import DENSE
from ggufsmith.convert.architectures.dots3 import DOTS3_NOTE
from ggufsmith.convert.architectures.drafts import DRAFTS
from ggufsmith.convert.architectures.encoders import ENCODERS
from ggufsmith.convert.architectures.falcon_h1 import FALCON_H1
from ggufsmith.convert.architectures.fused_heads import FUSED_HEADS
from ggufsmith.convert.architectures.gemma3n import GEMMA3N
from ggufsmith.convert.architectures.gemma4 import GEMMA4, GEMMA4_UNIFIED
from ggufsmith.convert.architectures.glm5_next import GLM5_NEXT
from ggufsmith.convert.architectures.gpt import GPT
from ggufsmith.convert.architectures.gpt_oss import GPT_OSS
from ggufsmith.convert.architectures.hrm import HRM_TEXT
from ggufsmith.convert.architectures.hy_v4 import HY_V4
from ggufsmith.convert.architectures.hybrid import HYBRID
from ggufsmith.convert.architectures.kimi_k3 import KIMI_K3
from ggufsmith.convert.architectures.kimi_linear import KIMI_LINEAR
from ggufsmith.convert.architectures.laguna import LAGUNA
from ggufsmith.convert.architectures.latent import LATENT
from ggufsmith.convert.architectures.lfm2 import LFM2_FAMILY
from ggufsmith.convert.architectures.ling import LING
from ggufsmith.convert.architectures.mimo import MIMO2
from ggufsmith.convert.architectures.minicpm3 import MINICPM3
from ggufsmith.convert.architectures.minimax_m3 import MINIMAX_M3
from ggufsmith.convert.architectures.moe import MOE
from ggufsmith.convert.architectures.muse_glimmer import MUSE_GLIMMER
from ggufsmith.convert.architectures.newer_moe import NEWER_MOE
from ggufsmith.convert.architectures.phimoe import PHIMOE
from ggufsmith.convert.architectures.qwen4_exp import QWEN4_EXP
from ggufsmith.convert.architectures.qwen_hybrid import QWEN_HYBRID
from ggufsmith.convert.architectures.sparse_attention import SPARSE_ATTENTION
from ggufsmith.convert.architectures.state_space import STATE_SPACE
from ggufsmith.convert.architectures.step35 import STEP35
from ggufsmith.convert.architectures.t5 import T5_FAMILY
from ggufsmith.convert.architectures.vision_language import VISION_LANGUAGE
from ggufsmith.convert.architectures.windows import WINDOWS

ARCHITECTURES = (
    *(*CLASSIC, *DENSE, *QWEN_HYBRID, GPT_OSS, GEMMA4, GEMMA4_UNIFIED, *VISION_LANGUAGE, *MOE, *NEWER_MOE, *LATENT),
    *(MIMO2, LAGUNA, MINIMAX_M3, *SPARSE_ATTENTION, *LFM2_FAMILY, *GPT, *FUSED_HEADS, BAICHUAN, BAICHUAN2, *ENCODERS),
    *(*STATE_SPACE, *HYBRID, FALCON_H1, *ACTIVATIONS, PHIMOE, MINICPM3, GEMMA3N, *WINDOWS, *T5_FAMILY, KIMI_LINEAR),
    *(
        HRM_TEXT,
        MUSE_GLIMMER,
        DBRX,
        BAMBA,
        STEP35,
        HY_V4,
        CHAMELEON,
        DEEPSEEK4,
        GLM5_NEXT,
        KIMI_K3,
        QWEN4_EXP,
        DOTS3_NOTE,
        *LING,
    ),
    *DRAFTS,
)
BY_CLASS: Mapping[str, Architecture] = {name: record for record in ARCHITECTURES for name in record.classes}

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
    """.split()
)
