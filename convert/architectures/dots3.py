"""dots3 note: latent attention in two sizes, in windows and, with an indexer, over everything; attention is gated.

Source: llama.cpp's src/models/dots3note.cpp and conversion/dots3.py; transformers' models/dots3_note.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.values import booleans, i32s, u32
from ggufsmith.convert.architecture import ConfigKey, Dims, Fused, TensorRule, named
from ggufsmith.convert.architectures.groups import AUDIO_TOWER, SILU, VISION_TOWER, T
from ggufsmith.convert.architectures.latent import DEEPSEEK3, Heads
from ggufsmith.convert.architectures.moe import (
    DENSE_BLOCKS,
    LEADING,
    NEXTN,
    NEXTN_IF_ANY,
    PROBS_BIAS,
    SHARED_BLOCKS,
    SPARSE_BLOCKS,
    led,
    only_first_dense,
    whole,
    with_mtp,
)
from ggufsmith.convert.architectures.sparse_attention import DEEPSEEK32, INDEXER
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys
from ggufsmith.convert.ops import Op, Part
from ggufsmith.convert.reorder import Chain, Turn
from ggufsmith.convert.scale import Multiplied

# Sizes of blocks with a window, in the published config with "swa_" in front.
OWN = "num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim".split()
GATES = ("attention_gate_type", "swa_attention_gate_type")
SEEN = ("swa_num_key_value_heads", "swa_head_dim", "head_dim", "num_key_value_heads", "layer_types", "moe_layer_freq")


def published(config: Config) -> Mapping[str, Any]:
    """The keys of the published config.json, in place of those that transformers 5 saves instead."""
    found: dict[str, Any] = {}
    saved, rope = config.mapping("per_layer_config"), config.mapping("rope_parameters")
    one = next((each for each in saved.values() if isinstance(each, Mapping)), None)
    if one is not None:
        found |= {f"swa_{name}": one.get(name, config.first(name)) for name in OWN} | {"per_layer_config": None}
        if any(each != one for each in saved.values()):
            found["per_layer_config"] = saved  # which `problem` refuses
    far, near = (rope.get(f"{kind}_attention") for kind in ("indexed", "sliding"))
    if isinstance(far, Mapping) and isinstance(near, Mapping):
        found |= {"rope_parameters": None, "rope_theta": far.get("rope_theta")}
        found |= {"rope_local_base_freq": near.get("rope_theta"), "partial_rotary_factor": None}
    return found


def windows(config: Config, blocks: int) -> list[bool]:
    """Which blocks look at a window only; appended ones do."""
    given = config.items_of("layer_types", str)
    return [*(kind == "sliding_attention" for kind in given), *[True] * (blocks - len(given))][:blocks]


def kinds(config: Config, blocks: int) -> Sequence[str]:
    """window or full; dense or moe, and dense for appended ones."""
    own, fed = whole(config, "num_hidden_layers"), led(config, blocks)
    words = zip(windows(config, blocks), fed, strict=True)
    return [
        f"{'window' if narrow else 'full'} {feeding if block < own else 'dense'}"
        for block, (narrow, feeding) in enumerate(words)
    ]


def sizes(prefix: str) -> dict[str, Callable[[Config], int]]:
    """The sizes of blocks of one kind; those of a window are called so too."""
    before = "window_" if prefix else ""

    def of(*names: str) -> Callable[[Config], int]:
        return lambda config: sum(whole(config, prefix + name) for name in names)

    def per_head(*names: str) -> Callable[[Config], int]:
        return lambda config: whole(config, f"{prefix}num_attention_heads") * of(*names)(config)

    return {
        f"{before}a_heads": of("num_attention_heads"),
        f"{before}nope": of("qk_nope_head_dim"),
        f"{before}value": of("v_head_dim"),
        f"{before}rank": of("kv_lora_rank"),
        f"{before}down": of("kv_lora_rank", "qk_rope_head_dim"),
        f"{before}key": of("qk_nope_head_dim", "qk_rope_head_dim"),
        f"{before}up_q": per_head("qk_nope_head_dim", "qk_rope_head_dim"),
        f"{before}up_kv": per_head("qk_nope_head_dim", "v_head_dim"),
        f"{before}out": per_head("v_head_dim"),
    }


def rescaled(rank: str) -> Callable[[Config], float]:
    """By how much what a norm gives is multiplied, so that its factors are."""

    def factor(config: Config) -> float:
        each, rescales = whole(config, rank), config.first("apply_mla_qkv_lora_rescale")
        return math.sqrt(whole(config, "hidden_size") / each) if rescales and each else 1.0

    return factor


def times(name: str) -> Callable[[Dims], Op]:
    """The op that multiplies by such a factor."""
    return lambda dims: Multiplied((dims.factors[name],))


def key_part(before: str) -> Callable[[Dims], Op]:
    """The op that takes what makes keys out of kv_b_proj."""
    return lambda dims: Chain(Chain(Heads(dims.size(f"{before}a_heads")), Part(0, dims.size(f"{before}nope"))), Turn())


def value_part(before: str) -> Callable[[Dims], Op]:
    """The op that takes what makes values out of it."""

    def op(dims: Dims) -> Op:
        nope, value = dims.size(f"{before}nope"), dims.size(f"{before}value")
        return Chain(Heads(dims.size(f"{before}a_heads")), Part(nope, nope + value))

    return op


def attention(on: str) -> tuple[TensorRule, ...]:
    """The tensors of one kind of attention."""
    before = "window_" if on == "window" else ""
    return (
        TensorRule(T.ATTN_Q_A, "q_rank embd", on=on),
        TensorRule(T.ATTN_Q_A_NORM, "q_rank", times("q"), on=on),
        TensorRule(T.ATTN_Q_B, f"{before}up_q q_rank", on=on),
        TensorRule(T.ATTN_KV_A_MQA, f"{before}down embd", on=on),
        TensorRule(T.ATTN_KV_A_NORM, f"{before}rank", times(f"{before}kv"), on=on),
        TensorRule(T.ATTN_K_NORM, "rope_dim", on=on),
        TensorRule(T.ATTN_K_B, f"{before}up_kv {before}rank", key_part(before), on=on),
        TensorRule(T.ATTN_V_B, f"{before}up_kv {before}rank", value_part(before), on=on),
        TensorRule(T.ATTN_GATE, f"{before}a_heads embd", on=on),
        TensorRule(T.ATTN_OUT, f"embd {before}out", on=on),
    )


def head_counts(config: Config, dims: Dims) -> list[int]:
    """The heads of every block."""
    return [dims.size("window_a_heads" if "window" in kind else "a_heads") for kind in dims.kinds]


def own_blocks(config: Config, word: str) -> list[bool]:
    """Which blocks of the model have this kind of attention."""
    own = whole(config, "num_hidden_layers")
    return [narrow == (word == "window") for narrow in windows(config, own)]


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    config.first(*SEEN)
    if config.first("per_layer_config") is not None:
        return "blocks with a window have different sizes"
    for name in ("q_lora_rank", "qk_rope_head_dim"):
        if whole(config, f"swa_{name}") != whole(config, name):
            return f"llama.cpp assumes one {name} for both kinds of blocks"
    stated = config.integer("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size")
    if stated is not None and stated != whole(config, "moe_intermediate_size"):
        return "llama.cpp assumes that shared experts are as long as the others"
    if not any(windows(config, whole(config, "num_hidden_layers"))):
        return "llama.cpp assumes that some block has a sliding window"
    return only_first_dense(config)


def total(name: str, *parts: str) -> ConfigKey:
    """The key of a length."""
    return ConfigKey(name, u32, of=lambda dims: sum(dims.size(part) for part in parts))


DOTS3_NOTE = replace(
    DEEPSEEK3,
    arch=NewArch.DOTS3NOTE,
    classes=("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration", "Dots3NoteTextForCausalLM"),
    tensors=(
        *(rule for rule in DEEPSEEK3.tensors if not rule.on and "ATTN_" not in rule.tensor.name),
        TensorRule(T.ATTN_NORM, "embd"),
        *attention("full"),
        *attention("window"),
        *(replace(rule, on="full") for rule in INDEXER),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe"),
        *SHARED_BLOCKS,
        *NEXTN,
    ),
    keys=(
        *(
            ConfigKey(key.name, i32s, computed=head_counts) if key.name == Keys.Attention.HEAD_COUNT else key
            for key in (LEADING if key.name == LEADING.name else key for key in DEEPSEEK3.keys)
        ),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",)),
        ConfigKey(
            Keys.Attention.SLIDING_WINDOW_PATTERN,
            booleans,
            computed=lambda config, dims: own_blocks(config, "window"),
        ),
        total(NewKeys.KV_LORA_RANK_SWA, "window_rank"),
        total(Keys.Attention.KEY_LENGTH_SWA, "window_down"),
        total(Keys.Attention.VALUE_LENGTH_SWA, "window_rank"),
        total(NewKeys.KEY_LENGTH_MLA_SWA, "window_key"),
        total(NewKeys.VALUE_LENGTH_MLA_SWA, "window_value"),
        NEXTN_IF_ANY,
        *(key for key in DEEPSEEK32.keys if ".indexer." in key.name),
        ConfigKey(NewKeys.INDEXER_TYPES, booleans, computed=lambda config, dims: own_blocks(config, "full")),
    ),
    models="dots3 note (text)",
    fused=(
        DEEPSEEK3.fused[0],
        Fused(".self_attn.kv_b_proj", None, ((T.ATTN_K_B, None), (T.ATTN_V_B, None))),
        named(".self_attn.g_proj", T.ATTN_GATE),
        named(".self_attn.k_rope_only_layernorm", T.ATTN_K_NORM),
        *DEEPSEEK3.fused[2:],
    ),
    require={
        **SILU,
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_dsa": (True,),
        "normalization": ("RMSNorm",),
        "final_norm": ("RMSNorm",),
        "k_rope_only_layernorm": (True,),
        "topk_method": ("noaux_tc",),
        "scoring_func": ("sigmoid",),
        "n_group": (1,),
        "topk_group": (1,),
        "use_dynamic_rsf": (False,),
        "moe_gating_fp32": (False,),
        **dict.fromkeys(GATES, ("headwise",)),
    },
    defaults={
        **DEEPSEEK32.defaults,
        "max_position_embeddings": 524288,
        "rms_norm_eps": 1e-5,
        "first_k_dense_replace": 1,
        "apply_mla_qkv_lora_rescale": True,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
        "index_n_heads": 64,
    },
    drop={
        **DEEPSEEK3.drop,
        **VISION_TOWER,
        **AUDIO_TOWER,
        **dict.fromkeys(("audio_encoder.", "audio_adapter."), AUDIO_TOWER["audio_tower."]),
    },
    aliases={
        **DEEPSEEK3.aliases,
        "swa_rope_theta": "rope_local_base_freq",
        "sliding_window_size": "sliding_window",
    },
    derived=published,
    sizes={
        **DEEPSEEK32.sizes,
        **sizes(""),
        **sizes("swa_"),
    },
    factors={
        "q": rescaled("q_lora_rank"),
        "kv": rescaled("kv_lora_rank"),
        "window_kv": rescaled("swa_kv_lora_rank"),
    },
    kinds=with_mtp(kinds),
    check=problem,
    beyond="",
    appended=True,
    mtp={"embed_tokens": "embed_tokens"},
)

RECORDS = (DOTS3_NOTE,)
