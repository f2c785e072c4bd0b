"""Laguna: blocks with a sliding window have other numbers of heads; what attention gives is gated through softplus."""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import Keys

from ggufsmith.container.values import booleans, f32, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_LENGTH,
    HEAD_NORMS,
    HEAD_SIZE,
    NORMS,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    ROTARY,
    SHARED_LENGTH,
    SILU,
    SIZES,
    VOCAB_SIZE,
    T,
    rope_fields,
    without,
)
from ggufsmith.convert.architectures.moe import (
    BIAS,
    DENSE_BLOCKS,
    LEADING,
    NORMALISED,
    PROBS_BIAS,
    SHARED_BLOCKS,
    SIGMOID,
    SPARSE_BLOCKS,
    gating,
    led,
    only_first_dense,
    whole,
)
from ggufsmith.convert.config import Config, as_share
from ggufsmith.convert.gguf_names import NewArch

PER_ELEMENT = ("per-element", "per_element")


def windows(config: Config, blocks: int) -> list[bool]:
    """Which blocks have a sliding window."""
    return [kind == "sliding_attention" for kind in config.items_of("layer_types", str, blocks)] or [False] * blocks


def kinds(config: Config, blocks: int) -> list[str]:
    """window or full, moe or dense."""
    words = zip(windows(config, blocks), led(config, blocks), strict=True)
    return [f"{'window' if narrow else 'full'} {kind}" for narrow, kind in words]


def head_counts(config: Config) -> list[int]:
    """The heads of every block."""
    blocks = whole(config, "num_hidden_layers")
    given = config.items_of("num_attention_heads_per_layer", int, blocks)
    return given or [whole(config, "num_attention_heads")] * blocks


def heads(narrow: bool) -> Callable[[Config], int]:
    """The heads of blocks with a sliding window, or of those without; of any, where there is none of the kind."""

    def first(config: Config) -> int:
        counts = head_counts(config)
        pairs = zip(counts, windows(config, len(counts)), strict=True)
        return next((count for count, each in pairs if each == narrow), counts[0] if counts else 0)

    return first


def rows(narrow: bool, gate: bool = False) -> Callable[[Config], int]:
    """The rows of the queries of such blocks, or of their gate."""

    def count(config: Config) -> int:
        each = 1 if gate and config.first("gating") not in PER_ELEMENT else whole(config, "head_dim")
        return heads(narrow)(config) * each

    return count


def reach(config: Config, dims: Dims) -> int | None:
    """The sliding window, if any block has one; llama.cpp does not run a model of which none does."""
    return whole(config, "sliding_window") or None if any(windows(config, dims.blocks)) else None


def pattern(config: Config, dims: Dims) -> list[bool] | None:
    """Which blocks have a sliding window, where it is not all but every fourth, from the first on."""
    found = windows(config, dims.blocks)
    usual = [block % 4 != 0 for block in range(dims.blocks)]
    return found if reach(config, dims) and found != usual else None


def local_rotary(config: Config, dims: Dims) -> int | None:
    """How many dimensions rotate in blocks with a sliding window."""
    local = rope_fields(config).get("sliding_attention")
    if not isinstance(local, dict):
        return None
    return int(as_share(local.get("partial_rotary_factor", 1.0), "partial_rotary_factor", config.path) * dims.head_dim)


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    counts = head_counts(config)
    for narrow in (False, True):
        if len({count for count, each in zip(counts, windows(config, len(counts)), strict=True) if each == narrow}) > 1:
            return "blocks of one kind of attention have different numbers of heads"
    gates = set(config.items_of("gating_types", str))
    if gates - {"per-head", "per_head", *(PER_ELEMENT if config.first("gating") in PER_ELEMENT else ())}:
        return f"gating is {config.first('gating')!r}, but gating_types has {', '.join(sorted(gates))}"
    local = local_rotary(config, dims)
    if local not in (None, dims.rotary) and windows(config, dims.blocks)[0]:
        return "llama.cpp rotates the same part of every head if the first block has a sliding window"
    return only_first_dense(config)


LAGUNA = Architecture(
    NewArch.LAGUNA,
    ("LagunaForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *(TensorRule(T.ATTN_Q, f"q_{on} embd", on=on, bias=True) for on in ("full", "window")),
        TensorRule(T.ATTN_K, "kv embd", bias=True),
        TensorRule(T.ATTN_V, "kv embd", bias=True),
        *(TensorRule(T.ATTN_OUT, f"embd q_{on}", on=on, bias=True) for on in ("full", "window")),
        *HEAD_NORMS,
        *(TensorRule(T.ATTN_GATE, f"gate_{on} embd", on=on) for on in ("full", "window")),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *SHARED_BLOCKS,
    ),
    keys=(
        *without(SIZES, Keys.Attention.HEAD_COUNT),
        ConfigKey(
            Keys.Attention.HEAD_COUNT,
            i32s,
            computed=lambda config, dims: head_counts(config),
        ),
        *(*HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, SHARED_LENGTH, LEADING, gating(SIGMOID), NORMALISED),
        ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, ("moe_routed_scaling_factor",)),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",), computed=reach),
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=pattern),
        *(ROTARY, ConfigKey(Keys.Rope.DIMENSION_COUNT_SWA, computed=local_rotary), VOCAB_SIZE),
    ),
    models="Laguna",
    rope=Rope(theta=500000.0, partial=0.5),
    fused=(BIAS, *PACKED_EXPERTS),
    require={**SILU, "moe_apply_router_weight_on_input": (False,), "moe_router_logit_softcapping": (0.0,)},
    defaults={"max_position_embeddings": 131072, "moe_routed_scaling_factor": 1.0, "head_dim": 128},
    sizes={
        "q_full": rows(False),
        "q_window": rows(True),
        "gate_full": rows(False, gate=True),
        "gate_window": rows(True, gate=True),
    },
    kinds=kinds,
    check=problem,
    head_rows=0,
)

RECORDS = (LAGUNA,)
