"""Step 3.5 and 3.7 Flash: windows in most blocks, which have more heads, gates for heads, limits of the feed-forwards.

Configs of the publisher list bases and parts of the rotary embedding block by block, and the numbers of the sparse
blocks; transformers writes them by kind of block. The publisher's lists go on with the blocks that are appended.

Source: llama.cpp's src/models/step35.cpp and conversion/step3.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import booleans, f32, f32s, i32s
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_LENGTH,
    HEAD_NORMS,
    HEAD_SIZE,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    SILU,
    SIZES,
    VISION_TOWER,
    WINDOW,
    T,
    add_one,
    constant,
    rope_fields,
    without,
)
from ggufsmith.convert.architectures.moe import (
    BIAS,
    DENSE_BLOCKS,
    DOUBLE,
    LEADING,
    NEXTN,
    NEXTN_IF_ANY,
    NORMALISED,
    PROBS_BIAS,
    SHARED_BLOCKS,
    SIGMOID,
    SPARSE_BLOCKS,
    gating,
    only_first_dense,
    whole,
)
from ggufsmith.convert.config import Config

FULL, SLIDING = "full_attention", "sliding_attention"
PARTS = {FULL: 0.5, SLIDING: 1.0}  # of a head that rotate, which llama.cpp has built in


def padded(config: Config, name: str, appended: str, usual: str, blocks: int) -> list[str]:
    """A kind for each block, of those that are appended too, which stand behind or in a list of their own."""
    given = [*config.items_of(name, str), *config.items_of(appended, str)]
    return [*given, *[usual] * (blocks - len(given))][:blocks]


def attention_kinds(config: Config, blocks: int) -> list[str]:
    """full_attention or sliding_attention for every block."""
    return padded(config, "layer_types", "mtp_layer_types", FULL, blocks)


def kinds(config: Config, blocks: int) -> list[str]:
    """window or full, dense or moe, mtp for the appended ones."""
    own = whole(config, "num_hidden_layers")
    lengths = padded(config, "mlp_layer_types", "mtp_mlp_layer_types", "dense", blocks)
    return [
        f"{'window' if attention == SLIDING else 'full'} {'dense' if length == 'dense' else 'moe'}"
        + " mtp" * (block >= own)
        for block, (attention, length) in enumerate(zip(attention_kinds(config, blocks), lengths, strict=True))
    ]


def as_transformers(config: Config) -> dict[str, Any]:
    """What a config of the publisher says, as transformers would write it."""
    own = whole(config, "num_hidden_layers")
    made: dict[str, Any] = {}
    if config.first("mlp_layer_types") is None:
        listed = config.first("moe_layers_enum")
        items = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, list) else range(3, own)
        try:
            sparse = {int(item) for item in items if str(item).strip()}
        except (TypeError, ValueError) as error:
            raise Malformed(f"moe_layers_enum must list blocks, not {listed!r:.80}", where=config.path) from error
        total = own + whole(config, "num_nextn_predict_layers")
        lengths = ["sparse" if block in sparse else "dense" for block in range(total)]
        made |= {"mlp_layer_types": lengths[:own], "mtp_mlp_layer_types": lengths[own:]}
    fields = rope_fields(config)
    if FULL not in fields and SLIDING not in fields:
        types = attention_kinds(config, own)
        thetas = each(config, "rope_theta", own) or [10000.0] * own
        parts = each(config, "partial_rotary_factors", own) or [1.0] * own
        made["rope_parameters"] = {
            kind: {
                "rope_type": "default",
                "rope_theta": thetas[types.index(kind)],
                "partial_rotary_factor": parts[types.index(kind)],
                **(fields if kind == FULL else {}),
            }
            for kind in PARTS
            if kind in types
        }
        made |= dict.fromkeys(("rope_theta", "rope_scaling"))
    return made


def each(config: Config, name: str, blocks: int) -> list[float] | None:
    """A number for each block; one stands for all."""
    found = config.first(name)
    if not isinstance(found, list):
        number = config.number(name)
        return None if number is None else [number] * blocks
    return config.numbers_of(name, blocks) or None


def window_heads(config: Config) -> int:
    """The heads of blocks with a window."""
    other = config.mapping("attention_other_setting").get("num_attention_heads")
    usual = other if isinstance(other, int) else whole(config, "num_attention_heads")
    return whole(config, "num_sliding_attention_heads", usual)


def rows(narrow: bool) -> Callable[[Config], int]:
    """The rows of the queries in blocks with a window, or without."""
    heads = window_heads if narrow else lambda config: whole(config, "num_attention_heads")
    return lambda config: heads(config) * whole(config, "head_dim")


def by_kind(window: Callable[[Config], int], full: str) -> Callable[[Config, Dims], list[int]]:
    """A number for every block, of those with a window, or without."""
    return lambda config, dims: [window(config) if "window" in kind else whole(config, full) for kind in dims.kinds]


def limits(name: str) -> Callable[[Config, Dims], list[float] | None]:
    """What the numbers within a feed-forward may reach, block by block; 0 stands for anything."""

    def found(config: Config, dims: Dims) -> list[float] | None:
        given = config.first(name)
        if given is None:
            return None
        if not isinstance(given, list) or not all(isinstance(limit, int | float | None) for limit in given):
            raise Malformed(f"{name} must be a list of numbers, not {given!r:.80}", where=config.path)
        return [*(float(limit or 0) for limit in given), *[0.0] * (dims.blocks - len(given))][: dims.blocks]

    return found


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    fields: Mapping[str, Any] = rope_fields(config)
    for kind, part in PARTS.items():
        stated = fields.get(kind)
        if isinstance(stated, Mapping) and stated.get("partial_rotary_factor", 1.0) != part:
            return f"llama.cpp rotates {part:g} of every head with {kind}, but partial_rotary_factor says another part"
    local = fields.get(SLIDING)
    if isinstance(local, Mapping) and local.get("rope_type", "default") != "default":
        return "llama.cpp does not scale the rotary embedding of blocks with a window"
    if whole(config, "query_pre_attn_scalar", dims.head_dim) != dims.head_dim:
        return f"query_pre_attn_scalar is {config.first('query_pre_attn_scalar')}, but llama.cpp takes {dims.head_dim}"
    other = config.mapping("attention_other_setting")
    if other.get("num_attention_groups", dims.kv_heads) != dims.kv_heads:
        return "blocks with a window have another number of key-value heads"
    config.first("partial_rotary_factors", "per_layer_config", "moe_layers_enum", "moe_every_n_layer")
    return only_first_dense(config)


QUERY = ("full", "window")
STEP35 = Architecture(
    MODEL_ARCH.STEP35,
    ("Step3p7ForConditionalGeneration", "Step3p5ForCausalLM"),
    tensors=(
        EMBEDDINGS[0],
        replace(EMBEDDINGS[1], op=add_one),
        OUTPUT_OR_EMBEDDING,
        *(replace(rule, op=add_one) for rule in (*NORMS, *HEAD_NORMS)),
        *(TensorRule(T.ATTN_Q, f"q_{on} embd", on=on) for on in QUERY),
        TensorRule(T.ATTN_K, "kv embd"),
        TensorRule(T.ATTN_V, "kv embd"),
        *(TensorRule(T.ATTN_OUT, f"embd q_{on}", on=on) for on in QUERY),
        *(TensorRule(T.ATTN_GATE, f"heads_{on} embd", on=on) for on in QUERY),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *SHARED_BLOCKS,
        *(replace(rule, op=add_one) if "norm" in rule.tensor.name.lower() else rule for rule in NEXTN),
    ),
    keys=(
        *without(SIZES, Keys.Attention.HEAD_COUNT, Keys.Attention.HEAD_COUNT_KV),
        ConfigKey(Keys.Attention.HEAD_COUNT, i32s, computed=by_kind(window_heads, "num_attention_heads")),
        ConfigKey(Keys.Attention.HEAD_COUNT_KV, i32s, computed=lambda c, d: [d.kv_heads] * d.blocks),
        *(*HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, LEADING, gating(SIGMOID), NORMALISED, NEXTN_IF_ANY, WINDOW),
        ConfigKey(
            Keys.Attention.SLIDING_WINDOW_PATTERN,
            booleans,
            computed=lambda config, dims: ["window" in kind for kind in dims.kinds],
        ),
        ConfigKey(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, names=("share_expert_dim",), of=lambda d: d.shared_ff),
        ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, ("moe_router_scaling_factor",)),
        ConfigKey(Keys.LLM.MOE_EVERY_N_LAYERS, computed=constant(1)),
        ConfigKey(Keys.LLM.SWIGLU_CLAMP_EXP, f32s, computed=limits("swiglu_limits")),
        ConfigKey(Keys.LLM.SWIGLU_CLAMP_SHEXP, f32s, computed=limits("swiglu_limits_shared")),
    ),
    models="Step 3.5 Flash, Step 3.7 Flash (text)",
    rope=Rope(partial=0.5, scaling=("llama3",), padded=True),
    fused=(
        BIAS,
        named(".moe.router_bias", T.FFN_EXP_PROBS_B, "bias"),
        *PACKED_EXPERTS,
    ),
    require={
        **SILU,
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "moe_router_activation": ("sigmoid",),
        "norm_expert_weight": (True,),
        "moe_every_n_layer": (1,),
        "use_head_wise_attn_gate": (True,),
        "use_moe_router_bias": (True,),
    },
    defaults={
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1280,
        "share_expert_dim": 1280,
        "moe_router_scaling_factor": 1.0,
    },
    drop={**VISION_TOWER, "vit_large_projector.": VISION_TOWER["vision_tower."]},
    aliases={
        "moe_num_experts": "num_experts",
        "n_routed_experts": "num_experts",
        "moe_top_k": "num_experts_per_tok",
        "num_attention_groups": "num_key_value_heads",
        "share_expert_dims": "share_expert_dim",
    },
    derived=as_transformers,
    spellings={
        r"\.transformer\.shared_head\.output\.": ".shared_head.head.",
        r"\.transformer\.shared_head\.": ".shared_head.",
    },
    sizes={
        "q_full": rows(False),
        "q_window": rows(True),
        "heads_full": lambda config: whole(config, "num_attention_heads"),
        "heads_window": window_heads,
        "shared_ff": lambda config: whole(config, "share_expert_dim"),
        **DOUBLE,
    },
    kinds=kinds,
    check=problem,
    head_rows=0,
    appended=True,
)

RECORDS = (STEP35,)
