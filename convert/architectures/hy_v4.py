"""Hunyuan 4: DeepSeek's latent attention with gates, sinks and an indexer, and several streams of hidden states.

Every block mixes the streams into one before attention and before the feed-forward, and adds to all of them behind it
(independent hyper-connections).

Source: llama.cpp's src/models/hy-v4.cpp and conversion/hy_v4.py.
"""

from collections.abc import Sequence
from dataclasses import replace

from gguf.constants import Keys

from ggufsmith.container.values import booleans, f32, f32s, u32
from ggufsmith.convert.architecture import ConfigKey, Dims, TensorRule, named
from ggufsmith.convert.architectures.groups import OUTPUT_OR_EMBEDDING, PACKED_EXPERTS, T, without
from ggufsmith.convert.architectures.latent import DEEPSEEK3
from ggufsmith.convert.architectures.moe import BEYOND, GROUPS, LEADING, led, only_first_dense, whole
from ggufsmith.convert.architectures.sparse_attention import DEEPSEEK32, INDEXER
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor

# Which block mixes the streams with what: a matrix, its bias, and two scales.
MIXERS = {
    "attn": (NewTensor.HC_ATTN_FN, NewTensor.HC_ATTN_BASE, NewTensor.HC_ATTN_SCALE),
    "ffn": (NewTensor.HC_FFN_FN, NewTensor.HC_FFN_BASE, NewTensor.HC_FFN_SCALE),
}
HEAD = (NewTensor.HC_HEAD_FN, NewTensor.HC_HEAD_BASE, NewTensor.HC_HEAD_SCALE)
PARTS = ("fn", "base", "scale")


def indexers(config: Config, blocks: int) -> list[bool]:
    """Which blocks have an indexer; the others take what the last of these chose."""
    stated = config.items_of("indexer_types", str, blocks)
    return [kind == "full" for kind in stated] or [block == 0 or block % 4 == 1 for block in range(blocks)]


def kinds(config: Config, blocks: int) -> Sequence[str]:
    """dense or moe, and indexer for the blocks that have one."""
    pairs = zip(led(config, blocks), indexers(config, blocks), strict=True)
    return [kind + " indexer" * full for kind, full in pairs]


def limit(config: Config, dims: Dims) -> list[float] | None:
    """What numbers within experts may reach, for each block; None for anything."""
    found = config.number("swiglu_limit", default=0.0) or 0.0
    return [found] * dims.blocks if found > 0 else None


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    if not indexers(config, dims.blocks)[0]:
        return "the first block must have an indexer, as there is none before it"
    config.first("layer_types", "num_key_value_heads", "head_dim", "learnable_sink_init")
    return only_first_dense(config)


def exact_head(dims: Dims) -> bool:
    """Whether the head is kept in float32."""
    return dims.size("exact_head") > 0


HY_V4 = replace(
    DEEPSEEK3,
    arch=NewArch.HY_V4,
    classes=("HYV4ForCausalLM",),
    tensors=(
        *(rule for rule in DEEPSEEK3.tensors if rule.tensor not in (T.OUTPUT, T.ATTN_Q)),
        replace(OUTPUT_OR_EMBEDDING, when=lambda dims: not exact_head(dims)),
        replace(OUTPUT_OR_EMBEDDING, when=exact_head, exact=True),
        *(TensorRule(tensor, shape) for tensor, shape in zip(HEAD, ("hc hc_embd", "hc", "1"), strict=True)),
        TensorRule(T.ATTN_GATE, "heads_v embd"),
        TensorRule(T.ATTN_SINKS, "heads"),
        *(replace(rule, on="indexer") for rule in INDEXER),
        *(
            TensorRule(tensor, shape)
            for mixer in MIXERS.values()
            for tensor, shape in zip(mixer, ("hc2 hc_embd", "hc2", "2"), strict=True)
        ),
    ),
    keys=(
        *(LEADING if key.name == LEADING.name else key for key in without(DEEPSEEK3.keys, *(k.name for k in GROUPS))),
        ConfigKey(Keys.LLM.SWIGLU_CLAMP_EXP, f32s, computed=limit),
        ConfigKey(NewKeys.HYPER_CONNECTION_COUNT, u32, ("hc_mult",)),
        ConfigKey(NewKeys.HYPER_CONNECTION_EPSILON, f32, ("hc_eps",)),
        ConfigKey(NewKeys.HYPER_CONNECTION_MAGNITUDE, f32, ("hc_magnitude",)),
        *(key for key in DEEPSEEK32.keys if ".indexer." in key.name),
        ConfigKey(NewKeys.INDEXER_TYPES, booleans, computed=lambda config, dims: indexers(config, dims.blocks)),
    ),
    models="Hunyuan 4",
    fused=(
        *DEEPSEEK3.fused[:2],
        *PACKED_EXPERTS,
        *(named(f".self_attn.{name}", T.ATTN_SINKS) for name in ("sinks", "learnable_sink_param")),
        *(
            named(f".{kind}_hc.{part}", tensor)
            for kind, mixer in MIXERS.items()
            for part, tensor in zip(PARTS, mixer, strict=True)
        ),
        *(named(f"hc_head.hc_{part}", tensor) for part, tensor in zip(PARTS, HEAD, strict=True)),
    ),
    # As they are published, and as transformers 5.24 saves them, which turns its own names around in another order.
    spellings={
        r"\.hc_pre\.": ".",
        r"\.hc_(attn|mlp)_layer\.hc_(fn|base|scale)$": r".\1_hc.\2",
        r"\.mlp_hc\.": ".ffn_hc.",
        r"\.hc_head\.hc_head_": ".hc_head.hc_",
        r"\.linear_gate\.": ".gate_proj.",
    },
    require={**DEEPSEEK3.require, "n_group": (1,), "topk_group": (1,)},
    defaults={
        **DEEPSEEK32.defaults,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "first_k_dense_replace": 1,
        "index_n_heads": 16,
        "hc_mult": 4,
        "hc_magnitude": 2.0,
        "hc_eps": 1e-6,
        "swiglu_limit": 10.0,
    },
    drop={**DEEPSEEK3.drop, "mtp_layers.": BEYOND},
    sizes={
        **DEEPSEEK32.sizes,
        "hc": lambda config: whole(config, "hc_mult", 4),
        "hc2": lambda config: 2 * whole(config, "hc_mult", 4),
        "hc_embd": lambda config: whole(config, "hc_mult", 4) * whole(config, "hidden_size"),
        "exact_head": lambda config: int(bool(config.first("enable_lm_head_fp32"))),
    },
    kinds=kinds,
    check=problem,
    beyond="",
)

RECORDS = (HY_V4,)
