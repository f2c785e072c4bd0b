"""GLM-5.3-Flash: Kimi's delta attention and latent attention in turn, and DeepSeek-V4's four streams of hidden states.

An indexer chooses among pools of tokens, of which each has one key.

Source: llama.cpp's src/models/glm5-next.cpp and conversion/glm.py; transformers' models/glm5_next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.values import boolean, booleans, f32, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.deepseek4 import CLAMPS, HYPER_KEYS, HYPER_NAMES, HYPER_SIZES, hyper_connections
from ggufsmith.convert.architectures.groups import SILU, VISION_TOWER, T, constant
from ggufsmith.convert.architectures.kimi_linear import KIMI_LINEAR
from ggufsmith.convert.architectures.moe import (
    DOUBLE,
    GROUPS,
    NEXTN,
    NEXTN_IF_ANY,
    ROUTED,
    WEIGHTS_NORM,
    led,
    whole,
    with_mtp,
)
from ggufsmith.convert.architectures.sparse_attention import DEEPSEEK32, INDEXER, indexers
from ggufsmith.convert.config import Config, as_number
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor
from ggufsmith.convert.reorder import NegativeExp

LOWEST = -5.0  # what a decay is bounded by, unless the config says otherwise or has safe_gate false
POOLS = (
    TensorRule(NewTensor.INDEXER_COMPRESSOR_WGATE, "index_dim embd", exact=True),
    TensorRule(NewTensor.INDEXER_COMPRESSOR_APE, "index_pool index_dim", exact=True),
)


def attends(config: Config, blocks: int) -> list[bool]:
    """Which blocks have latent attention, with or without an indexer."""
    given = config.items_of("layer_types", str)
    return [kind != "linear_attention" for kind in given] or [block % 4 == 3 for block in range(blocks)]


def kinds(config: Config, blocks: int) -> Sequence[str]:
    """full or linear, dense or moe, own for those of the model, and indexer for those that have one."""
    full, choosing = attends(config, blocks), indexers(config)
    own = whole(config, "num_hidden_layers")
    words = []
    for block, feeding in enumerate(led(config, blocks)):
        attention = "full" if block >= len(full) or full[block] else "linear"
        choice = " indexer" * (attention == "full" and (block >= len(choosing) or choosing[block]))
        words.append(f"{attention} {feeding}{choice}{' own' * (block < own)}")
    return words


def lower_bound(config: Config, dims: Dims) -> float | None:
    """What the decay of delta attention is bounded by; None for another function."""
    published = config.mapping("linear_attn_config")
    found = published.get("gate_lower_bound", config.first("linear_lower_bound"))
    if found is None:
        return LOWEST if published.get("safe_gate", True) else None
    return as_number(found, "gate_lower_bound", config.path)


def choosers(config: Config, dims: Dims) -> list[bool] | None:
    """Which blocks have an indexer, if the config says it or some have none."""
    found = indexers(config)
    return found if config.first("indexer_types") or not all(found) else None


def without_head(config: Config) -> Mapping[str, Any]:
    """Nothing rotates, so that transformers saves a head of nothing."""
    return {"head_dim": None}


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    pool = whole(config, "index_kpool")
    if pool < 2 or whole(config, "index_topk") % pool:
        return f"llama.cpp chooses whole pools: index_topk must be a multiple of index_kpool, which must not be {pool}"
    full, choosing = attends(config, dims.blocks), indexers(config)
    first = next((block for block, each in enumerate(full) if each), 0)
    if first < len(choosing) and not choosing[first]:
        return "the first block with latent attention must have an indexer, as there is none before it"
    return KIMI_LINEAR.check(config, dims) if KIMI_LINEAR.check else None


GLM5_NEXT: Architecture = replace(
    KIMI_LINEAR,
    arch=NewArch.GLM5_NEXT,
    classes=("Glm5NextForConditionalGeneration",),
    tensors=(
        *(
            replace(rule, shape="heads", op=lambda dims: NegativeExp()) if rule.tensor is T.SSM_A else rule
            for rule in KIMI_LINEAR.tensors
            if rule.tensor is not T.ATTN_Q or rule.on == "linear"
        ),
        *(replace(rule, on="indexer") for rule in (*INDEXER, *POOLS)),
        *hyper_connections("own"),
        *NEXTN,
    ),
    keys=(
        *(key for key in KIMI_LINEAR.keys if key.name not in (Keys.Attention.HEAD_COUNT_KV, GROUPS[1].name)),
        ConfigKey(
            Keys.Attention.HEAD_COUNT_KV,
            i32s,
            computed=lambda config, dims: [int("full" in kind) for kind in dims.kinds],
        ),
        *(*GROUPS, WEIGHTS_NORM, NEXTN_IF_ANY),
        ConfigKey(Keys.Attention.LAYERNORM_EPS, f32, computed=constant(1e-6)),
        ConfigKey(NewKeys.KDA_GATE_LOWER_BOUND, f32, computed=lower_bound),
        *CLAMPS,
        *(key for key in DEEPSEEK32.keys if ".indexer." in key.name),
        ConfigKey(NewKeys.INDEXER_KPOOL, u32, ("index_kpool",)),
        ConfigKey(
            NewKeys.INDEXER_KPOOL_SELECT_TAIL,
            boolean,
            computed=lambda config, dims: bool(config.first("index_kpool_always_select_tail")),
        ),
        ConfigKey(NewKeys.INDEXER_TYPES, booleans, computed=choosers),
        *HYPER_KEYS,
    ),
    models="GLM-5.3-Flash (text)",
    rope=Rope(rotates=False),
    fused=(
        *KIMI_LINEAR.fused,
        *HYPER_NAMES,
        named(".index_kpool_compress_gate", NewTensor.INDEXER_COMPRESSOR_WGATE),
        named(".index_kpool_compress_ape", NewTensor.INDEXER_COMPRESSOR_APE),
    ),
    require={
        **SILU,
        "attention_bias": (False,),
        "mla_use_nope": (True,),
        "qk_rope_head_dim": (0,),
        "scoring_func": ("sigmoid",),
        "mhc": (True,),
        "hc_mult": (4,),
    },
    defaults={
        "max_position_embeddings": 1048576,
        "rms_norm_eps": 1e-5,
        "norm_topk_prob": True,
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "linear_head_dim": 128,
        "linear_num_heads": 64,
        "linear_conv_kernel_dim": 4,
        "qk_rope_head_dim": 0,
        "routed_scaling_factor": 2.5,
        "swiglu_limit": 10.0,
        "hc_mult": 4,
        "hc_eps": 1e-6,
        "hc_sinkhorn_iters": 20,
        "index_kpool": 16,
        "index_kpool_always_select_tail": True,
        "index_n_heads": 32,
        "index_head_dim": 128,
        "index_topk": 2048,
    },
    drop=VISION_TOWER,
    aliases=ROUTED,
    derived=without_head,
    sizes={
        **KIMI_LINEAR.sizes,
        **{name: size for name, size in DEEPSEEK32.sizes.items() if name.startswith("index")},
        **DOUBLE,
        "index_pool": lambda config: whole(config, "index_kpool"),
        **HYPER_SIZES,
    },
    kinds=with_mtp(kinds),
    check=problem,
    beyond="",
    appended=True,
)

RECORDS = (GLM5_NEXT,)
