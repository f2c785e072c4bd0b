"""Mamba and Mamba 2, and what models have in common that use them beside attention.

A block's state is driven by a short convolution; its decay is stored as a logarithm, and ggml wants the decay itself.
Mamba 2 has one decay for each head, which ggml wants as a column, and a norm for each group, which it wants as a row.

Sources: llama.cpp's src/models/mamba-base.cpp, mamba.cpp and mamba2.cpp.
"""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import boolean, f32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import EMBEDDINGS, SIZES, T, constant
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.reorder import Chain, Fold, NegativeExp, Squeeze

CONTEXT = 1 << 20  # as llama.cpp's converter has it: a state does not limit the context
UNLIMITED = {"time_step_limit": ([0.0, float("inf")],)}
NO_ROTATION = Rope(rotates=False)


def size(config: Config, *names: str, default: int = 0) -> int:
    """A size of the config that is no less than 0."""
    return max(config.integer(*names, default=default) or 0, 0)


def rank(config: Config, *names: str) -> int:
    """Of the time step: a sixteenth of the embedding, rounded up, unless the config says a number."""
    stated = config.first(*names)
    return size(config, *names) if stated not in (None, "auto") else -(-size(config, "hidden_size") // 16)


def column(dims: Dims) -> Op:
    """The op of a number for each head: a matrix of one column."""
    return Fold(dims.size("ssm_heads"))


def decay_column(dims: Dims) -> Op:
    """The op of the decay of each head."""
    return Chain(NegativeExp(), column(dims))


def group_rows(dims: Dims) -> Op:
    """The op of a norm for each group: a row for each."""
    return Fold(dims.size("groups"))


def mamba2_tensors(on: str = "") -> tuple[TensorRule, ...]:
    """Those of Mamba 2, in the blocks that have this word."""
    rules = (
        TensorRule(T.SSM_IN, "ssm_proj embd"),
        TensorRule(T.SSM_CONV1D, "channels 1 kernel", lambda dims: Squeeze()),
        TensorRule(T.SSM_CONV1D, "channels", part="bias"),
        TensorRule(T.SSM_DT, "ssm_heads", part="bias"),
        TensorRule(T.SSM_A, "ssm_heads", decay_column, part=""),
        TensorRule(T.SSM_D, "ssm_heads", column, part=""),
        TensorRule(T.SSM_NORM, "inner", group_rows),
        TensorRule(T.SSM_OUT, "embd inner"),
    )
    return tuple(replace(rule, on=on) for rule in rules)


def mamba2_sizes(
    heads: Callable[[Config], int],
    head: Callable[[Config], int],
    groups: Callable[[Config], int],
    state: Callable[[Config], int],
    kernel: Callable[[Config], int],
) -> dict[str, Callable[[Config], int]]:
    """The sizes that the tensors of Mamba 2 are made of: the channels of the convolution hold inputs, B and C."""

    def inner(config: Config) -> int:
        return heads(config) * head(config)

    def channels(config: Config) -> int:
        return inner(config) + 2 * groups(config) * state(config)

    return {
        "ssm_heads": heads,
        "inner": inner,
        "groups": groups,
        "state": state,
        "kernel": kernel,
        "channels": channels,
        "ssm_proj": lambda config: inner(config) + channels(config) + heads(config),
    }


SSM_NAMES = (named(".dt_bias", T.SSM_DT, "bias"), named(".A_log", T.SSM_A, ""), named(".D", T.SSM_D, ""))
MAMBA2_KEYS = (
    ConfigKey(Keys.SSM.CONV_KERNEL, of=lambda d: d.size("kernel")),
    ConfigKey(Keys.SSM.STATE_SIZE, of=lambda d: d.size("state")),
    ConfigKey(Keys.SSM.GROUP_COUNT, of=lambda d: d.size("groups")),
    ConfigKey(Keys.SSM.INNER_SIZE, of=lambda d: d.size("inner")),
    ConfigKey(Keys.SSM.TIME_STEP_RANK, of=lambda d: d.size("ssm_heads")),
)
MAMBA_TENSORS = (
    TensorRule(T.SSM_IN, "inner2 embd"),
    TensorRule(T.SSM_CONV1D, "inner 1 kernel", lambda dims: Squeeze()),
    TensorRule(T.SSM_CONV1D, "inner", part="bias"),
    TensorRule(T.SSM_X, "dt_b_c inner"),
    TensorRule(T.SSM_DT, "inner rank"),
    TensorRule(T.SSM_DT, "inner", part="bias"),
    TensorRule(T.SSM_A, "inner state", lambda dims: NegativeExp(), part=""),
    TensorRule(T.SSM_D, "inner", part=""),
    TensorRule(T.SSM_OUT, "embd inner"),
)
NOTHING_ATTENDS = {"heads": lambda config: 0, "kv_heads": lambda config: 0, "ff": lambda config: 0}
STATES_ALONE = (
    ConfigKey(Keys.LLM.CONTEXT_LENGTH, computed=constant(CONTEXT)),
    *(key for key in SIZES if key.name in (Keys.LLM.BLOCK_COUNT, Keys.LLM.EMBEDDING_LENGTH)),
    ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, computed=constant(0)),
    ConfigKey(Keys.Attention.HEAD_COUNT, computed=constant(0)),
    ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, ("layer_norm_epsilon", "rms_norm_eps"), 1e-5),
)
LAYOUT = {"use_bias": (False,), "use_conv_bias": (True,), "hidden_act": ("silu",)}


def mamba_inner(config: Config) -> int:
    """Numbers inside a block of Mamba."""
    return size(config, "intermediate_size", "d_inner", default=size(config, "expand", default=2) * embedding(config))


def embedding(config: Config) -> int:
    """Numbers of a hidden state."""
    return size(config, "hidden_size", "d_model")


def twice(config: Config, dims: Dims) -> str | None:
    """llama.cpp's graph of Mamba has no other factor."""
    inner = dims.size("inner")
    return None if inner == 2 * dims.embd else f"blocks are {inner} wide, and llama.cpp assumes {2 * dims.embd}"


def expanded(config: Config, dims: Dims) -> str | None:
    """The heads of Mamba 2 are as wide together as the config says."""
    wide = size(config, "expand", default=2) * dims.embd
    return None if dims.size("inner") == wide else f"heads are {dims.size('inner')} wide, but expand says {wide}"


MAMBA = Architecture(
    MODEL_ARCH.MAMBA,
    ("MambaForCausalLM", "FalconMambaForCausalLM"),
    tensors=(*EMBEDDINGS, TensorRule(T.ATTN_NORM, "embd"), *MAMBA_TENSORS),
    keys=(
        *STATES_ALONE,
        ConfigKey(Keys.SSM.CONV_KERNEL, names=("conv_kernel",), of=lambda d: d.size("kernel")),
        ConfigKey(Keys.SSM.INNER_SIZE, names=("intermediate_size",), of=lambda d: d.size("inner")),
        ConfigKey(Keys.SSM.STATE_SIZE, names=("state_size",), of=lambda d: d.size("state")),
        ConfigKey(Keys.SSM.TIME_STEP_RANK, names=("time_step_rank",), of=lambda d: d.size("rank")),
        ConfigKey(
            Keys.SSM.DT_B_C_RMS,
            boolean,
            computed=lambda config, dims: config.first("model_type") == "falcon_mamba",
        ),
    ),
    models="Mamba, Falcon Mamba",
    rope=NO_ROTATION,
    fused=SSM_NAMES,
    require=LAYOUT,
    warn={"mixer_rms_eps": ((1e-5,), "llama.cpp has one epsilon for all norms, layer_norm_epsilon")},
    sizes={
        **NOTHING_ATTENDS,
        "inner": mamba_inner,
        "inner2": lambda config: 2 * mamba_inner(config),
        "kernel": lambda config: size(config, "conv_kernel", "d_conv", default=4),
        "state": lambda config: size(config, "state_size", "d_state", default=16),
        "rank": lambda config: rank(config, "time_step_rank", "dt_rank"),
        "dt_b_c": lambda config: (
            rank(config, "time_step_rank", "dt_rank") + 2 * size(config, "state_size", "d_state", default=16)
        ),
    },
    check=twice,
)
MAMBA2 = Architecture(
    MODEL_ARCH.MAMBA2,
    ("Mamba2ForCausalLM",),
    tensors=(*EMBEDDINGS, TensorRule(T.ATTN_NORM, "embd"), *mamba2_tensors()),
    keys=(*STATES_ALONE, *MAMBA2_KEYS),
    models="Mamba 2, Codestral Mamba",
    rope=NO_ROTATION,
    fused=SSM_NAMES,
    require={**LAYOUT, **UNLIMITED, "rms_norm": (True,)},
    sizes={
        **NOTHING_ATTENDS,
        **mamba2_sizes(
            heads=lambda config: size(config, "num_heads", default=128),
            head=lambda config: size(config, "head_dim", default=64),
            groups=lambda config: size(config, "n_groups", default=8),
            state=lambda config: size(config, "state_size", "d_state", default=128),
            kernel=lambda config: size(config, "conv_kernel", "d_conv", default=4),
        ),
    },
    check=expanded,
)

RECORDS = (MAMBA, MAMBA2)
