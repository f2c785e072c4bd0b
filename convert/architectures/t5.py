"""T5 and its encoder alone: positions are told by a bias for every distance, which the first block has for all.

In UMT5, every block has a bias of its own.
llama.cpp does not scale what the decoder makes before the head, as T5 does where the head was the embedding once: that
factor goes into the last norm.
"""

from collections.abc import Iterable
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, copy
from ggufsmith.convert.architectures.groups import (
    BASE,
    EMBEDDINGS,
    HEAD_SIZE,
    LAYER_NORM,
    OPTIONAL,
    T,
    without,
)
from ggufsmith.convert.architectures.moe import whole
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Copy, Op
from ggufsmith.convert.scale import Multiplied


def gated(dims: Dims) -> bool:
    """Whether the feed-forward has a gate, as since version 1.1."""
    return dims.size("gated") > 0


def encoder_kinds(config: Config, blocks: int) -> list[str]:
    """The first block, and the others."""
    return ["first", *["later"] * (blocks - 1)]


def both_kinds(config: Config, blocks: int) -> list[str]:
    """Whether there is a block of this number in the encoder, and in the decoder."""
    counts = {"enc": whole(config, "num_hidden_layers"), "dec": decoder_blocks(config)}
    words = ([word for word, count in counts.items() if block < count] for block in range(blocks))
    firsts = ("encfirst", "decfirst")
    return [" ".join([*found, *(firsts if block == 0 else ())]) for block, found in enumerate(words)]


def decoder_blocks(config: Config) -> int:
    """As many as the encoder has, where the config is silent."""
    return whole(config, "num_decoder_layers", whole(config, "num_hidden_layers"))


def factor(config: Config) -> float:
    """What the decoder's outputs are multiplied by."""
    scaled = config.first("scale_decoder_outputs")
    scaled = config.first("tie_word_embeddings") is not False if scaled is None else scaled
    return float(whole(config, "hidden_size")) ** -0.5 if scaled else 1.0


def scaled_norm(dims: Dims) -> Op:
    """The op of the decoder's last norm."""
    return Copy() if dims.factors["outputs"] == 1 else Multiplied((dims.factors["outputs"],))


def placed(word: str, rules: Iterable[TensorRule]) -> tuple[TensorRule, ...]:
    """The same tensors, in the blocks that have this word."""
    return tuple(replace(rule, on=word + rule.on) for rule in rules)


def stack(*tensors: T) -> tuple[TensorRule, ...]:
    """One attention and one feed-forward: norms, q, k, v, output, bias; norm, gate, up, down."""
    norm, q, k, v, out, bias, ffn_norm, gate, up, down = tensors
    return (
        TensorRule(norm, "embd"),
        *(TensorRule(tensor, "q embd") for tensor in (q, k, v)),
        TensorRule(out, "embd q"),
        TensorRule(bias, "buckets heads", on="first"),
        TensorRule(ffn_norm, "embd"),
        TensorRule(gate, "ff embd", when=gated),
        TensorRule(up, "ff embd"),
        TensorRule(down, "embd ff"),
    )


ENCODER = stack(
    *(T.ENC_ATTN_NORM, T.ENC_ATTN_Q, T.ENC_ATTN_K, T.ENC_ATTN_V, T.ENC_ATTN_OUT, T.ENC_ATTN_REL_B),
    *(T.ENC_FFN_NORM, T.ENC_FFN_GATE, T.ENC_FFN_UP, T.ENC_FFN_DOWN),
)
DECODER = (
    *stack(
        *(T.DEC_ATTN_NORM, T.DEC_ATTN_Q, T.DEC_ATTN_K, T.DEC_ATTN_V, T.DEC_ATTN_OUT, T.DEC_ATTN_REL_B),
        *(T.DEC_FFN_NORM, T.DEC_FFN_GATE, T.DEC_FFN_UP, T.DEC_FFN_DOWN),
    ),
    TensorRule(T.DEC_CROSS_ATTN_NORM, "embd"),
    *(TensorRule(t, "q embd") for t in (T.DEC_CROSS_ATTN_Q, T.DEC_CROSS_ATTN_K, T.DEC_CROSS_ATTN_V)),
    TensorRule(T.DEC_CROSS_ATTN_OUT, "embd q"),
)
EPSILON = ("layer_norm_epsilon", "layer_norm_eps")
T5_ENCODER = Architecture(
    MODEL_ARCH.T5ENCODER,
    ("T5EncoderModel",),
    tensors=(EMBEDDINGS[0], TensorRule(T.ENC_OUTPUT_NORM, "embd"), *ENCODER),
    keys=(
        *without(BASE, Keys.Attention.HEAD_COUNT_KV),
        *HEAD_SIZE,
        ConfigKey(LAYER_NORM.name, f32, EPSILON, 1e-6),
        ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, EPSILON, 1e-6),
        ConfigKey(Keys.Attention.REL_BUCKETS_COUNT, u32, ("relative_attention_num_buckets",), 32),
    ),
    rope=Rope(rotates=False),
    require={
        "feed_forward_proj": ("relu", "gated-gelu"),
        "dense_act_fn": ("relu", "gelu_new"),
        "relative_attention_max_distance": (128,),
    },
    defaults={"max_position_embeddings": 512, "head_dim": 64, "feed_forward_proj": "relu"},
    aliases={
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "d_kv": "head_dim",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    },
    sizes={
        "gated": lambda config: int(config.first("feed_forward_proj") != "relu"),
        "buckets": lambda config: whole(config, "relative_attention_num_buckets", 32),
    },
    kinds=encoder_kinds,
    tied={"encoder.embed_tokens.weight": T.TOKEN_EMBD},
    pooling=True,
    models="T5 (the encoder): text encoders of Stable Diffusion 3 and FLUX",
)
T5 = replace(
    T5_ENCODER,
    arch=MODEL_ARCH.T5,
    classes=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    tensors=(
        EMBEDDINGS[0],
        TensorRule(T.OUTPUT, "vocab embd", need=OPTIONAL),
        TensorRule(T.ENC_OUTPUT_NORM, "embd"),
        TensorRule(T.DEC_OUTPUT_NORM, "embd", scaled_norm),
        *placed("enc", ENCODER),
        *placed("dec", DECODER),
    ),
    keys=(
        *(replace(k, of=None) if k.name == Keys.LLM.BLOCK_COUNT else k for k in T5_ENCODER.keys),
        ConfigKey(Keys.LLM.DECODER_BLOCK_COUNT, computed=lambda config, dims: decoder_blocks(config)),
        ConfigKey(Keys.LLM.DECODER_START_TOKEN_ID, u32, ("decoder_start_token_id",), 0),
    ),
    sizes={
        **T5_ENCODER.sizes,
        "blocks": lambda config: max(whole(config, "num_hidden_layers"), decoder_blocks(config)),
    },
    factors={"outputs": factor},
    kinds=both_kinds,
    drop={"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias": "a bias that nothing reads"},
    tied={**T5_ENCODER.tied, "decoder.embed_tokens.weight": T.TOKEN_EMBD},
    pooling=False,
    models="T5, Flan-T5",
)
MT5 = replace(
    T5,
    classes=("MT5ForConditionalGeneration",),
    tensors=tuple(replace(rule, op=copy) if rule.tensor is T.DEC_OUTPUT_NORM else rule for rule in T5.tensors),
    defaults={**T5.defaults, "feed_forward_proj": "gated-gelu"},
    factors={},
    models="mT5",
)
UMT5 = replace(
    T5,
    classes=("UMT5ForConditionalGeneration", "UMT5Model"),
    tensors=tuple(replace(rule, on=rule.on.removesuffix("first")) for rule in T5.tensors),
    defaults=MT5.defaults,
    models="UMT5: text encoders of Wan and AuraFlow",
)
RECORDS = (T5, MT5, UMT5)
