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

    COHERE2MOE = "cohere2moe"
    DEEPSEEK32 = "deepseek32"
    DFLASH = "dflash"
    EAGLE3 = "eagle3"
    GEMMA4_ASSISTANT = "gemma4-assistant"
    GRANITE_SWA = "granite_swa"
    HRM_TEXT = "hrm_text"
    HY_V3 = "hy_v3"
    HY_V4 = "hy_v4"
    LAGUNA = "laguna"
    MELLUM = "mellum"
    MINIMAXM3 = "minimax-m3"
    MUSE_GLIMMER = "muse-glimmer"


class NewTensor(Enum):
    """Tensors, by the name in front of .weight; {bid} is the number of the block."""

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
    HC_ATTN_BASE = "blk.{bid}.hc_attn_base"
    HC_ATTN_FN = "blk.{bid}.hc_attn_fn"
    HC_ATTN_SCALE = "blk.{bid}.hc_attn_scale"
    HC_FFN_BASE = "blk.{bid}.hc_ffn_base"
    HC_FFN_FN = "blk.{bid}.hc_ffn_fn"
    HC_FFN_SCALE = "blk.{bid}.hc_ffn_scale"
    HC_HEAD_BASE = "output_hc_base"
    HC_HEAD_FN = "output_hc_fn"
    HC_HEAD_SCALE = "output_hc_scale"
    HRM_Z_L_INIT = "hrm.z_l_init"
    INDEXER_K_PROJ = "blk.{bid}.indexer.k_proj"
    INDEXER_Q_NORM = "blk.{bid}.indexer.q_norm"
    INDEXER_Q_PROJ = "blk.{bid}.indexer.q_proj"
    NEXTN_PROJ_POST = "nextn.post_projection"
    NEXTN_PROJ_PRE = "nextn.pre_projection"


class NewKeys:
    """Keys of metadata."""

    ATTENTION_VALUE_SCALE = "{arch}.attention.value_scale"
    BLOCK_SIZE = "{arch}.block_size"
    CONV_GROUP_SIZE = "{arch}.conv_group_size"
    CONV_KERNEL_SIZE = "{arch}.conv_kernel_size"
    HAS_CONFIDENCE_HEAD = "{arch}.has_confidence_head"
    HRM_H_CYCLES = "{arch}.hrm.h_cycles"
    HRM_LAYERS_PER_STACK = "{arch}.hrm.layers_per_stack"
    HRM_L_CYCLES = "{arch}.hrm.l_cycles"
    HRM_PREFIX_LM = "{arch}.hrm.prefix_lm"
    HYPER_CONNECTION_COUNT = "{arch}.hyper_connection.count"
    HYPER_CONNECTION_EPSILON = "{arch}.hyper_connection.epsilon"
    HYPER_CONNECTION_MAGNITUDE = "{arch}.hyper_connection.magnitude"
    INDEXER_BLOCK_SIZE = "{arch}.attention.indexer.block_size"
    INDEXER_LOCAL_BLOCKS = "{arch}.attention.indexer.local_blocks"
    INDEXER_TYPES = "{arch}.attention.indexer.types"
    NORM_BEFORE_FC = "{arch}.norm_before_fc"
    NORM_BEFORE_RESIDUAL = "{arch}.norm_before_residual"
    ROPE_PATTERN = "{arch}.attention.rope_pattern"
    SAMPLE_FROM_ANCHOR = "{arch}.sample_from_anchor"
    SELECTOR_RANK = "{arch}.selector_rank"
    SELECTOR_TOP_K = "{arch}.selector_top_k"
    TARGET_HIDDEN_SIZE = "{arch}.target_hidden_size"
    TARGET_LAYERS = "{arch}.target_layers"


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
