"""Kimi Linear: delta attention with a decay for every channel, latent attention without a rotary embedding in turn."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    NORMS,
    OPTIONAL,
    OUTPUT_OR_EMBEDDING,
    PACKED_EXPERTS,
    SILU,
    SIZES,
    VOCAB_SIZE,
    T,
    constant,
    without,
)
from ggufsmith.convert.architectures.latent import DEEPSEEK2
from ggufsmith.convert.architectures.moe import (
    BIAS,
    DENSE_BLOCKS,
    LEADING,
    PROBS_BIAS,
    SHARED_BLOCKS,
    SHARED_COUNT,
    SIGMOID,
    SPARSE_BLOCKS,
    WEIGHTS_SCALE,
    lead,
    only_first_dense,
    whole,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Array, Op, Read, Shape
from ggufsmith.convert.reorder import NegativeExp

CONVOLUTIONS = (T.SSM_CONV1D_Q, T.SSM_CONV1D_K, T.SSM_CONV1D_V)


def stated(config: Config, name: str, published: str, usual: int) -> int:
    """A size of delta attention, by itself or in an object as the published config has it."""
    found = config.mapping("linear_attn_config").get(published)
    return found if isinstance(found, int) and not isinstance(found, bool) else whole(config, name, usual)


def head(config: Config) -> int:
    """The length of a head of delta attention."""
    return stated(config, "linear_head_dim", "head_dim", 128)


def heads(config: Config) -> int:
    """The heads of delta attention."""
    return stated(config, "linear_num_heads", "num_heads", 32)


def attends(config: Config, blocks: int) -> list[bool]:
    """Which blocks have latent attention; the published config counts them from 1."""
    given = config.items_of("layer_types", str, blocks)
    listed = config.mapping("linear_attn_config").get("full_attn_layers")
    if given:
        return [kind == "full_attention" for kind in given]
    if isinstance(listed, list):
        return [block + 1 in listed for block in range(blocks)]
    return [block > 0 and block % 4 == 0 for block in range(blocks)]


def kinds(config: Config, blocks: int) -> list[str]:
    """full or linear; dense or moe."""
    first = lead(config)
    words = ("full" if full else "linear" for full in attends(config, blocks))
    return [f"{word} {'dense' if block < first else 'moe'}" for block, word in enumerate(words)]


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    if heads(config) != dims.heads:
        return f"delta attention has {heads(config)} heads, but llama.cpp takes {dims.heads} as in the other blocks"
    return only_first_dense(config)


@dataclass(frozen=True)
class Channels(Op):
    """Channels begin..end (exclusive) of a convolution, (channels, 1, width), framed: (1, end - begin, 1, width)."""

    begin: int
    end: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if not 0 <= self.begin < self.end <= source[0]:
            raise ValueError(f"channels {self.begin} to {self.end} are not within {source[0]}")
        return (1, self.end - self.begin, *source[1:])

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        return read(0, self.begin + start, self.begin + stop)

    @property
    def selects(self) -> bool:
        return True

    @property
    def across(self) -> bool:
        return True

    def view(self, source: Array) -> Array:
        return source[self.begin : self.end][None]


def framed(dims: Dims) -> Op:
    """The op of a short convolution."""
    return Channels(0, dims.size("inner"))


def convolution(k: int) -> Callable[[Dims], Op]:
    """The op that takes the convolution of queries, keys or values out of all three."""

    return lambda dims: Channels(k * dims.size("inner"), (k + 1) * dims.size("inner"))


LATENT = tuple(
    replace(rule, on="full")
    for rule in DEEPSEEK2.tensors
    if rule.tensor.name.startswith("ATTN_") and rule.tensor is not T.ATTN_NORM
)
KIMI_LINEAR = Architecture(
    MODEL_ARCH.KIMI_LINEAR,
    ("KimiLinearForCausalLM", "KimiLinearModel"),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *LATENT,
        *(TensorRule(tensor, "inner embd", on="linear") for tensor in (T.ATTN_Q, T.ATTN_K, T.ATTN_V)),
        *(TensorRule(tensor, "inner 1 kernel", framed, on="linear") for tensor in CONVOLUTIONS),
        TensorRule(T.SSM_F_A, "head embd", on="linear"),
        TensorRule(T.SSM_F_B, "inner head", on="linear"),
        TensorRule(T.SSM_BETA, "heads embd", on="linear"),
        TensorRule(T.SSM_A, "1 1 heads 1", lambda dims: NegativeExp(), on="linear", part=""),
        TensorRule(T.SSM_DT, "inner", on="linear", part="bias"),
        TensorRule(T.SSM_G_A, "head embd", on="linear"),
        TensorRule(T.SSM_G_B, "inner head", on="linear"),
        TensorRule(T.SSM_NORM, "head", on="linear"),
        TensorRule(T.ATTN_OUT, "embd inner", on="linear"),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *(replace(rule, need=OPTIONAL) for rule in SHARED_BLOCKS),
    ),
    keys=(
        *without(SIZES, Keys.Attention.HEAD_COUNT_KV),
        ConfigKey(
            Keys.Attention.HEAD_COUNT_KV,
            i32s,
            computed=lambda config, dims: [int("full" in kind) for kind in dims.kinds],
        ),
        *(VOCAB_SIZE, *EXPERT_COUNTS, *EXPERT_LENGTH, SHARED_COUNT, LEADING, WEIGHTS_SCALE),
        ConfigKey(Keys.LLM.EXPERT_GATING_FUNC, computed=constant(SIGMOID)),
        ConfigKey(Keys.LLM.EXPERT_GROUP_USED_COUNT, u32, ("topk_group",), None),
        ConfigKey(Keys.SSM.CONV_KERNEL, names=("linear_conv_kernel_dim",), of=lambda d: d.size("kernel")),
        ConfigKey(Keys.KDA.HEAD_DIM, names=("linear_head_dim",), of=lambda d: d.size("head")),
        ConfigKey(Keys.Attention.Q_LORA_RANK, u32, ("q_lora_rank",), None),
        ConfigKey(Keys.Attention.KV_LORA_RANK, u32, ("kv_lora_rank",)),
        ConfigKey(Keys.Attention.KEY_LENGTH, of=lambda d: d.size("kv_rope")),
        ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.size("kv_rank")),
        ConfigKey(Keys.Attention.KEY_LENGTH_MLA, of=lambda d: d.size("nope") + d.size("rope_dim")),
        ConfigKey(Keys.Attention.VALUE_LENGTH_MLA, names=("v_head_dim",), of=lambda d: d.size("v_dim")),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, names=("qk_rope_head_dim",), of=lambda d: d.size("rope_dim")),
    ),
    rope=Rope(rotates=False),
    fused=(
        BIAS,
        named(".self_attn.dt_bias", T.SSM_DT, "bias"),
        named(".self_attn.A_log", T.SSM_A, ""),
        Fused(
            ".self_attn.conv1d",
            "inner3 1 kernel",
            tuple((tensor, convolution(k)) for k, tensor in enumerate(CONVOLUTIONS)),
        ),
        DEEPSEEK2.fused[1],
        *PACKED_EXPERTS,
    ),
    # What transformers 5 calls them in memory, and when it saves a dense block.
    spellings={
        r"\.self_attn\.forget_gate\.": ".self_attn.",
        r"\.block_sparse_moe\.((?:gate|up|down)_proj)\.": r".mlp.\1.",
    },
    require={
        **SILU,
        "attention_bias": (False,),
        "mla_use_nope": (True,),
        "moe_router_activation_func": ("sigmoid",),
        "moe_layer_freq": (1,),
        "norm_topk_prob": (True,),
        "n_group": (1,),
        "topk_group": (1,),
    },
    defaults={
        "max_position_embeddings": 1048576,
        "rms_norm_eps": 1e-5,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1024,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.446,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "num_experts_per_tok": 8,
    },
    aliases={
        "num_expert_group": "n_group",
        "num_experts_per_token": "num_experts_per_tok",
        "num_shared_experts": "n_shared_experts",
        "moe_renormalize": "norm_topk_prob",
        "model_max_length": "max_position_embeddings",
    },
    sizes={
        **DEEPSEEK2.sizes,
        "head": head,
        "inner": lambda config: heads(config) * head(config),
        "inner3": lambda config: 3 * heads(config) * head(config),
        "kernel": lambda config: stated(config, "linear_conv_kernel_dim", "short_conv_kernel_size", 4),
    },
    kinds=kinds,
    check=problem,
    head_rows=0,
    models="Kimi Linear",
)

RECORDS = (KIMI_LINEAR,)
