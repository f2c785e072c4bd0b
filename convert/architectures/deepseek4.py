"""DeepSeek-V4: one key-value head, looked up in windows and in compressed tokens, and four streams of hidden states.

Of every 4 tokens, or every 128, a compressor makes one; of the former, an indexer chooses which are attended to. The
experts of the first blocks are chosen by the token alone, by a table.

Source: llama.cpp's src/models/deepseek4.cpp and conversion/deepseek.py; transformers' models/deepseek_v4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.values import f32, f32s, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    EXPERTS,
    HEAD_SIZE,
    NORMS,
    OPTIONAL,
    OUTPUT_OR_EMBEDDING,
    SILU,
    SIZES,
    T,
    constant,
    expert_half,
    without,
)
from ggufsmith.convert.architectures.hy_v4 import HEAD, MIXERS, PARTS, limit
from ggufsmith.convert.architectures.moe import (
    PROBS_BIAS,
    ROUTED,
    SHARED_BLOCKS,
    SHARED_COUNT,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    shared,
    whole,
)
from ggufsmith.convert.config import Config, as_share
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor, Tensor
from ggufsmith.convert.ops import Indices, Op

SQRT_SOFTPLUS = 4  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SQRT_SOFTPLUS
# layer_types of transformers -> how many tokens become one, as the published compress_ratios say it.
RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
COMPRESSORS = {
    "wkv": NewTensor.ATTN_COMPRESSOR_WKV,
    "wgate": NewTensor.ATTN_COMPRESSOR_WGATE,
    "ape": NewTensor.ATTN_COMPRESSOR_APE,
    "norm": NewTensor.ATTN_COMPRESSOR_NORM,
}
INDEX_COMPRESSORS = {
    "wkv": NewTensor.INDEXER_COMPRESSOR_WKV,
    "wgate": NewTensor.INDEXER_COMPRESSOR_WGATE,
    "ape": NewTensor.INDEXER_COMPRESSOR_APE,
    "norm": NewTensor.INDEXER_COMPRESSOR_NORM,
}
ATTENTION: Mapping[str, Tensor] = {
    "attn_sink": T.ATTN_SINKS,
    "wq_a": T.ATTN_Q_A,
    "wq_b": T.ATTN_Q_B,
    "q_norm": T.ATTN_Q_A_NORM,
    "wkv": NewTensor.ATTN_KV,
    "kv_norm": NewTensor.ATTN_KV_NORM,
    "norm": NewTensor.ATTN_KV_NORM,  # as transformers 5.24 saves it
    "wo_a": NewTensor.ATTN_OUT_A,
    "wo_b": NewTensor.ATTN_OUT_B,
    "indexer.wq_b": T.INDEXER_ATTN_Q_B,
    "indexer.weights_proj": T.INDEXER_PROJ,
    **{f"compressor.{name}": tensor for name, tensor in COMPRESSORS.items()},
    **{f"indexer.compressor.{name}": tensor for name, tensor in INDEX_COMPRESSORS.items()},
}
FEED_FORWARD: Mapping[str, Tensor] = {
    "gate": T.FFN_GATE_INP,
    "shared_experts.w1": T.FFN_GATE_SHEXP,
    "shared_experts.w2": T.FFN_DOWN_SHEXP,
    "shared_experts.w3": T.FFN_UP_SHEXP,
    "experts.w1": T.FFN_GATE_EXP,
    "experts.w2": T.FFN_DOWN_EXP,
    "experts.w3": T.FFN_UP_EXP,
}


def published(config: Config) -> Mapping[str, Any]:
    """The keys of the published config.json, in place of those that transformers 5 saves instead."""
    found: dict[str, Any] = {}
    kinds, feeding = config.items_of("layer_types", str), config.items_of("mlp_layer_types", str)
    rates = config.mapping("compress_rates")
    if kinds:
        found["compress_ratios"] = [rates.get(kind, RATIOS.get(kind, -1)) for kind in kinds]
    if feeding:
        hashed = next((block for block, kind in enumerate(feeding) if kind != "hash_moe"), len(feeding))
        found["num_hash_layers"] = -1 if "hash_moe" in feeding[hashed:] else hashed
    near, far = (config.mapping("rope_parameters").get(name) for name in ("main", "compress"))
    if isinstance(near, Mapping) and isinstance(far, Mapping):
        scaling = {key: value for key, value in far.items() if key not in ("rope_theta", "partial_rotary_factor")}
        if scaling.get("attention_factor") == 1:  # which llama.cpp's graph has built in
            del scaling["attention_factor"]
        found |= {"rope_theta": near.get("rope_theta"), "compress_rope_theta": far.get("rope_theta")}
        found |= {"rope_scaling": scaling, "rope_parameters": None}
    if config.first("qk_rope_head_dim") is None:
        part = as_share(config.get("partial_rotary_factor", 0.125), "partial_rotary_factor", config.path)
        found["qk_rope_head_dim"] = int(part * whole(config, "head_dim"))
    return found


def ratios(config: Config) -> list[int]:
    """How many tokens become one, of every block; of further blocks too, if the config says it."""
    return config.items_of("compress_ratios", int, whole(config, "num_hidden_layers")) and config["compress_ratios"]


def kinds(config: Config, blocks: int) -> Sequence[str]:
    """hash or routed; light for blocks whose compressors make one of 4 tokens, heavy for one of 128."""
    words = {4: " light", 128: " heavy"}
    listed = [*ratios(config), *[0] * blocks][:blocks]
    hashed = whole(config, "num_hash_layers")
    return [("hash" if k < hashed else "routed") + words.get(ratio, "") for k, ratio in enumerate(listed)]


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    config.first("expert_dtype")  # the tensors show it
    if not ratios(config) or set(ratios(config)[: dims.blocks]) - {0, 4, 128}:
        return "compress_ratios must have 0, 4 or 128 for every layer: llama.cpp compresses no other number of tokens"
    if (config.integer("num_hash_layers", default=0) or 0) < 0:
        return "llama.cpp assumes that the layers whose experts a table chooses are the first ones"
    if config.mapping("rope_scaling").get("attention_factor") is not None:
        return "attention_factor is not 1, which llama.cpp assumes"
    return None


def compressor(tensors: Mapping[str, NewTensor], on: str, rows: str, ratio: int, norm: str) -> tuple[TensorRule, ...]:
    """The tensors of a compressor. rows: of what it makes of each token. ratio: the tokens. norm: the size of one."""
    return (
        TensorRule(tensors["wkv"], f"{rows} embd", on=on),
        TensorRule(tensors["wgate"], f"{rows} embd", on=on),
        TensorRule(tensors["ape"], f"{ratio} {rows}", on=on, exact=True),
        TensorRule(tensors["norm"], norm, on=on),
    )


def hyper_connections(on: str = "") -> tuple[TensorRule, ...]:
    """What mixes the streams into one, and back into all of them, of these blocks."""
    shapes = ("hc_mix hc_embd", "hc_mix", "3")
    return tuple(
        TensorRule(tensor, shape, on=on)
        for mixer in MIXERS.values()
        for tensor, shape in zip(mixer, shapes, strict=True)
    )


# As it is published, and as transformers has it in memory.
HYPER_NAMES = tuple(
    named(name, tensor)
    for kind, mixer in MIXERS.items()
    for part, tensor in zip(PARTS, mixer, strict=True)
    for name in (f".hc_{kind}_{part}", f".{kind}_hc.{part}")
)
HYPER_SIZES: Mapping[str, Callable[[Config], int]] = {
    "hc": lambda config: whole(config, "hc_mult"),
    "hc_mix": lambda config: whole(config, "hc_mult") * (2 + whole(config, "hc_mult")),
    "hc_embd": lambda config: whole(config, "hc_mult") * whole(config, "hidden_size"),
}
HYPER_KEYS = (
    ConfigKey(NewKeys.HYPER_CONNECTION_COUNT, u32, ("hc_mult",)),
    ConfigKey(NewKeys.HYPER_CONNECTION_ITERATIONS, u32, ("hc_sinkhorn_iters",)),
    ConfigKey(NewKeys.HYPER_CONNECTION_EPSILON, f32, ("hc_eps",)),
)
CLAMPS = (
    ConfigKey(Keys.LLM.SWIGLU_CLAMP_EXP, f32s, ("swiglu_limit",), computed=limit),
    ConfigKey(Keys.LLM.SWIGLU_CLAMP_SHEXP, f32s, computed=limit),
)


def table(dims: Dims) -> Op:
    """The op of the table from tokens to experts."""
    return Indices(dims.experts)


def twice(name: str) -> Callable[[Config], int]:
    """The same number two times."""
    return lambda config: 2 * whole(config, name)


DEEPSEEK4 = Architecture(
    NewArch.DEEPSEEK4,
    ("DeepseekV4ForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *(TensorRule(tensor, shape) for tensor, shape in zip(HEAD, ("hc hc_embd", "hc", "1"), strict=True)),
        *NORMS,
        TensorRule(T.ATTN_SINKS, "heads"),
        TensorRule(T.ATTN_Q_A, "q_rank embd"),
        TensorRule(T.ATTN_Q_A_NORM, "q_rank"),
        TensorRule(T.ATTN_Q_B, "q q_rank"),
        TensorRule(NewTensor.ATTN_KV, "head_dim embd"),
        TensorRule(NewTensor.ATTN_KV_NORM, "head_dim"),
        TensorRule(NewTensor.ATTN_OUT_A, "out_rows out_width"),
        TensorRule(NewTensor.ATTN_OUT_B, "embd out_rows"),
        *hyper_connections(),
        *compressor(COMPRESSORS, "light", "head2", 4, "head_dim"),
        *compressor(COMPRESSORS, "heavy", "head_dim", 128, "head_dim"),
        TensorRule(T.INDEXER_PROJ, "index_heads embd", on="light"),
        TensorRule(T.INDEXER_ATTN_Q_B, "index_q q_rank", on="light"),
        *compressor(INDEX_COMPRESSORS, "light", "index2", 4, "index_dim"),
        *EXPERTS,
        TensorRule(NewTensor.FFN_GATE_TID2EID, "vocab used", table, on="hash"),
        replace(PROBS_BIAS, on="routed"),
        TensorRule(NewTensor.FFN_EXP_PROBS_B_VL, "experts", part="bias", need=OPTIONAL),
        *(replace(rule, on="") for rule in SHARED_BLOCKS),
    ),
    keys=(
        *(*without(SIZES, Keys.LLM.FEED_FORWARD_LENGTH), *HEAD_SIZE, *EXPERT_COUNTS, *EXPERT_LENGTH, SHARED_COUNT),
        ConfigKey(Keys.LLM.EXPERT_GATING_FUNC, computed=constant(SQRT_SOFTPLUS)),
        *(WEIGHTS_SCALE, WEIGHTS_NORM),
        ConfigKey(Keys.LLM.EMBEDDING_LENGTH_OUT, of=lambda d: d.size("hc_embd")),
        *CLAMPS,
        ConfigKey(Keys.Rope.DIMENSION_COUNT, names=("qk_rope_head_dim",)),
        ConfigKey(Keys.Attention.Q_LORA_RANK, u32, ("q_lora_rank",)),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",)),
        ConfigKey(Keys.Attention.Indexer.HEAD_COUNT, u32, ("index_n_heads",)),
        ConfigKey(Keys.Attention.Indexer.KEY_LENGTH, u32, ("index_head_dim",)),
        ConfigKey(Keys.Attention.Indexer.TOP_K, u32, ("index_topk",)),
        ConfigKey(NewKeys.OUTPUT_GROUP_COUNT, u32, ("o_groups",)),
        ConfigKey(NewKeys.OUTPUT_LORA_RANK, u32, ("o_lora_rank",)),
        ConfigKey(NewKeys.COMPRESS_RATIOS, i32s, computed=lambda config, dims: ratios(config)),
        ConfigKey(NewKeys.COMPRESS_ROPE_FREQ_BASE, f32, ("compress_rope_theta",)),
        *HYPER_KEYS,
        ConfigKey(NewKeys.HASH_LAYER_COUNT, u32, ("num_hash_layers",)),
    ),
    models="DeepSeek-V4",
    rope=Rope(scaling=("yarn",)),
    fused=(
        *HYPER_NAMES,
        *(named(f"hc_head_{part}", tensor) for part, tensor in zip(PARTS, HEAD, strict=True)),
        *(named(f"hc_head.hc_{part}", tensor) for part, tensor in zip(PARTS, HEAD, strict=True)),
        # What transformers 5 has in memory.
        Fused(
            ".ffn.experts.gate_up_proj",
            "experts expert_gate_up embd",
            ((T.FFN_GATE_EXP, expert_half(0)), (T.FFN_UP_EXP, expert_half(1))),
        ),
        named(".ffn.experts.down_proj", T.FFN_DOWN_EXP),
        named(".ffn.gate.bias_vl", NewTensor.FFN_EXP_PROBS_B_VL, "bias"),
        named(".ffn.gate.bias", T.FFN_EXP_PROBS_B, "bias"),
        named(".ffn.gate.tid2eid", NewTensor.FFN_GATE_TID2EID),
        *(named(f".attn.{name}", tensor) for name, tensor in ATTENTION.items()),
        *(named(f".ffn.{name}", tensor) for name, tensor in FEED_FORWARD.items()),
    ),
    spellings={r"^(model\.)?embed\.": "model.embed_tokens.", r"^head\.": "lm_head."},
    require={
        **SILU,
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "scoring_func": ("sqrtsoftplus",),
        "num_key_value_heads": (1,),
        "hc_mult": (4,),
    },
    defaults={
        "max_position_embeddings": 1048576,
        "compress_rope_theta": 160000.0,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "swiglu_limit": 10.0,
        "sliding_window": 128,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "n_shared_experts": 1,
        "num_key_value_heads": 1,
        "num_experts_per_tok": 6,
    },
    drop={
        "mtp.": "blocks for multi-token prediction, which llama.cpp reads from a file of their own, not made here yet",
        **dict.fromkeys(("vision.", "aligner.", "image_"), "the vision encoder; this converts the text model"),
    },
    aliases=ROUTED,
    derived=published,
    sizes={
        "ff": lambda config: 0,
        "shared_ff": shared("n_shared_experts"),
        "used": lambda config: whole(config, "num_experts_per_tok"),
        "q_rank": lambda config: whole(config, "q_lora_rank"),
        "head2": twice("head_dim"),
        "index2": twice("index_head_dim"),
        "index_dim": lambda config: whole(config, "index_head_dim"),
        "index_heads": lambda config: whole(config, "index_n_heads"),
        "index_q": lambda config: whole(config, "index_n_heads") * whole(config, "index_head_dim"),
        "out_rows": lambda config: whole(config, "o_groups") * whole(config, "o_lora_rank"),
        "out_width": lambda config: (
            whole(config, "num_attention_heads") * whole(config, "head_dim") // max(whole(config, "o_groups"), 1)
        ),
        **HYPER_SIZES,
    },
    kinds=kinds,
    check=problem,
    head_rows=0,
)

RECORDS = (DEEPSEEK4,)
