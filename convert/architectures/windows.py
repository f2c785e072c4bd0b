"""Granite and Mellum with sliding windows: most blocks have one, and some do not rotate."""

from dataclasses import replace

from gguf.constants import Keys

from ggufsmith.container.values import booleans, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.dense import GRANITE, LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    EXPERTS,
    HEAD_NORMS,
    HEAD_SIZE,
    INVERSE_FREQUENCIES,
    MTP_HEAD,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    SHARED_LENGTH,
    SILU,
    SIZES,
    WINDOW,
    T,
)
from ggufsmith.convert.architectures.moe import whole
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys
from ggufsmith.convert.rope import read_rope

MELLUM_ROPE = Rope(theta=500000.0, local_theta=10000.0, scaling=("yarn",))


def with_window(period: int, config: Config, dims: Dims) -> list[bool]:
    """Which blocks have a window; of a silent config all but every so many-th from the first on, or none (period 1)."""
    given = config.items_of("layer_types", str, dims.blocks)
    return [kind == "sliding_attention" for kind in given] or [block % period != 0 for block in range(dims.blocks)]


def thetas(config: Config, dims: Dims) -> list[float]:
    """The base of the rotary embedding of every block, 0 where there is none."""
    found = config.first("layer_rope_theta")
    if isinstance(found, list):
        return config.numbers_of("layer_rope_theta", dims.blocks)
    return [float(each) for each in config.items_of("no_rope_layers", int, dims.blocks)]


def rotated(config: Config, dims: Dims) -> list[bool] | None:
    """Which blocks rotate, where not all do."""
    found = [theta > 0 for theta in thetas(config, dims)]
    return None if all(found) else found


def one_base(config: Config, dims: Dims) -> str | None:
    """A sentence if blocks rotate with several bases, of which llama.cpp has one, else None."""
    theta = read_rope(config, Rope()).theta
    if isinstance(config.first("layer_rope_theta"), list) and set(thetas(config, dims)) - {0.0, theta}:
        return f"layer_rope_theta has other bases than {theta:g}, but llama.cpp has one for all blocks"
    return None


def one_mellum_base(config: Config, dims: Dims) -> str | None:
    """The same of Mellum, whose blocks with a window have parameters of their own."""
    found = read_rope(config, MELLUM_ROPE)
    if any(with_window(1, config, dims)) and found.local_theta != found.theta:
        return f"blocks with a window rotate with the base {found.local_theta:g}, but llama.cpp takes {found.theta:g}"
    return None


SINKS = TensorRule(T.ATTN_SINKS, "heads")
GRANITE_SWA = replace(
    GRANITE,
    arch=NewArch.GRANITE_SWA,
    classes=("GraniteSWAForCausalLM",),
    tensors=(*GRANITE.tensors, SINKS),
    keys=(
        *GRANITE.keys,
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",), 128),
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=lambda c, dims: with_window(4, c, dims)),
        ConfigKey(NewKeys.ROPE_PATTERN, booleans, computed=rotated),
    ),
    defaults={"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "num_key_value_heads": 4},
    fused=(named(".self_attn.sinks", T.ATTN_SINKS),),
    check=one_base,
    models="Granite with sliding windows (dense)",
)
GRANITE_MOE_SWA = replace(
    GRANITE_SWA,
    classes=("GraniteMoeSWAForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *LLAMA_ATTENTION,
        SINKS,
        EXPERTS[0],
        TensorRule(T.FFN_GATE_UP_EXP, "experts expert_gate_up embd"),
        EXPERTS[3],
        TensorRule(T.FFN_UP_SHEXP, "shared_gate_up embd", when=lambda dims: dims.shared_ff > 0),
        TensorRule(T.FFN_DOWN_SHEXP, "embd shared_ff", when=lambda dims: dims.shared_ff > 0),
    ),
    keys=(
        *GRANITE_SWA.keys,
        *EXPERT_COUNTS,
        replace(SHARED_LENGTH, names=("shared_intermediate_size",), of=lambda d: d.shared_ff or None, default=None),
    ),
    defaults={"max_position_embeddings": 2048, "num_local_experts": 8, "num_experts_per_tok": 2},
    fused=(
        *GRANITE_SWA.fused,
        *(
            named(f".block_sparse_moe.{name}", tensor)
            for name, tensor in (
                ("input_linear", T.FFN_GATE_UP_EXP),
                ("experts.gate_up_proj", T.FFN_GATE_UP_EXP),
                ("output_linear", T.FFN_DOWN_EXP),
                ("experts.down_proj", T.FFN_DOWN_EXP),
                ("router", T.FFN_GATE_INP),
            )
        ),
        named(".shared_mlp.input_linear", T.FFN_UP_SHEXP),
        named(".shared_mlp.output_linear", T.FFN_DOWN_SHEXP),
    ),
    sizes={
        "shared_ff": lambda config: whole(config, "shared_intermediate_size"),
        "shared_gate_up": lambda config: 2 * whole(config, "shared_intermediate_size"),
    },
    models="Granite with sliding windows (mixture of experts)",
)
MELLUM = Architecture(
    NewArch.MELLUM,
    ("MellumForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *EXPERTS,
    ),
    keys=(
        *SIZES,
        *HEAD_SIZE,
        *QWEN_EXPERT_COUNTS,
        *EXPERT_LENGTH,
        WINDOW,
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=lambda c, dims: with_window(1, c, dims)),
    ),
    rope=MELLUM_ROPE,
    fused=PACKED_EXPERTS,
    require={**SILU, "norm_topk_prob": (True,), "use_sliding_window": (True,)},
    defaults={
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "head_dim": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 896,
    },
    drop={**INVERSE_FREQUENCIES, **MTP_HEAD},
    check=one_mellum_base,
    models="Mellum 2",
)

RECORDS = (GRANITE_SWA, GRANITE_MOE_SWA, MELLUM)
