"""MiniMax-M3: queries attend to the blocks of tokens that an indexer chooses; norms are stored without their one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.values import u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    HEAD_NORMS,
    HEAD_SIZE,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    PACKED_EXPERTS,
    SIZES,
    VISION_TOWER,
    T,
    add_one,
)
from ggufsmith.convert.architectures.moe import (
    BEYOND,
    BIAS,
    DENSE_BLOCKS,
    NORMALISED,
    PROBS_BIAS,
    ROTARY_STATED,
    SHARED_BLOCKS,
    SHARED_COUNT,
    SIGMOID,
    SPARSE_BLOCKS,
    WEIGHTS_SCALE,
    gating,
    lead,
    only_first_dense,
    whole,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor, Tensor
from ggufsmith.convert.ops import Op, Part

# config.json of transformers 5 -> inside sparse_attention_config of the published checkpoints, and the usual values.
SPARSE = {
    "index_n_heads": ("sparse_num_index_heads", 4),
    "index_head_dim": ("sparse_index_dim", 128),
    "index_topk_blocks": ("sparse_topk_blocks", 16),
    "index_block_size": ("sparse_block_size", 128),
    "index_local_blocks": ("sparse_local_block", 1),
}
INDEXERS = {
    "q_proj": NewTensor.INDEXER_Q_PROJ,
    "k_proj": NewTensor.INDEXER_K_PROJ,
    "q_norm": NewTensor.INDEXER_Q_NORM,
    "k_norm": T.INDEXER_K_NORM,
}


def halves(suffix: str, length: str, gate: Tensor, up: Tensor) -> Fused:
    """Gate above up, as transformers has them in memory. length: the name of the rows of one."""

    def half(k: int) -> Callable[[Dims], Op]:
        return lambda dims: Part(k * dims.size(length), (k + 1) * dims.size(length))

    return Fused(suffix, f"{length}2 embd", ((gate, half(0)), (up, half(1))))


def sparse(name: str) -> Callable[[Config], int]:
    """A number of the sparse attention, wherever the config has it."""

    def number(config: Config) -> int:
        inner, usual = SPARSE[name]
        found = Config(config.mapping("sparse_attention_config"), config.path)
        return whole(found, inner, whole(config, name, usual))

    return number


def key(name: str, config_name: str) -> ConfigKey:
    """A key of such a number."""
    value = sparse(config_name)
    return ConfigKey(name, u32, (config_name,), computed=lambda config, dims: value(config))


def first_dense(config: Config) -> int:
    """How many of the first blocks are dense, in either spelling."""
    frequency = config.items_of("moe_layer_freq", int)
    return next((k for k, each in enumerate(frequency) if each), len(frequency)) if frequency else lead(config)


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    if sparse("index_n_heads")(config) != dims.kv_heads:
        return "llama.cpp assumes a head of the indexer for each key-value head"
    routed: list[Any] = config.items_of("moe_layer_freq", int)
    if 0 in routed[first_dense(config) :]:
        return "llama.cpp assumes that every block behind the first sparse one is sparse"
    return only_first_dense(config)


MINIMAX_M3 = Architecture(
    NewArch.MINIMAXM3,
    ("MiniMaxM3SparseForConditionalGeneration", "MiniMaxM3SparseForCausalLM"),
    tensors=(
        EMBEDDINGS[0],
        replace(EMBEDDINGS[1], op=add_one),
        OUTPUT_OR_EMBEDDING,
        *(replace(rule, op=add_one) for rule in (*NORMS, *HEAD_NORMS)),
        *(replace(rule, bias=False) for rule in ATTENTION),
        TensorRule(NewTensor.INDEXER_Q_PROJ, "index_q embd", on="moe"),
        TensorRule(NewTensor.INDEXER_K_PROJ, "index_dim embd", on="moe"),
        TensorRule(NewTensor.INDEXER_Q_NORM, "index_dim", on="moe", op=add_one),
        TensorRule(T.INDEXER_K_NORM, "index_dim", on="moe", op=add_one),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *SHARED_BLOCKS,
    ),
    keys=(
        *(replace(key, names=("dense_intermediate_size",)) if "feed_forward" in key.name else key for key in SIZES),
        *(*HEAD_SIZE, *EXPERT_COUNTS, *EXPERT_LENGTH, SHARED_COUNT, gating(SIGMOID), NORMALISED, WEIGHTS_SCALE),
        ConfigKey(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, computed=lambda config, dims: first_dense(config)),
        key(Keys.Attention.Indexer.HEAD_COUNT, "index_n_heads"),
        key(Keys.Attention.Indexer.KEY_LENGTH, "index_head_dim"),
        key(Keys.Attention.Indexer.TOP_K, "index_topk_blocks"),
        key(NewKeys.INDEXER_BLOCK_SIZE, "index_block_size"),
        key(NewKeys.INDEXER_LOCAL_BLOCKS, "index_local_blocks"),
        ROTARY_STATED,
    ),
    models="MiniMax-M3 (text)",
    rope=Rope(theta=5e6, partial=0.5),
    fused=(
        *(BIAS, *PACKED_EXPERTS),
        halves(".shared_experts.gate_up_proj", "shared_ff", T.FFN_GATE_SHEXP, T.FFN_UP_SHEXP),
        halves(".mlp.gate_up_proj", "ff", T.FFN_GATE, T.FFN_UP),
        *(named(f".self_attn.index_{name}", tensor) for name, tensor in INDEXERS.items()),  # as it is published
        *(named(f".self_attn.indexer.{name}", tensor) for name, tensor in INDEXERS.items()),
    ),
    require={
        "hidden_act": ("silu", "swigluoai"),
        "swiglu_alpha": (1.702,),
        "swiglu_limit": (7.0,),
        "scoring_func": ("sigmoid",),
    },
    defaults={
        "max_position_embeddings": 524288,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.0,
        "num_experts_per_tok": 4,
    },
    drop={**VISION_TOWER, "patch_merge_mlp.": VISION_TOWER["visual."], "mtp.": BEYOND},
    sizes={
        "ff": lambda config: whole(config, "dense_intermediate_size", 12288),
        "expert_ff": lambda config: whole(config, "intermediate_size"),
        "shared_ff": lambda config: whole(config, "n_shared_experts") * whole(config, "intermediate_size"),
        "ff2": lambda config: 2 * whole(config, "dense_intermediate_size", 12288),
        "shared_ff2": lambda config: 2 * whole(config, "n_shared_experts") * whole(config, "intermediate_size"),
        "index_dim": sparse("index_head_dim"),
        "index_q": lambda config: sparse("index_n_heads")(config) * sparse("index_head_dim")(config),
    },
    kinds=lambda config, blocks: ["dense" if block < first_dense(config) else "moe" for block in range(blocks)],
    check=problem,
)

RECORDS = (MINIMAX_M3,)
