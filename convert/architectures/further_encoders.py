"""Encoders whose classes are their publishers' own: jina-embeddings-v2, NeoBERT, and Llama that reads both ways."""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys, PoolingType

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.values import f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule
from ggufsmith.convert.architectures.classic import LLAMA
from ggufsmith.convert.architectures.encoders import BERT, NOT_CAUSAL, SIZES_WITHOUT_KV, TYPE_COUNT
from ggufsmith.convert.architectures.fused_heads import part_heads
from ggufsmith.convert.architectures.groups import EMBEDDINGS, LAYER_NORM, NO_SCALING, NORMS, OPTIONAL, T, half, without
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op

POOLINGS = {"avg": PoolingType.MEAN, "mean": PoolingType.MEAN, "cls": PoolingType.CLS, "last": PoolingType.LAST}


def pooling(config: Config, dims: Dims) -> int | None:
    """How hidden states become one vector, where the config itself says it; llama.cpp has no other ways."""
    stated = config.first("pooling")
    if stated is None:
        return None
    if stated not in POOLINGS:
        raise Unsupported(f"pooling is {stated!r:.40}, but llama.cpp has only {', '.join(POOLINGS)}", where=config.path)
    return int(POOLINGS[stated])


def gelu_half(k: int) -> Callable[[Dims], Op]:
    """The op that cuts what is multiplied (0), or what goes through the GELU (1), out of both."""
    return half("ff", k)


LLAMA_EMBED = replace(
    LLAMA,
    arch=MODEL_ARCH.LLAMA_EMBED,
    classes=("LlamaBidirectionalModel",),
    tensors=tuple(rule for rule in LLAMA.tensors if rule.tensor is not T.OUTPUT),
    keys=(*LLAMA.keys, NOT_CAUSAL, ConfigKey(Keys.LLM.POOLING_TYPE, u32, ("pooling",), computed=pooling)),
    pooling=True,
    models="llama-embed-nemotron",
)
JINA_BERT_V2 = replace(
    BERT,
    arch=MODEL_ARCH.JINA_BERT_V2,
    classes=("JinaBertForMaskedLM", "JinaBertModel"),
    tensors=(
        *(rule for rule in BERT.tensors if rule.tensor not in (T.POS_EMBD, T.CLS, T.CLS_OUT, T.FFN_UP)),
        TensorRule(T.ATTN_Q_NORM, "embd", bias=True, need=OPTIONAL),
        TensorRule(T.ATTN_K_NORM, "embd", bias=True, need=OPTIONAL),
        TensorRule(T.ATTN_NORM_2, "embd", bias=True, need=OPTIONAL),
        TensorRule(T.FFN_UP, "gate_up embd"),
        TensorRule(T.FFN_GATE, "ff embd", need=OPTIONAL),
    ),
    keys=(*SIZES_WITHOUT_KV, replace(LAYER_NORM, default=1e-12), NOT_CAUSAL, TYPE_COUNT),
    rope=Rope(rotates=False),
    fused=(
        # jina-embeddings-v2-base-code has the half that goes through the GELU behind the other; llama.cpp in front.
        Fused("mlp.up_gated_layer", "gate_up embd", ((T.FFN_UP, gelu_half(0)), (T.FFN_GATE, gelu_half(1)))),
    ),
    require={
        "hidden_act": ("gelu",),
        "feed_forward_type": ("geglu",),
        "position_embedding_type": ("alibi",),
        **{key: BERT.require[key] for key in ("is_decoder", "add_cross_attention")},
    },
    sizes={"types": BERT.sizes["types"]},
    models="jina-embeddings-v2",
)
NEO_BERT = Architecture(
    MODEL_ARCH.NEO_BERT,
    ("NeoBERTLMHead", "NeoBERT"),
    tensors=(
        EMBEDDINGS[0],
        TensorRule(T.ENC_OUTPUT_NORM, "embd"),
        *NORMS,
        TensorRule(T.ATTN_QKV, "qkv embd", part_heads),
        TensorRule(T.ATTN_OUT, "embd q"),
        TensorRule(T.FFN_UP, "gate_up embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
    ),
    keys=(
        *without(SIZES_WITHOUT_KV, Keys.LLM.FEED_FORWARD_LENGTH),
        ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, u32, ("intermediate_size",), of=lambda d: d.ff),
        ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, ("norm_eps",), 1e-6),
        NOT_CAUSAL,
        NO_SCALING,
        TYPE_COUNT,
        ConfigKey(Keys.LLM.POOLING_TYPE, u32, computed=lambda config, dims: int(PoolingType.CLS)),
    ),
    rope=Rope(scaling=()),
    require={
        "hidden_act": ("SwiGLU", "swiglu"),
        "rms_norm": (True,),
        "rope": (True,),
        "ngpt": (False,),
    },
    defaults={"max_position_embeddings": 1024},
    drop={"decoder.": "the head for filling in masks, which embeddings do not need"},
    aliases={"max_length": "max_position_embeddings"},
    spellings={r"^model\.": ""},
    sizes={"ff": lambda config: 8 * -(-int(2 * (config.integer("intermediate_size") or 0) / 3) // 8)},
    models="NeoBERT",
)

RECORDS = (LLAMA_EMBED, JINA_BERT_V2, NEO_BERT)
