"""Models with state spaces beside attention, in turn or in the same block: Granite 4, Nemotron-H, Falcon-H1, Jamba.

Which blocks attend, llama.cpp reads from the number of key-value heads of each block.

Sources: llama.cpp's src/models/granite-hybrid.cpp, nemotron-h.cpp, falcon-h1.cpp and jamba.cpp.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import boolean, f32, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, TensorRule, named
from ggufsmith.convert.architectures.dense import GRANITE, LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    BASE,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    FEED_FORWARD,
    HEAD_SIZE,
    LAYER_NORM,
    NORMS,
    OPTIONAL,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    SILU,
    SIZES,
    VOCAB_SIZE,
    T,
    constant,
    half,
    without,
)
from ggufsmith.convert.architectures.moe import (
    GRANITE_MOE,
    GROUPS,
    PROBS_BIAS,
    ROUTED,
    SHARED_BLOCKS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
)
from ggufsmith.convert.architectures.state_space import (
    CONTEXT,
    MAMBA2_KEYS,
    MAMBA_TENSORS,
    NO_ROTATION,
    SSM_NAMES,
    UNLIMITED,
    mamba2_sizes,
    mamba2_tensors,
    rank,
    size,
)
from ggufsmith.convert.config import Config

STATE, ATTENDS = ("mamba", "linear_attention"), ("attention", "full_attention")


def on(word: str, rules: Iterable[TensorRule], **changes: object) -> tuple[TensorRule, ...]:
    """The same tensors, in the blocks that have this word alone."""
    return tuple(replace(rule, on=word, **changes) for rule in rules)  # type: ignore[arg-type]


def per_block(word: str, count: Callable[[Dims], int]) -> Callable[[Config, Dims], list[int]]:
    """A number for the blocks that have this word, 0 for the others."""
    return lambda config, dims: [count(dims) * (word in kind) for kind in dims.kinds]


def any_context(config: Config, dims: Dims) -> int:
    """What llama.cpp's converter writes for models whose positions are told by states."""
    config.first("max_position_embeddings")
    return CONTEXT


HEADS_OF_BLOCKS = ConfigKey(Keys.Attention.HEAD_COUNT_KV, i32s, computed=per_block("full", lambda d: d.kv_heads))
NOT_ROTATED = ConfigKey(Keys.Rope.SCALING_FINETUNED, boolean, computed=constant(False))
ANY_CONTEXT = ConfigKey(Keys.LLM.CONTEXT_LENGTH, names=("max_position_embeddings",), computed=any_context)
MAMBA_LAYOUT = {"mamba_conv_bias": (True,), "mamba_proj_bias": (False,), **UNLIMITED}


def head_of_state(config: Config) -> int:
    """Numbers of one head of a state space."""
    if isinstance(config.first("mamba_d_head"), int):
        return size(config, "mamba_d_head")
    inner = size(config, "mamba_d_ssm") or size(config, "mamba_expand", default=2) * size(config, "hidden_size")
    return inner // max(size(config, "mamba_n_heads", default=128), 1)


MAMBA2_SIZES = mamba2_sizes(
    heads=lambda config: size(config, "mamba_n_heads", default=128),
    head=head_of_state,
    groups=lambda config: size(config, "mamba_n_groups", default=1),
    state=lambda config: size(config, "mamba_d_state", default=256),
    kernel=lambda config: size(config, "mamba_d_conv", default=4),
)

# -- Granite 4 --------------------------------------------------------------------------------------------------------


def granite_kinds(config: Config, blocks: int) -> list[str]:
    """full or mamba for every block; those that the config says nothing of have a state, as in transformers."""
    given = config.items_of("layer_types", str, blocks) or config.items_of("layers_block_type", str, blocks)
    return ["full" if kind in ATTENDS else "mamba" for kind in given or ["mamba"] * blocks]


def granite_variant(config: Config) -> str:
    """Which of the four: with or without states, with or without experts."""
    blocks = size(config, "num_hidden_layers")
    states = "mamba" in granite_kinds(config, blocks)
    return f"{'hybrid' if states else 'granite'}{'_moe' * (size(config, 'num_local_experts', default=8) > 0)}"


def rotates(config: Config, dims: Dims) -> bool:
    """Whether positions are told by a rotary embedding."""
    return bool(config.first("position_embedding_type") == "rope")


def granite_context(config: Config, dims: Dims) -> int | None:
    """Of a model whose positions are told by its states, any."""
    stated = config.integer("max_position_embeddings")
    return stated if rotates(config, dims) else CONTEXT


def experts_used(config: Config, dims: Dims) -> int | None:
    """None of none, whatever the config says, or llama.cpp does not load the model."""
    used = config.integer("num_experts_per_tok")
    return used if dims.experts else None if used is None else 0


SHARED_SIZE = ConfigKey(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, u32, ("shared_intermediate_size",), None)
SHARED_AS_DENSE = (
    Fused("shared_mlp.input_linear", "gate_up embd", ((T.FFN_GATE, half("ff", 0)), (T.FFN_UP, half("ff", 1)))),
    named("shared_mlp.output_linear", T.FFN_DOWN),
)
SHARED_EXPERT = (
    Fused(
        "shared_mlp.input_linear",
        "shared_gate_up embd",
        ((T.FFN_GATE_SHEXP, half("shared_ff", 0)), (T.FFN_UP_SHEXP, half("shared_ff", 1))),
    ),
    *GRANITE_MOE.fused,
)
SHARED_SIZES = {
    "shared_ff": lambda config: size(config, "shared_intermediate_size", default=1024),
    "shared_gate_up": lambda config: 2 * size(config, "shared_intermediate_size", default=1024),
}
GRANITE_DEFAULTS = {"max_position_embeddings": 2048, "num_local_experts": 8, "num_experts_per_tok": 2}
GRANITE_SHARED_TENSORS = (
    *GRANITE_MOE.tensors,
    *(replace(rule, on="", need=OPTIONAL) for rule in SHARED_BLOCKS),
)
GRANITE_KEYS = (
    *without(GRANITE.keys, Keys.LLM.CONTEXT_LENGTH),
    ConfigKey(Keys.LLM.CONTEXT_LENGTH, names=("max_position_embeddings",), computed=granite_context),
    EXPERT_COUNTS[0],
    ConfigKey(Keys.LLM.EXPERT_USED_COUNT, u32, ("num_experts_per_tok",), computed=experts_used),
    SHARED_SIZE,
    ConfigKey(Keys.Rope.SCALING_FINETUNED, boolean, computed=rotates),
)
GRANITE_HYBRID_KEYS = (*without(GRANITE_KEYS, Keys.Attention.HEAD_COUNT_KV), HEADS_OF_BLOCKS, *MAMBA2_KEYS)


def twice(config: Config, dims: Dims) -> str | None:
    """llama.cpp's graph has no other factor."""
    inner = dims.size("inner")
    config.first("mamba_expand")
    return None if inner == 2 * dims.embd else f"states are {inner} wide, and llama.cpp assumes {2 * dims.embd}"


GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    classes=("GraniteMoeSharedForCausalLM",),
    tensors=GRANITE_SHARED_TENSORS,
    keys=(*GRANITE_MOE.keys, SHARED_SIZE),
    models="Granite 3 (mixture of experts with a shared one)",
    fused=SHARED_EXPERT,
    sizes={
        "shared_ff": lambda config: size(config, "shared_intermediate_size"),
        "shared_gate_up": lambda config: 2 * size(config, "shared_intermediate_size"),
    },
)
HYBRID_CLASSES = ("GraniteMoeHybridForCausalLM",)
STATES_UNUSED = "conv_bias d_conv d_head d_state expand n_groups n_heads proj_bias".split()


def no_states(config: Config, dims: Dims) -> None:
    """What the config says of states is nothing to a model without them."""
    config.first("time_step_limit", *(f"mamba_{name}" for name in STATES_UNUSED))


GRANITE4 = replace(
    GRANITE,
    classes=HYBRID_CLASSES,
    keys=GRANITE_KEYS,
    models="Granite 4 (without states)",
    fused=SHARED_AS_DENSE,
    defaults=GRANITE_DEFAULTS,
    sizes={"ff": SHARED_SIZES["shared_ff"]},
    kinds=granite_kinds,
    check=no_states,
)
GRANITE4_MOE = replace(
    GRANITE4,
    arch=MODEL_ARCH.GRANITE_MOE,
    tensors=GRANITE_SHARED_TENSORS,
    models="Granite 4 (mixture of experts without states)",
    fused=SHARED_EXPERT,
    sizes=SHARED_SIZES,
)
GRANITE_HYBRID_DENSE = replace(
    GRANITE,
    arch=MODEL_ARCH.GRANITE_HYBRID,
    classes=HYBRID_CLASSES,
    tensors=(*EMBEDDINGS, *NORMS, *on("full", LLAMA_ATTENTION), *mamba2_tensors("mamba"), *FEED_FORWARD),
    keys=GRANITE_HYBRID_KEYS,
    models="Granite 4 (hybrid)",
    fused=(*SSM_NAMES, *SHARED_AS_DENSE),
    require={**GRANITE.require, **MAMBA_LAYOUT},
    defaults=GRANITE_DEFAULTS,
    sizes={**MAMBA2_SIZES, "ff": SHARED_SIZES["shared_ff"]},
    kinds=granite_kinds,
    check=twice,
)
GRANITE_HYBRID = replace(
    GRANITE_HYBRID_DENSE,
    tensors=(
        *(EMBEDDINGS + NORMS + on("full", LLAMA_ATTENTION) + mamba2_tensors("mamba")),
        *GRANITE_SHARED_TENSORS[-len(SHARED_BLOCKS) - 4 :],
    ),
    fused=(*SSM_NAMES, *SHARED_EXPERT),
    sizes={**MAMBA2_SIZES, **SHARED_SIZES},
    variant=granite_variant,
    variants={"hybrid": GRANITE_HYBRID_DENSE, "granite": GRANITE4, "granite_moe": GRANITE4_MOE},
)

# -- Nemotron-H -------------------------------------------------------------------------------------------------------

LETTERS = {"M": "mamba", "*": "full", "-": "mlp", "E": "moe"}
WORDS = {**dict.fromkeys(STATE, "mamba"), **dict.fromkeys(ATTENDS, "full"), "mlp": "mlp", "moe": "moe"}


def nemotron_pattern(config: Config) -> list[str]:
    """mamba, full, mlp or moe for every block that the config lists."""
    listed = config.items_of("layers_block_type", str)
    letters = config.first("hybrid_override_pattern")
    return [WORDS.get(kind, kind) for kind in listed] or [LETTERS.get(each, each) for each in str(letters or "")]


def nemotron_blocks(config: Config) -> int:
    """As many as are listed."""
    listed = len(nemotron_pattern(config))
    config.first("num_hidden_layers")
    return listed


def one_feed_forward(config: Config, dims: Dims) -> str | None:
    """llama.cpp takes every feed-forward for one with experts where there are experts."""
    config.first(*"moe_latent_size n_routed_experts n_shared_experts moe_intermediate_size n_group topk_group".split())
    config.first(*"moe_shared_expert_intermediate_size norm_topk_prob routed_scaling_factor expand".split())
    config.first("num_experts_per_tok")
    unknown = {word for kind in dims.kinds for word in kind} - {*LETTERS.values()}
    if unknown:
        return f"there are blocks of kinds that are not known: {', '.join(sorted(unknown))}"
    if all(any(word in kind for kind in dims.kinds) for word in ("mlp", "moe")):
        return "there are feed-forwards with experts and without, which llama.cpp cannot run side by side"
    return None


MAMBA_BLOCKS = {
    "use_conv_bias": (True,),
    "mamba_conv_bias": (True,),
    "mamba_proj_bias": (False,),
    "use_bias": (False,),
    "mlp_bias": (False,),
    "mlp_hidden_act": ("relu2",),
    "mamba_hidden_act": ("silu",),
    "sliding_window": (),
    **UNLIMITED,
}
NEMOTRON_H = Architecture(
    MODEL_ARCH.NEMOTRON_H,
    ("NemotronHForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        NORMS[0],
        *mamba2_tensors("mamba"),
        *on("full", LLAMA_ATTENTION, bias=False),
        *on("mlp", FEED_FORWARD[1:], bias=False),
    ),
    keys=(
        *without(BASE, Keys.Attention.HEAD_COUNT_KV, Keys.LLM.CONTEXT_LENGTH, Keys.LLM.FEED_FORWARD_LENGTH),
        *(HEADS_OF_BLOCKS, ANY_CONTEXT, *HEAD_SIZE, VOCAB_SIZE, *MAMBA2_KEYS, NOT_ROTATED),
        ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, i32s, computed=per_block("mlp", lambda d: d.ff)),
        replace(LAYER_NORM, names=("layer_norm_epsilon", "rms_norm_eps")),
        ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, ("rms_norm_eps",), None),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim),
    ),
    models="Nemotron-H, Nemotron Nano 2",
    rope=NO_ROTATION,
    fused=SSM_NAMES,
    require=MAMBA_BLOCKS,
    defaults={"num_attention_heads": 32, "num_key_value_heads": 8},
    drop={"mtp.": "blocks for multi-token prediction, which are not converted for this architecture yet"},
    sizes={
        "blocks": nemotron_blocks,
        "head_dim": lambda config: size(config, "head_dim", "attention_head_dim", default=128),
        **mamba2_sizes(
            heads=lambda config: size(config, "mamba_num_heads", default=128),
            head=lambda config: size(config, "mamba_head_dim", default=64),
            groups=lambda config: size(config, "n_groups", "mamba_n_groups", default=8),
            state=lambda config: size(config, "ssm_state_size", default=128),
            kernel=lambda config: size(config, "conv_kernel", "mamba_d_conv", default=4),
        ),
    },
    kinds=lambda config, blocks: nemotron_pattern(config),
    check=one_feed_forward,
)
NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    arch=MODEL_ARCH.NEMOTRON_H_MOE,
    tensors=(
        *NEMOTRON_H.tensors[:-2],
        TensorRule(T.FFN_GATE_INP, "experts embd", on="moe"),
        replace(PROBS_BIAS, on="moe"),
        TensorRule(T.FFN_UP_EXP, "experts expert_ff latent", on="moe", stacked=True),
        TensorRule(T.FFN_DOWN_EXP, "experts latent expert_ff", on="moe", stacked=True),
        TensorRule(T.FFN_UP_SHEXP, "shared_ff embd", on="moe"),
        TensorRule(T.FFN_DOWN_SHEXP, "embd shared_ff", on="moe"),
        TensorRule(T.MOE_LATENT_DOWN, "latent embd", on="moe", need=OPTIONAL),
        TensorRule(T.MOE_LATENT_UP, "embd latent", on="moe", need=OPTIONAL),
    ),
    keys=(
        *without(NEMOTRON_H.keys, Keys.LLM.FEED_FORWARD_LENGTH),
        *(*QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, *GROUPS, WEIGHTS_NORM, WEIGHTS_SCALE),
        ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, i32s, computed=per_block("moe", lambda d: d.expert_ff)),
        ConfigKey(
            Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH,
            names=("moe_shared_expert_intermediate_size",),
            of=lambda d: d.shared_ff,
        ),
        ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("n_shared_experts",), 1),
        ConfigKey(Keys.LLM.MOE_LATENT_SIZE, u32, ("moe_latent_size",), None),
    ),
    models="Nemotron 3 (Nano, Super)",
    fused=(
        *SSM_NAMES,
        named(".e_score_correction_bias", T.FFN_EXP_PROBS_B, "bias"),
        named(".mixer.experts.up_proj", T.FFN_UP_EXP),
        named(".mixer.experts.down_proj", T.FFN_DOWN_EXP),
    ),
    defaults={**NEMOTRON_H.defaults, "norm_topk_prob": True, "num_experts_per_tok": 2},
    aliases=ROUTED,
    sizes={
        **NEMOTRON_H.sizes,
        "ff": lambda config: size(config, "intermediate_size"),
        "shared_ff": lambda config: size(config, "moe_shared_expert_intermediate_size"),
        "latent": lambda config: size(config, "moe_latent_size") or size(config, "hidden_size"),
    },
)
NEMOTRON_H = replace(
    NEMOTRON_H,
    variant=lambda config: "moe" if "moe" in nemotron_pattern(config) else "",
    variants={"moe": NEMOTRON_H_MOE},
)

# -- Jamba ------------------------------------------------------------------------------------------------------------


def every(config: Config, period: str, offset: str, block: int, usual: tuple[int, int]) -> bool:
    """Whether a block is one of every so many."""
    step, first = config.integer(period, default=usual[0]), config.integer(offset, default=usual[1])
    return bool(step) and block % max(step or 1, 1) == first


def jamba_kinds(config: Config, blocks: int) -> list[str]:
    """full or mamba, moe or dense for every block."""
    experts = size(config, "num_experts", "num_local_experts", default=16) > 1
    return [
        ("full" if every(config, "attn_layer_period", "attn_layer_offset", block, (8, 4)) else "mamba")
        + (
            " moe"
            if experts and every(config, "expert_layer_period", "expert_layer_offset", block, (2, 1))
            else " dense"
        )
        for block in range(blocks)
    ]


def jamba_inner(config: Config) -> int:
    """Numbers inside a block with a state."""
    return size(config, "mamba_expand", default=2) * size(config, "hidden_size")


JAMBA = Architecture(
    MODEL_ARCH.JAMBA,
    ("JambaForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *on("mamba", MAMBA_TENSORS),
        TensorRule(T.SSM_DT_NORM, "rank", on="mamba"),
        TensorRule(T.SSM_B_NORM, "state", on="mamba"),
        TensorRule(T.SSM_C_NORM, "state", on="mamba"),
        *on("full", ATTENTION, bias=False),
        *on("dense", FEED_FORWARD, bias=False, when=lambda dims: True),
        TensorRule(T.FFN_GATE_INP, "experts embd", on="moe"),
        TensorRule(T.FFN_GATE_EXP, "experts ff embd", on="moe", stacked=True),
        TensorRule(T.FFN_UP_EXP, "experts ff embd", on="moe", stacked=True),
        TensorRule(T.FFN_DOWN_EXP, "experts embd ff", on="moe", stacked=True),
    ),
    keys=(
        *without(SIZES, Keys.Attention.HEAD_COUNT_KV),
        *(HEADS_OF_BLOCKS, *QWEN_EXPERT_COUNTS),
        ConfigKey(Keys.SSM.CONV_KERNEL, names=("mamba_d_conv",), of=lambda d: d.size("kernel")),
        ConfigKey(Keys.SSM.INNER_SIZE, of=lambda d: d.size("inner")),
        ConfigKey(Keys.SSM.STATE_SIZE, names=("mamba_d_state",), of=lambda d: d.size("state")),
        ConfigKey(Keys.SSM.TIME_STEP_RANK, names=("mamba_dt_rank",), of=lambda d: d.size("rank")),
    ),
    models="Jamba, Jamba 1.5, Jamba Reasoning",
    rope=NO_ROTATION,
    fused=(
        named(".A_log", T.SSM_A, ""),
        named(".D", T.SSM_D, ""),
        replace(PACKED_EXPERTS[0], suffix=".feed_forward.experts.gate_up_proj"),
    ),
    require={**SILU, "mamba_conv_bias": (True,), "mamba_proj_bias": (False,)},
    defaults={"num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 2, "max_position_embeddings": 262144},
    sizes={
        "inner": jamba_inner,
        "inner2": lambda config: 2 * jamba_inner(config),
        "kernel": lambda config: size(config, "mamba_d_conv", default=4),
        "state": lambda config: size(config, "mamba_d_state", default=16),
        "rank": lambda config: rank(config, "mamba_dt_rank"),
        "dt_b_c": lambda config: rank(config, "mamba_dt_rank") + 2 * size(config, "mamba_d_state", default=16),
    },
    kinds=jamba_kinds,
    check=twice,
)

RECORDS = (GRANITE_MOE_SHARED, GRANITE_HYBRID, NEMOTRON_H, JAMBA)
