"""Models whose queries, keys and values are one matrix, head by head: GPT-NeoX, Falcon, BLOOM, MPT, InternLM 2."""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import boolean, f32, string
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule
from ggufsmith.convert.architectures.gpt import inner
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    BASE,
    EMBEDDINGS,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    LAYER_NORM,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    ROTARY,
    SILU,
    SIZES,
    T,
    constant,
    without,
)
from ggufsmith.convert.config import Config, as_number
from ggufsmith.convert.gguf_names import Tensor
from ggufsmith.convert.ops import Op, Part, RopePermute
from ggufsmith.convert.reorder import Chain, PartGroups

QKV = (T.ATTN_Q, T.ATTN_K, T.ATTN_V)
# llama.cpp computes all of them by the tanh.
GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
ONE_KIND_OF_HEADS = without(BASE, Keys.Attention.HEAD_COUNT_KV)


def part_heads(dims: Dims) -> Op:
    """The op of a matrix with the queries, the key and the value of each key head beside each other."""
    return PartGroups(dims.kv_heads, dims.heads // max(dims.kv_heads, 1), dims.head_dim)


def permuted(part: int) -> Callable[[Dims], Op]:
    """The op that cuts queries (0), keys (1) or values (2) out of such a matrix, for llama.cpp's graph of Llama."""

    def cut(dims: Dims) -> Op:
        begin = (0, dims.q, dims.q + dims.kv)[part]
        own = Chain(part_heads(dims), Part(begin, begin + (dims.kv if part else dims.q)))
        return own if part == 2 else Chain(own, RopePermute(dims.kv_heads if part else dims.heads))

    return cut


def parallel(config: Config, dims: Dims) -> bool:
    """Whether attention and feed-forward work side by side."""
    return config.first("use_parallel_residual") is not False


def grouped(config: Config) -> bool:
    """Whether a Falcon is built like the one of 40B; before transformers had the class, the heads alone said so."""
    return bool(config.first("new_decoder_architecture")) or config.first("n_head_kv") is not None


def falcon_kv_heads(config: Config) -> int:
    """Heads of keys and values: transformers says as many as of queries, where `multi_query` means that it is one."""
    heads, alone = config.integer("num_attention_heads") or 0, config.first("multi_query") is not False
    stated = config.integer("num_kv_heads", "n_head_kv", default=heads) or 0
    if grouped(config):
        return stated
    return 1 if alone else heads


def falcon_norms(config: Config) -> int:
    """How many norms stand before attention and feed-forward: each has its own, or one is before both."""
    stated = config.integer("num_ln_in_parallel_attn")
    return (2 if stated is None else stated) if grouped(config) else 1


def falcon_in_line(config: Config, dims: Dims) -> str | None:
    """A sentence if attention and feed-forward do not work side by side."""
    if config.first("parallel_attn") is not False or grouped(config):
        return None
    return "parallel_attn is False, but llama.cpp computes attention and feed-forward side by side"


def clipped(config: Config, dims: Dims) -> float | None:
    """The bound of queries, keys and values of an MPT, if there is one."""
    value = config.mapping("attn_config").get("clip_qkv")
    return as_number(value, "attn_config.clip_qkv", config.path) if value else None


# Keys of attn_config -> what llama.cpp's graph, or transformers' class, assumes.
MPT_ATTENTION = {
    "alibi": (True,),
    "alibi_bias_max": (8,),
    "attn_type": ("multihead_attention",),
    "kv_n_heads": (),
    "prefix_lm": (False,),
    "qk_ln": (False,),
    "qk_gn": (False,),
    "rope": (False,),
    "sliding_window_size": (-1,),
    "softmax_scale": (),
}


def mpt_unlike(config: Config, dims: Dims) -> str | None:
    """A sentence if attention or feed-forward are not those of the published MPT."""
    attention = config.mapping("attn_config")
    for key, allowed in MPT_ATTENTION.items():
        value = attention.get(key)
        if value is not None and value not in allowed:
            return f"attn_config.{key} is {value!r}, and only {allowed[0] if allowed else 'null'!r} is supported"
    kind = config.mapping("ffn_config").get("ffn_type", "mptmlp")
    return None if kind == "mptmlp" else f"ffn_config.ffn_type is {kind!r}, and only 'mptmlp' is supported"


def norms(*tensors: Tensor) -> tuple[TensorRule, ...]:
    """Layer norms, each with its bias."""
    return tuple(TensorRule(tensor, "embd", part=part) for tensor in tensors for part in ("weight", "bias"))


# Biases are required, as llama.cpp requires them.
BLOCK = (
    *norms(T.ATTN_NORM, T.FFN_NORM),
    TensorRule(T.ATTN_QKV, "qkv embd", part_heads),
    TensorRule(T.ATTN_QKV, "qkv", part_heads, part="bias"),
    TensorRule(T.ATTN_OUT, "embd q"),
    TensorRule(T.ATTN_OUT, "embd", part="bias"),
    TensorRule(T.FFN_UP, "ff embd"),
    TensorRule(T.FFN_UP, "ff", part="bias"),
    TensorRule(T.FFN_DOWN, "embd ff"),
    TensorRule(T.FFN_DOWN, "embd", part="bias"),
)
GPT_NEOX = Architecture(
    MODEL_ARCH.GPTNEOX,
    ("GPTNeoXForCausalLM",),
    tensors=(
        EMBEDDINGS[0],
        OUTPUT_OR_EMBEDDING,
        *norms(T.OUTPUT_NORM),
        *BLOCK,
    ),
    keys=(
        *ONE_KIND_OF_HEADS,
        LAYER_NORM,
        ROTARY,
        ConfigKey(Keys.LLM.USE_PARALLEL_RESIDUAL, boolean, ("use_parallel_residual",), computed=parallel),
    ),
    rope=Rope(partial=0.25),
    require={"hidden_act": GELUS, "attention_bias": (True,)},
    defaults={"max_position_embeddings": 2048},
    drop={
        **INVERSE_FREQUENCIES,
        ".attention.bias": "the mask of the attention",
        ".attention.masked_bias": "the mask of the attention",
    },
    models="Pythia, GPT-NeoX, Dolly 2, RedPajama-INCITE",
)
FALCON = Architecture(
    MODEL_ARCH.FALCON,
    ("FalconForCausalLM", "RWForCausalLM"),
    tensors=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *norms(T.OUTPUT_NORM, T.ATTN_NORM),
        *(replace(rule, when=lambda d: d.size("norms") == 2) for rule in norms(T.ATTN_NORM_2)),
        TensorRule(T.ATTN_QKV, "qkv embd", part_heads),
        TensorRule(T.ATTN_OUT, "embd q"),
        TensorRule(T.FFN_UP, "ff embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
    ),
    keys=(*BASE, LAYER_NORM, ConfigKey(Keys.LLM.TENSOR_DATA_LAYOUT, string, computed=constant("jploski"))),
    rope=Rope(),
    require={"activation": GELUS, "alibi": (False,), "bias": (False,)},
    defaults={"max_position_embeddings": 2048},
    drop=INVERSE_FREQUENCIES,
    check=falcon_in_line,
    models="Falcon, Falcon 2",
    aliases={"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embed": "hidden_size"},
    sizes={
        "ff": lambda config: config.integer("ffn_hidden_size") or 4 * (config.integer("hidden_size") or 0),
        "kv_heads": falcon_kv_heads,
        "norms": falcon_norms,
    },
)
BLOOM = Architecture(
    MODEL_ARCH.BLOOM,
    ("BloomForCausalLM", "BloomModel"),
    tensors=(EMBEDDINGS[0], EMBEDDINGS[2], *norms(T.TOKEN_EMBD_NORM, T.OUTPUT_NORM), *BLOCK),
    keys=(*BASE, LAYER_NORM),
    rope=Rope(rotates=False),
    require={"apply_residual_connection_post_layernorm": (False,)},
    defaults={"max_position_embeddings": 2048},
    spellings={r"^transformer\.": ""},
    models="BLOOM, BLOOMZ",
    aliases={
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "seq_length": "max_position_embeddings",
    },
    sizes={"ff": inner},
)
MPT = Architecture(
    MODEL_ARCH.MPT,
    ("MptForCausalLM", "MPTForCausalLM"),
    tensors=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        *(TensorRule(tensor, "embd") for tensor in (T.OUTPUT_NORM, T.ATTN_NORM, T.FFN_NORM)),
        TensorRule(T.ATTN_QKV, "qkv embd"),
        TensorRule(T.ATTN_OUT, "embd q"),
        TensorRule(T.FFN_UP, "ff embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
    ),
    keys=(
        *ONE_KIND_OF_HEADS,
        LAYER_NORM,
        ConfigKey(Keys.Attention.CLAMP_KQV, f32, computed=clipped),
        ConfigKey(Keys.Attention.MAX_ALIBI_BIAS, f32, computed=constant(8.0)),
    ),
    rope=Rope(rotates=False),
    require={"logit_scale": (), "no_bias": (True,), "norm_type": ("low_precision_layernorm", "layernorm")},
    defaults={"max_position_embeddings": 2048},
    check=mpt_unlike,
    models="MPT",
    aliases={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings",
    },
    sizes={"ff": lambda config: (config.integer("expansion_ratio") or 4) * (config.integer("hidden_size") or 0)},
)
INTERNLM2 = Architecture(
    MODEL_ARCH.INTERNLM2,
    ("InternLM2ForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *(replace(rule, bias=False) for rule in (*ATTENTION, *FEED_FORWARD)),
    ),
    keys=SIZES,
    rope=Rope(scaling=("linear", "dynamic")),
    fused=(Fused("attention.wqkv", "qkv embd", tuple(zip(QKV, map(permuted, range(3)), strict=True))),),
    require={**SILU, "bias": (False,)},
    drop=INVERSE_FREQUENCIES,
    models="InternLM 2 and 2.5",
    head_rows=0,
)

RECORDS = (GPT_NEOX, FALCON, BLOOM, MPT, INTERNLM2)
