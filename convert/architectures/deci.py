"""Nemotron made smaller by a search for every block (DeciLM): heads and feed-forwards of their own, or none.

Source: llama.cpp, src/models/deci.cpp and conversion/deci.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import Value, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    ROTARY,
    SILU,
    SIZES,
    VOCAB_SIZE,
    T,
    permute_k,
    permute_q,
    stated,
    without,
)
from ggufsmith.convert.config import Config

STEP = 256  # feed-forwards are a multiple of this long


def parts(config: Config, blocks: int, name: str) -> list[Mapping[str, Any]]:
    """What block_configs says of this part of every block. Malformed: not an object for each."""
    found = [each.get(name) for each in config.items_of("block_configs", dict, blocks)]
    if not all(isinstance(each, Mapping) for each in found):
        raise Malformed(f"block_configs must hold {name} for every block", where=config.path)
    return [each for each in found if isinstance(each, Mapping)]


def number(part: Mapping[str, Any], name: str, config: Config) -> int | float | None:
    """A number that is no less than 0. Malformed: anything else."""
    value = part.get(name)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 31
    ):
        raise Malformed(f"{name} must be a number of at least 0, not {value!r:.40}", where=config.path)
    return value


def heads(config: Config, blocks: int) -> list[tuple[int, int]]:
    """Heads of queries and of keys in every block: (0, 0) without attention, no key heads where it is a matrix."""
    whole = config.integer("num_attention_heads") or 0
    each = config.items_of("num_key_value_heads_per_layer", int, blocks)
    if each:
        return [(whole, max(keys, 0)) for keys in each]
    found = []
    for part in parts(config, blocks, "attention"):
        group = number(part, "n_heads_in_group", config)
        if group:
            found.append((whole, whole // int(group)))
        else:
            found.append((whole if part.get("replace_with_linear") is True else 0, 0))
    usual = config.integer("num_key_value_heads", default=whole) or whole
    return found or [(whole, usual)] * blocks


def lengths(config: Config, blocks: int) -> list[int]:
    """The length of the feed-forward of every block; 0 without one."""
    found = []
    for part in parts(config, blocks, "ffn"):
        length = int(2 * (number(part, "ffn_mult", config) or 0) * (config.integer("hidden_size") or 0) / 3)
        found.append(STEP * -(-length // STEP))
    return found or [config.integer("intermediate_size") or 0] * blocks


def kinds(config: Config, blocks: int) -> list[str]:
    """mixes: it has something of attention, whole or matrix; ffn: it has a feed-forward."""
    words = []
    for (queries, keys), length in zip(heads(config, blocks), lengths(config, blocks), strict=True):
        attention = "mixes whole" if keys else "mixes matrix" if queries else "none"
        words.append(f"{attention} ffn" if length else attention)
    return words


def own(config: Config, blocks: int) -> list[dict[str, int]]:
    """Heads of keys and length of the feed-forward of every block."""
    pairs = zip(heads(config, blocks), lengths(config, blocks), strict=True)
    return [{"kv_heads": keys, "ff": length} for (_, keys), length in pairs]


def listed(values: list[int] | int) -> Value:
    """A number for every block, or one for all."""
    return i32s(values) if isinstance(values, list) else u32(values)


def searched(config: Config) -> bool:
    """Whether the config says everything block by block, and not only how many heads keys have."""
    return config.first("block_configs") is not None


def head_counts(config: Config, dims: Dims) -> list[int] | int:
    """Heads of queries."""
    return [queries for queries, _ in heads(config, dims.blocks)] if searched(config) else dims.heads


def unlike(config: Config, dims: Dims) -> str | None:
    """A sentence about blocks that llama.cpp has no graph for."""
    for block, part in enumerate(parts(config, dims.blocks, "attention")):
        if part.get("window_length") is not None or part.get("num_sink_tokens") is not None:
            return f"block {block} attends to a window, which llama.cpp does not compute here"
    for block, words in enumerate(dims.kinds):
        if "mixes" in words and "ffn" not in words:
            return f"block {block} has attention and no feed-forward, and llama.cpp passes over all of it"
    return None


DECI = Architecture(
    MODEL_ARCH.DECI,
    ("DeciLMForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        TensorRule(T.ATTN_NORM, "embd", on="mixes"),
        TensorRule(T.FFN_NORM, "embd", on="ffn"),
        TensorRule(T.ATTN_Q, "q embd", permute_q, on="whole", bias=True),
        TensorRule(T.ATTN_K, "kv embd", permute_k, on="whole", bias=True),
        TensorRule(T.ATTN_V, "kv embd", on="whole", bias=True),
        TensorRule(T.ATTN_OUT, "embd q", on="whole", bias=True),
        TensorRule(T.ATTN_OUT, "embd embd", on="matrix"),
        *(replace(rule, on="ffn", when=lambda dims: True) for rule in FEED_FORWARD),
    ),
    keys=(
        *without(SIZES, *(Keys.LLM.FEED_FORWARD_LENGTH, Keys.Attention.HEAD_COUNT, Keys.Attention.HEAD_COUNT_KV)),
        ConfigKey(
            Keys.LLM.FEED_FORWARD_LENGTH,
            listed,
            computed=lambda config, dims: [each["ff"] for each in dims.own] if searched(config) else dims.ff,
        ),
        ConfigKey(Keys.Attention.HEAD_COUNT, listed, computed=head_counts),
        ConfigKey(
            Keys.Attention.HEAD_COUNT_KV, listed, computed=lambda config, dims: [each["kv_heads"] for each in dims.own]
        ),
        *(
            ConfigKey(name, computed=lambda config, dims: dims.head_dim if searched(config) else stated(dims))
            for name in (Keys.Attention.KEY_LENGTH, Keys.Attention.VALUE_LENGTH)
        ),
        VOCAB_SIZE,
        ROTARY,
    ),
    rope=Rope(scaling=("linear", "dynamic", "llama3")),
    require={**SILU, "attention_bias": (False, True), "mlp_bias": (False, True)},
    drop=INVERSE_FREQUENCIES,
    check=unlike,
    sizes={
        "ff": lambda config: config.integer("intermediate_size") or 0,
        "kv_heads": lambda config: config.integer("num_key_value_heads") or 0,
    },
    kinds=kinds,
    own=own,
    head_rows=0,
    models="Llama-Nemotron 49B, 51B and 253B, DeciLM",
)

RECORDS = (DECI,)
