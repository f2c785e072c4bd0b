"""MiMo-V2: blocks with a sliding window have twice the key-value heads, and sinks; values are narrower than keys."""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32, i32s
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    NORMS,
    OPTIONAL,
    OUTPUT_OR_EMBEDDING,
    PACKED_EXPERTS,
    ROTARY,
    SILU,
    SIZES,
    T,
    without,
)
from ggufsmith.convert.architectures.moe import (
    BIAS,
    DENSE_BLOCKS,
    DOUBLE,
    GROUPS,
    NEXTN,
    NEXTN_IF_ANY,
    PROBS_BIAS,
    ROUTED,
    SIGMOID,
    SPARSE_BLOCKS,
    gating,
    whole,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewKeys


def listed(config: Config, blocks: int, names: tuple[str, str], word: str, usual: Callable[[int], bool]) -> list[bool]:
    """A truth for each block: by 1 in the list of the first name, else by a word in that of the second, else usual."""
    flags, words = config.items_of(names[0], int, blocks), config.items_of(names[1], str, blocks)
    return [each == 1 for each in flags] or [each == word for each in words] or [usual(k) for k in range(blocks)]


def kinds(config: Config, blocks: int) -> list[str]:
    """window or full, moe or dense; mtp for the blocks behind the model, which have a window and are dense."""
    own = whole(config, "num_hidden_layers", blocks)
    narrow = listed(
        config, own, ("hybrid_layer_pattern", "layer_types"), "sliding_attention", lambda k: k > 0 and (k + 1) % 6 > 0
    )
    sparse = listed(config, own, ("moe_layer_freq", "mlp_layer_types"), "sparse", lambda k: k > 0)
    words = zip(narrow, sparse, strict=True)
    found = [f"{'window' if each else 'full'} {'moe' if routed else 'dense'}" for each, routed in words]
    return found + ["window dense mtp"] * (blocks - own)


def window_heads(config: Config) -> int:
    """Key-value heads of blocks with a sliding window."""
    return whole(config, "swa_num_key_value_heads", 2 * whole(config, "num_key_value_heads"))


def heads(*names: str) -> Callable[[Config], int]:
    """The product of numbers of the config."""

    def product(config: Config) -> int:
        found = 1
        for name in names:
            found *= whole(config, name)
        return found

    return product


def reach(config: Config, dims: Dims) -> int:
    """The sliding window with the token itself, which sliding_window_size does not count."""
    behind = config.integer("sliding_window_size")
    config.first("attention_chunk_size")  # says the same
    return whole(config, "sliding_window", 129) if behind is None else behind + 1


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    pairs = (("swa_head_dim", "head_dim"), ("swa_v_head_dim", "v_head_dim"))
    for one, other in (*pairs, ("swa_num_attention_heads", "num_attention_heads")):
        if whole(config, one, whole(config, other)) != whole(config, other):
            return f"llama.cpp assumes that {one} is {other}"
    return None


MIMO2 = Architecture(
    MODEL_ARCH.MIMO2,
    ("MiMoV2FlashForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        TensorRule(T.ATTN_Q, "q embd", bias=True),
        *(
            TensorRule(tensor, f"{size}_{on} embd", on=on, bias=True)
            for on in ("full", "window")
            for tensor, size in ((T.ATTN_K, "keys"), (T.ATTN_V, "values"))
        ),
        TensorRule(T.ATTN_OUT, "embd heads_v"),
        TensorRule(T.ATTN_SINKS, "heads", on="window", need=OPTIONAL),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *NEXTN,
        TensorRule(T.LAYER_OUT_NORM, "embd", on="mtp", need=OPTIONAL),
    ),
    keys=(
        *without(SIZES, Keys.Attention.HEAD_COUNT_KV),
        ConfigKey(
            Keys.Attention.HEAD_COUNT_KV,
            i32s,
            computed=lambda config, dims: [
                window_heads(config) if "window" in kind else dims.kv_heads for kind in dims.kinds
            ],
        ),
        ConfigKey(Keys.Attention.KEY_LENGTH, names=("head_dim",), of=lambda d: d.head_dim),
        ConfigKey(Keys.Attention.VALUE_LENGTH, names=("v_head_dim",), of=lambda d: d.size("v_dim")),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, names=("sliding_window",), computed=reach),
        ConfigKey(
            Keys.Attention.SLIDING_WINDOW_PATTERN,
            i32s,
            computed=lambda config, dims: [int("window" in kind) for kind in dims.kinds],
        ),
        ConfigKey(NewKeys.ATTENTION_VALUE_SCALE, f32, ("attention_value_scale",), None),
        *(*EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, gating(SIGMOID), ROTARY, NEXTN_IF_ANY),
    ),
    models="MiMo-V2-Flash",
    rope=Rope(theta=5e6, local_theta=10000.0, partial=0.334),
    fused=(BIAS, named(".self_attn.attention_sink_bias", T.ATTN_SINKS), *PACKED_EXPERTS),
    require={**SILU, "routed_scaling_factor": (1.0,), "norm_topk_prob": (True,), "scoring_func": ("sigmoid",)},
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "head_dim": 192, "v_head_dim": 128},
    aliases={**ROUTED, "layernorm_epsilon": "rms_norm_eps", "swa_rope_theta": "rope_local_base_freq"},
    sizes={
        "v_dim": lambda config: whole(config, "v_head_dim"),
        "heads_v": heads("num_attention_heads", "v_head_dim"),
        "keys_full": heads("num_key_value_heads", "head_dim"),
        "values_full": heads("num_key_value_heads", "v_head_dim"),
        "keys_window": lambda config: window_heads(config) * whole(config, "head_dim"),
        "values_window": lambda config: window_heads(config) * whole(config, "v_head_dim"),
        **DOUBLE,
    },
    kinds=kinds,
    check=problem,
    mtp={},
)

RECORDS = (MIMO2,)
