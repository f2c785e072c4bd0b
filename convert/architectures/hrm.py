"""HRM-Text: two stacks of blocks that take turns, a low one several times for each time of a high one.

A file holds each block once; llama.cpp counts how often they are used, as every use has keys and values of its own.

Source: llama.cpp's src/models/hrm-text.cpp.
"""

from collections.abc import Callable

from gguf.constants import Keys

from ggufsmith.container.values import boolean, f32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    HEAD_SIZE,
    SILU,
    SIZES,
    T,
    half,
    without,
)
from ggufsmith.convert.architectures.moe import whole
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor
from ggufsmith.convert.ops import Op, Part


def in_a_stack(config: Config) -> int:
    """Blocks of one stack; configs that transformers did not write say it by another name."""
    total = whole(config, "num_hidden_layers")
    return whole(config, "num_layers_per_stack") or total


def uses(config: Config, dims: Dims) -> int:
    """How often a block is used, all blocks together."""
    return in_a_stack(config) * whole(config, "H_cycles") * (whole(config, "L_cycles") + 1)


def embedding_scale(config: Config, dims: Dims) -> float:
    """What embeddings are multiplied by."""
    stated, spread = config.number("embedding_scale"), config.number("initializer_range", default=0.02)
    return stated if stated is not None else 1 / (spread or 1.0)


def quarter(k: int) -> Callable[[Dims], Op]:
    """The op that cuts gate (0), query (1), key (2) or value (3) out of all four."""
    return lambda dims: Part(k * dims.q, (k + 1) * dims.q)


def cycles(config: Config, dims: Dims) -> str | None:
    """A sentence if there is nothing to compute, or another number of uses is stated, else None."""
    if not uses(config, dims) or not whole(config, "L_cycles"):
        return "H_cycles, L_cycles and num_layers_per_stack must be above 0"
    stated = whole(config, "num_hidden_layers")
    if config.first("num_layers_per_stack") is not None and stated != uses(config, dims):
        return f"num_hidden_layers is {stated}, but blocks are used {uses(config, dims)} times"
    return None


HRM_TEXT = Architecture(
    NewArch.HRM_TEXT,
    ("HrmTextForCausalLM",),
    tensors=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        TensorRule(NewTensor.HRM_Z_L_INIT, "embd", part=""),
        *(TensorRule(rule.tensor, rule.shape) for rule in (*ATTENTION, *FEED_FORWARD)),
        TensorRule(T.ATTN_GATE, "q embd"),
    ),
    keys=(
        *without(SIZES, Keys.LLM.BLOCK_COUNT, Keys.Attention.HEAD_COUNT_KV),
        *HEAD_SIZE,
        ConfigKey(Keys.LLM.BLOCK_COUNT, names=("num_hidden_layers",), computed=uses),
        ConfigKey(
            Keys.Attention.HEAD_COUNT_KV,
            names=("num_key_value_heads",),
            computed=lambda config, dims: None if config.first("num_key_value_heads") is None else dims.heads,
        ),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim),
        ConfigKey(Keys.LLM.EMBEDDING_SCALE, f32, ("embedding_scale",), computed=embedding_scale),
        ConfigKey(
            NewKeys.HRM_LAYERS_PER_STACK,
            names=("num_layers_per_stack",),
            computed=lambda config, dims: in_a_stack(config),
        ),
        ConfigKey(NewKeys.HRM_H_CYCLES, names=("H_cycles",)),
        ConfigKey(NewKeys.HRM_L_CYCLES, names=("L_cycles",)),
        ConfigKey(NewKeys.HRM_PREFIX_LM, boolean, ("prefix_lm",), computed=lambda c, d: bool(c.first("prefix_lm"))),
    ),
    models="HRM-Text, DFM Mimir",
    rope=Rope(),
    fused=(
        Fused(
            ".attn.gqkv_proj",
            "gqkv embd",
            tuple((tensor, quarter(k)) for k, tensor in enumerate((T.ATTN_GATE, T.ATTN_Q, T.ATTN_K, T.ATTN_V))),
        ),
        Fused(".mlp.gate_up_proj", "gate_up embd", ((T.FFN_GATE, half("ff", 0)), (T.FFN_UP, half("ff", 1)))),
        named(".attn.o_proj", T.ATTN_OUT),
        named("z_L_init", NewTensor.HRM_Z_L_INIT, ""),
    ),
    require={**SILU, "attention_bias": (False,), "mlp_bias": (False,)},
    defaults={"head_dim": 128, "H_cycles": 2, "L_cycles": 3, "prefix_lm": True, "max_position_embeddings": 2048},
    warn={"prefix_lm": ((False,), "llama.cpp attends causally, to the tokens of an instruction as well")},
    sizes={
        "blocks": lambda config: 2 * in_a_stack(config),
        "kv_heads": lambda config: whole(config, "num_attention_heads"),
        "head_dim": lambda config: whole(config, "head_dim"),
        "gqkv": lambda config: 4 * whole(config, "num_attention_heads") * whole(config, "head_dim"),
    },
    check=cycles,
    head_rows=0,
    stacks=("L_module", "H_module"),
)

RECORDS = (HRM_TEXT,)
