"""The names of GGUF: those of the `gguf` package, and of what it does not know yet.

Source: llama.cpp, gguf-py/gguf/constants.py and tensor_mapping.py, of the release that the tests compare with. When the
package has a name, the one here goes.
"""

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import TypeAlias

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, TENSOR_NAMES
from gguf.tensor_mapping import TensorNameMap


class NewArch(Enum):
    """Architectures, by general.architecture."""

    BAILINGMOE3 = "bailingmoe3"
    COHERE2MOE = "cohere2moe"
    DEEPSEEK32 = "deepseek32"
    DEEPSEEK4 = "deepseek4"
    DFLASH = "dflash"
    DOTS3NOTE = "dots3note"
    EAGLE3 = "eagle3"
    GEMMA4_ASSISTANT = "gemma4-assistant"
    GLM5_NEXT = "glm5-next"
    GRANITE_SWA = "granite_swa"
    HRM_TEXT = "hrm_text"
    HY_V3 = "hy_v3"
    HY_V4 = "hy_v4"
    KIMI_K3 = "kimi-k3"
    LAGUNA = "laguna"
    MELLUM = "mellum"
    MINIMAXM3 = "minimax-m3"
    MUSE_GLIMMER = "muse-glimmer"
    QWEN4EXP = "qwen4exp"


class NewTensor(Enum):
    """Tensors, by the name in front of .weight; {bid} is the number of the block."""

    ATTN_COMPRESSOR_APE = "blk.{bid}.attn_compressor_ape"
    ATTN_COMPRESSOR_NORM = "blk.{bid}.attn_compressor_norm"
    ATTN_COMPRESSOR_WGATE = "blk.{bid}.attn_compressor_gate"
    ATTN_COMPRESSOR_WKV = "blk.{bid}.attn_compressor_kv"
    ATTN_KV = "blk.{bid}.attn_kv"
    ATTN_KV_NORM = "blk.{bid}.attn_kv_a_norm"
    ATTN_OUT_A = "blk.{bid}.attn_output_a"
    ATTN_OUT_B = "blk.{bid}.attn_output_b"
    ATTN_RES_SCORE = "blk.{bid}.attn_res_score"
    D2T = "d2t"
    DFLASH_ATTN_CONV_BASE = "blk.{bid}.attn_conv_base"
    DFLASH_ATTN_CONV_PROJ = "blk.{bid}.attn_conv_proj"
    DFLASH_FFN_CONV_BASE = "blk.{bid}.ffn_conv_base"
    DFLASH_FFN_CONV_PROJ = "blk.{bid}.ffn_conv_proj"
    DFLASH_SELECTOR_HIDDEN = "selector_hidden"
    DFLASH_SELECTOR_NEXT = "selector_successor"
    DFLASH_SELECTOR_PREV = "selector_predecessor"
    DSPARK_CONF_PROJ = "conf_proj"
    DSPARK_MARKOV_W1 = "markov_w1"
    DSPARK_MARKOV_W2 = "markov_w2"
    FC = "fc"
    FFN_EXP_PROBS_B_VL = "blk.{bid}.exp_probs_b_vl"
    FFN_GATE_TID2EID = "blk.{bid}.ffn_gate_tid2eid"
    FFN_RES_SCORE = "blk.{bid}.ffn_res_score"
    FFN_ROUTED_DOWN = "blk.{bid}.ffn_routed_down"
    FFN_ROUTED_NORM = "blk.{bid}.ffn_routed_norm"
    FFN_ROUTED_UP = "blk.{bid}.ffn_routed_up"
    HC_ATTN_DOWN = "blk.{bid}.hc_attn_down"
    HC_ATTN_INJECT = "blk.{bid}.hc_attn_inject"
    HC_ATTN_NORM = "blk.{bid}.hc_attn_norm"
    HC_ATTN_UP = "blk.{bid}.hc_attn_up"
    HC_ATTN_BASE = "blk.{bid}.hc_attn_base"
    HC_ATTN_FN = "blk.{bid}.hc_attn_fn"
    HC_ATTN_SCALE = "blk.{bid}.hc_attn_scale"
    HC_FFN_DOWN = "blk.{bid}.hc_ffn_down"
    HC_FFN_INJECT = "blk.{bid}.hc_ffn_inject"
    HC_FFN_NORM = "blk.{bid}.hc_ffn_norm"
    HC_FFN_UP = "blk.{bid}.hc_ffn_up"
    HC_FFN_BASE = "blk.{bid}.hc_ffn_base"
    HC_FFN_FN = "blk.{bid}.hc_ffn_fn"
    HC_FFN_SCALE = "blk.{bid}.hc_ffn_scale"
    HC_HEAD_DOWN = "output_hc_down"
    HC_HEAD_NORM = "output_hc_norm"
    HC_HEAD_UP = "output_hc_up"
    HC_HEAD_BASE = "output_hc_base"
    HC_HEAD_FN = "output_hc_fn"
    HC_HEAD_SCALE = "output_hc_scale"
    HRM_Z_L_INIT = "hrm.z_l_init"
    INDEXER_COMPRESSOR_APE = "blk.{bid}.indexer_compressor_ape"
    INDEXER_COMPRESSOR_NORM = "blk.{bid}.indexer_compressor_norm"
    INDEXER_COMPRESSOR_WGATE = "blk.{bid}.indexer_compressor_gate"
    INDEXER_COMPRESSOR_WKV = "blk.{bid}.indexer_compressor_kv"
    INDEXER_K_PROJ = "blk.{bid}.indexer.k_proj"
    INDEXER_Q_NORM = "blk.{bid}.indexer.q_norm"
    INDEXER_Q_PROJ = "blk.{bid}.indexer.q_proj"
    NEXTN_PROJ_POST = "nextn.post_projection"
    NEXTN_PROJ_PRE = "nextn.pre_projection"
    OUTPUT_RES_SCORE = "output_res_score"
    PLE_CONV1D = "blk.{bid}.ple_conv1d"
    PLE_KEY = "blk.{bid}.ple_key"
    PLE_NORM_CONV = "blk.{bid}.ple_norm_conv"
    PLE_NORM_KEY = "blk.{bid}.ple_norm_key"
    PLE_NORM_QUERY = "blk.{bid}.ple_norm_query"
    PLE_VALUE = "blk.{bid}.ple_value"
    SSM_G = "blk.{bid}.ssm_g"


class NewKeys:
    """Keys of metadata."""

    ATTN_RES_BLOCK_SIZE = "{arch}.attn_res.block_size"
    ATTENTION_VALUE_SCALE = "{arch}.attention.value_scale"
    BLOCK_SIZE = "{arch}.block_size"
    COMPRESS_RATIOS = "{arch}.attention.compress_ratios"
    COMPRESS_ROPE_FREQ_BASE = "{arch}.attention.compress_rope_freq_base"
    CONV_GROUP_SIZE = "{arch}.conv_group_size"
    CONV_KERNEL_SIZE = "{arch}.conv_kernel_size"
    EXPERT_LATENT_LENGTH = "{arch}.expert_latent_length"
    HASH_LAYER_COUNT = "{arch}.hash_layer_count"
    HAS_CONFIDENCE_HEAD = "{arch}.has_confidence_head"
    HRM_H_CYCLES = "{arch}.hrm.h_cycles"
    HRM_LAYERS_PER_STACK = "{arch}.hrm.layers_per_stack"
    HRM_L_CYCLES = "{arch}.hrm.l_cycles"
    HRM_PREFIX_LM = "{arch}.hrm.prefix_lm"
    HYPER_CONNECTION_COUNT = "{arch}.hyper_connection.count"
    HYPER_CONNECTION_EPSILON = "{arch}.hyper_connection.epsilon"
    HYPER_CONNECTION_LOW_RANK = "{arch}.hyper_connection.low_rank"
    HYPER_CONNECTION_MAGNITUDE = "{arch}.hyper_connection.magnitude"
    HYPER_CONNECTION_ITERATIONS = "{arch}.hyper_connection.sinkhorn_iterations"
    INDEXER_BLOCK_SIZE = "{arch}.attention.indexer.block_size"
    INDEXER_KPOOL = "{arch}.attention.indexer.kpool"
    INDEXER_KPOOL_SELECT_TAIL = "{arch}.attention.indexer.kpool_select_tail"
    INDEXER_LOCAL_BLOCKS = "{arch}.attention.indexer.local_blocks"
    INDEXER_TYPES = "{arch}.attention.indexer.types"
    KEY_LENGTH_MLA_SWA = "{arch}.attention.key_length_mla_swa"
    KV_LORA_RANK_SWA = "{arch}.attention.kv_lora_rank_swa"
    KDA_GATE_LOWER_BOUND = "{arch}.kda.gate_lower_bound"
    KDA_SAFE_GATE = "{arch}.kda.safe_gate"
    NORM_BEFORE_FC = "{arch}.norm_before_fc"
    NORM_BEFORE_RESIDUAL = "{arch}.norm_before_residual"
    OUTPUT_GROUP_COUNT = "{arch}.attention.output_group_count"
    OUTPUT_LORA_RANK = "{arch}.attention.output_lora_rank"
    PLE_CONV_KERNEL = "{arch}.ple.conv_kernel"
    PLE_EOS_TOKEN_ID = "{arch}.ple.eos_token_id"
    PLE_HEADS_PER_NGRAM = "{arch}.ple.heads_per_ngram"
    PLE_HEAD_OFFSETS = "{arch}.ple.head_offsets"
    PLE_HEAD_VOCAB_SIZES = "{arch}.ple.head_vocab_sizes"
    PLE_IMAGE_TOKEN_ID = "{arch}.ple.image_token_id"
    PLE_LAYERS = "{arch}.ple.layers"
    PLE_LAYER_MULTIPLIERS = "{arch}.ple.layer_multipliers"
    PLE_NGRAM_SIZE = "{arch}.ple.ngram_size"
    ROPE_PATTERN = "{arch}.attention.rope_pattern"
    SAMPLE_FROM_ANCHOR = "{arch}.sample_from_anchor"
    SELECTOR_RANK = "{arch}.selector_rank"
    SELECTOR_TOP_K = "{arch}.selector_top_k"
    SITU_BETA = "{arch}.activation.situ_beta"
    SITU_LINEAR_BETA = "{arch}.activation.situ_linear_beta"
    TARGET_HIDDEN_SIZE = "{arch}.target_hidden_size"
    TARGET_LAYERS = "{arch}.target_layers"
    VALUE_LENGTH_MLA_SWA = "{arch}.attention.value_length_mla_swa"


Arch: TypeAlias = MODEL_ARCH | NewArch
Tensor: TypeAlias = MODEL_TENSOR | NewTensor


def arch_name(arch: Arch) -> str:
    """general.architecture."""
    return str(arch.value) if isinstance(arch, NewArch) else str(MODEL_ARCH_NAMES[arch])


def base_name(tensor: Tensor) -> str:
    """The name of a tensor in front of .weight or .bias, with {bid} for the number of the block."""
    return str(tensor.value) if isinstance(tensor, NewTensor) else str(TENSOR_NAMES[tensor])


@lru_cache(maxsize=8)
def source_names(tensors: frozenset[Tensor], blocks: int) -> Mapping[str, Tensor]:
    """The names that Hugging Face checkpoints, and GGUF files, have for these tensors, without .weight or .bias.

    A name that stands for one tensor here and for another there is the one of these.
    """
    found: dict[str, Tensor] = {}
    for tensor, names in TensorNameMap.mappings_cfg.items():
        if tensor in tensors:
            found |= dict.fromkeys((base_name(tensor), *names), tensor)
    inside = [(tensor, names) for tensor, names in TensorNameMap.block_mappings_cfg.items() if tensor in tensors]
    for block in range(blocks):
        for tensor, names in inside:
            found |= {name.format(bid=block): tensor for name in (base_name(tensor), *names)}
    return found
