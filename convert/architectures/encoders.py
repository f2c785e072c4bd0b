"""Encoders: models that turn a text into vectors, or into a score, and write nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys, PoolingType

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import boolean, string, strings, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.classic import GEMMA3
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    BASE,
    EMBEDDINGS,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    LAYER_NORM,
    NO_SCALING,
    NORMS,
    OPTIONAL,
    SILU,
    STATED_HEAD_SIZE,
    VOCAB_SIZE,
    T,
    constant,
    without,
)
from ggufsmith.convert.architectures.groups import SIZES as ROOT_SIZES
from ggufsmith.convert.architectures.t5 import T5_ENCODER
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op, Part
from ggufsmith.convert.reorder import Chain, Split, Turn

# Keys that the gguf package does not have yet.
HIDDEN_ACT, CLASSIFIER_POOLING = "{arch}.hidden_activation", "{arch}.classifier.pooling_type"
# Where `convert.modules` puts the sizes of the matrices behind an embedding.
DENSE_2, DENSE_3 = "dense_2_feat_out", "dense_3_feat_in"
CLASSIFIES = "ForSequenceClassification"
POOLER = {"pooler.": "the pooler, which embeddings do not go through"}
MASKED_HEAD = dict.fromkeys(
    ("cls.predictions", "cls.seq_relationship", "lm_head."),
    "the head for filling in masks, which embeddings do not need",
)
POSITION_IDS = {"embeddings.position_ids": "the numbers of the positions, which llama.cpp counts itself"}
# The module that the model is a part of, and TensorFlow's names of the two vectors of a norm.
SPELLINGS = {r"^(bert|roberta|distilbert)\.": "", r"\.gamma$": ".weight", r"\.beta$": ".bias"}
NOT_CAUSAL = ConfigKey(Keys.Attention.CAUSAL, boolean, computed=constant(False))


def labels_of(config: Config) -> list[str]:
    """What a classifier's outputs are called, in their order; empty for a model that has none."""
    classes = config.first("architectures")
    if not isinstance(classes, list) or not str(classes[0]).endswith(CLASSIFIES):
        return []
    stated = config.mapping("id2label")
    if not all(isinstance(text, str) and key.isdecimal() for key, text in stated.items()):
        raise Malformed("id2label must give a text for every number", where=config.path)
    if stated:
        return [stated[key] for key in sorted(stated, key=int)]
    return [f"LABEL_{number}" for number in range(min(config.integer("num_labels", default=2) or 2, 1 << 16))]


def size(name: str, default: int) -> Callable[[Config], int]:
    """A size that the config names."""
    return lambda config: config.integer(name, default=default) or default


def offset(config: Config) -> int:
    """The first position of RoBERTa: those up to that of the padding token are not used."""
    pad = config.integer("pad_token_id", default=1)
    return 1 + (1 if pad is None else pad)


def used_positions(dims: Dims) -> Op:
    """The op that leaves out the positions before the first."""
    return Part(dims.size("offset"), dims.size("positions"))


LABELS = ConfigKey(Keys.Classifier.OUTPUT_LABELS, strings, computed=lambda config, dims: labels_of(config) or None)
TYPE_COUNT = ConfigKey(Keys.Tokenizer.TOKEN_TYPE_COUNT, u32, ("type_vocab_size",), 1)
SIZES_WITHOUT_KV = without(BASE, Keys.Attention.HEAD_COUNT_KV)
CLASSIFIER = (
    TensorRule(T.CLS, "embd embd", bias=True, need=OPTIONAL),
    TensorRule(T.CLS_OUT, "labels embd", bias=True, need=OPTIONAL),
)
SIZES: Mapping[str, Callable[[Config], int]] = {
    "labels": lambda config: len(labels_of(config)) or 1,
    "types": size("type_vocab_size", 1),
}

BERT = Architecture(
    MODEL_ARCH.BERT,
    ("BertModel", "BertForMaskedLM"),
    tensors=(
        TensorRule(T.TOKEN_EMBD, "vocab embd"),
        TensorRule(T.POS_EMBD, "positions embd"),
        TensorRule(T.TOKEN_TYPES, "types embd", need=OPTIONAL),
        TensorRule(T.TOKEN_EMBD_NORM, "embd", bias=True),
        *CLASSIFIER,
        *ATTENTION,
        TensorRule(T.ATTN_OUT_NORM, "embd", bias=True),
        TensorRule(T.FFN_UP, "ff embd", bias=True),
        TensorRule(T.FFN_DOWN, "embd ff", bias=True),
        TensorRule(T.LAYER_OUT_NORM, "embd", bias=True),
    ),
    keys=(*SIZES_WITHOUT_KV, replace(LAYER_NORM, default=1e-12), NOT_CAUSAL, TYPE_COUNT, LABELS),
    rope=Rope(write_theta=False, scaling=()),
    require={
        "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_python"),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "lora_adaptations": (),
    },
    defaults={"max_position_embeddings": 512, "type_vocab_size": 2},
    drop={**POOLER, **MASKED_HEAD, **POSITION_IDS},
    sizes={**SIZES, "positions": size("max_position_embeddings", 512)},
    spellings=SPELLINGS,
    pooling=True,
    models="BERT: bge, mxbai-embed, MiniLM, gte, e5, arctic-embed",
)
# Its head is the pooler with one more matrix behind it.
BERT_CLASSIFIER = replace(
    BERT,
    classes=("BertForSequenceClassification",),
    fused=(named("pooler.dense", T.CLS), named("classifier", T.CLS_OUT)),
    drop={**MASKED_HEAD, **POSITION_IDS},
    models="cross-encoders on BERT: ms-marco-MiniLM",
)
DISTILBERT = replace(
    BERT,
    classes=("DistilBertModel", "DistilBertForMaskedLM"),
    keys=tuple(
        ConfigKey(key.name, key.make, computed=constant(1e-12)) if key.name == LAYER_NORM.name else key
        for key in BERT.keys
    ),
    require={"hidden_act": BERT.require["hidden_act"]},
    aliases={
        "dim": "hidden_size",
        "hidden_dim": "intermediate_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "activation": "hidden_act",
    },
    defaults={"max_position_embeddings": 512, "type_vocab_size": 1},
    drop={"vocab_": "the head for filling in masks, which embeddings do not need", **POSITION_IDS},
    models="DistilBERT",
)
ROBERTA = replace(
    BERT,
    classes=(
        *("XLMRobertaModel", "XLMRobertaForSequenceClassification"),
        *("RobertaModel", "RobertaForSequenceClassification", "CamembertModel"),
    ),
    tensors=tuple(replace(rule, op=used_positions) if rule.tensor is T.POS_EMBD else rule for rule in BERT.tensors),
    keys=tuple(
        replace(key, computed=lambda config, dims: dims.size("positions") - offset(config))
        if key.name == Keys.LLM.CONTEXT_LENGTH
        else key
        for key in BERT.keys
    ),
    sizes={**SIZES, "positions": size("max_position_embeddings", 512), "offset": offset},
    models="XLM-RoBERTa: bge-m3, multilingual-e5, arctic-embed-l, bge-reranker; RoBERTa; CamemBERT",
)


def nomic_context(config: Config, dims: Dims) -> int | None:
    """How many tokens a nomic-embed-text was trained with: config.json says how many it can be stretched to."""
    stated = config.integer("max_position_embeddings")
    trained = config.integer("max_trained_positions", default=stated)
    if config.first("moe_every_n_layers"):
        return 512 if stated == trained else stated
    return stated if stated is None or trained is None else min(stated, trained)


def nomic_experts(config: Config, blocks: int) -> list[str]:
    """Which blocks have experts."""
    every = config.integer("moe_every_n_layers") or 0
    return ["experts" if every > 0 and block % every == 1 else "dense" for block in range(blocks)]


def experts(dims: Dims) -> Op:
    """The op of a matrix in which the experts lie one behind the other."""
    return Split(dims.experts)


def turned_experts(dims: Dims) -> Op:
    """The same, each of them turned."""
    return Chain(Split(dims.experts), Turn())


def classifier_pooling(config: Config, dims: Dims) -> int | None:
    """How a ModernBERT pools what its classifier reads; llama.cpp takes the mean where nothing says so."""
    stated = config.first("classifier_pooling")
    if stated is None and not labels_of(config):
        return None
    kinds = {None: PoolingType.CLS, "cls": PoolingType.CLS, "mean": PoolingType.MEAN}
    if stated not in kinds:
        raise Malformed(f"classifier_pooling must be cls or mean, not {stated!r:.40}", where=config.path)
    return int(kinds[stated])


def global_period(config: Config, dims: Dims) -> int | None:
    """Every so many-th block of a ModernBERT, from the first on, attends to the whole text."""
    stated = config.integer("global_attn_every_n_layers")
    kinds = config.items_of("layer_types", str, dims.blocks)
    if stated is not None or not kinds:
        return stated
    return next((k for k in range(1, dims.blocks) if kinds[k] == "full_attention"), max(dims.blocks, 3))


def regular(config: Config, dims: Dims) -> str | None:
    """A sentence about a ModernBERT whose blocks do not follow the period that llama.cpp knows."""
    kinds, period = config.items_of("layer_types", str, dims.blocks), global_period(config, dims) or 3
    usual = ["sliding_attention" if block % period else "full_attention" for block in range(dims.blocks)]
    return None if kinds in ([], usual) else "layer_types has no period, as llama.cpp assumes"


def bidirectional(config: Config, dims: Dims) -> str | None:
    """A sentence about a Gemma 3 without a head that is not an EmbeddingGemma."""
    if config.first("use_bidirectional_attention") is not True:
        return "use_bidirectional_attention is not true, but llama.cpp reads texts in both directions here"
    if config.integer("query_pre_attn_scalar", default=256) != dims.head_dim:
        return "query_pre_attn_scalar is not head_dim, as llama.cpp assumes"
    kinds = config.items_of("layer_types", str, dims.blocks)
    usual = ["sliding_attention" if (block + 1) % 6 else "full_attention" for block in range(dims.blocks)]
    return None if kinds in ([], usual) else "layer_types is not every sixth layer, as llama.cpp assumes"


NOMIC = replace(
    BERT,
    arch=MODEL_ARCH.NOMIC_BERT,
    classes=("NomicBertModel",),
    tensors=(
        TensorRule(T.TOKEN_EMBD, "vocab embd"),
        TensorRule(T.TOKEN_TYPES, "types embd", need=OPTIONAL),
        TensorRule(T.TOKEN_EMBD_NORM, "embd", bias=True),
        TensorRule(T.ATTN_QKV, "qkv embd"),
        TensorRule(T.ATTN_OUT, "embd q"),
        TensorRule(T.ATTN_OUT_NORM, "embd", bias=True),
        TensorRule(T.FFN_UP, "ff embd"),
        TensorRule(T.FFN_GATE, "ff embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
        TensorRule(T.LAYER_OUT_NORM, "embd", bias=True),
    ),
    keys=tuple(
        replace(key, computed=nomic_context) if key.name == Keys.LLM.CONTEXT_LENGTH else key
        for key in BERT.keys
        if key is not LABELS
    ),
    rope=Rope(theta=1000.0, scaling=()),
    require={
        "hidden_act": ("silu",),
        "activation_function": ("swiglu",),
        "causal": (False,),
        "prenorm": (False,),
        "parallel_block": (False,),
        "use_rms_norm": (False,),
        "rotary_emb_fraction": (1.0,),
        "rotary_emb_interleaved": (False,),
        "rotary_emb_scale_base": (),
        "rotary_scaling_factor": (),
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), (False,)),
    },
    aliases={
        "n_embd": "hidden_size",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
    },
    defaults={"max_position_embeddings": 2048, "type_vocab_size": 2},
    sizes={"types": SIZES["types"]},
    variant=lambda config: "moe" if config.first("moe_every_n_layers") else "",
    models="nomic-embed-text v1, v1.5",
)
NOMIC_MOE = replace(
    NOMIC,
    arch=MODEL_ARCH.NOMIC_BERT_MOE,
    tensors=(
        *(rule for rule in NOMIC.tensors[:3]),
        TensorRule(T.ATTN_QKV, "qkv embd", bias=True),
        TensorRule(T.ATTN_OUT, "embd q", bias=True),
        TensorRule(T.ATTN_OUT_NORM, "embd", bias=True),
        TensorRule(T.FFN_UP, "ff embd", bias=True, on="dense"),
        TensorRule(T.FFN_DOWN, "embd ff", bias=True, on="dense"),
        TensorRule(T.FFN_GATE_INP, "experts embd", on="experts"),
        TensorRule(T.FFN_UP_EXP, "all_ff embd", experts, on="experts"),
        TensorRule(T.FFN_DOWN_EXP, "all_ff embd", turned_experts, on="experts"),
        TensorRule(T.LAYER_OUT_NORM, "embd", bias=True),
    ),
    keys=(
        *NOMIC.keys,
        ConfigKey(Keys.LLM.MOE_EVERY_N_LAYERS, u32, ("moe_every_n_layers",)),
        ConfigKey(Keys.LLM.EXPERT_COUNT, u32, ("num_experts",)),
        ConfigKey(Keys.LLM.EXPERT_USED_COUNT, u32, ("num_experts_per_tok",)),
    ),
    rope=Rope(theta=10000.0, scaling=()),
    require={
        **NOMIC.require,
        "activation_function": ("gelu",),
        "moe_normalize_expert_weights": (False,),
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), (True,)),
    },
    aliases={**NOMIC.aliases, "moe_top_k": "num_experts_per_tok"},
    drop={**NOMIC.drop, "mlp.experts.bias": "added to what all experts give, which llama.cpp does not do"},
    sizes={
        **NOMIC.sizes,
        "experts": size("num_experts", 8),
        "all_ff": lambda config: (config.integer("num_experts") or 0) * (config.integer("intermediate_size") or 0),
    },
    kinds=nomic_experts,
    models="nomic-embed-text v2",
)
NOMIC = replace(NOMIC, variants={"moe": NOMIC_MOE})

MODERN_BERT = Architecture(
    MODEL_ARCH.MODERN_BERT,
    ("ModernBertModel", "ModernBertForMaskedLM"),
    tensors=(
        TensorRule(T.TOKEN_EMBD, "vocab embd"),
        TensorRule(T.TOKEN_EMBD_NORM, "embd"),
        TensorRule(T.OUTPUT_NORM, "embd"),
        TensorRule(T.CLS, "embd embd", need=OPTIONAL),
        TensorRule(T.CLS_NORM, "embd", need=OPTIONAL),
        TensorRule(T.CLS_OUT, "labels embd", bias=True, need=OPTIONAL),
        TensorRule(T.ATTN_NORM, "embd", on="later"),
        TensorRule(T.ATTN_QKV, "qkv embd"),
        TensorRule(T.ATTN_OUT, "embd q"),
        TensorRule(T.FFN_NORM, "embd"),
        TensorRule(T.FFN_UP, "gate_up embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
    ),
    keys=(
        *SIZES_WITHOUT_KV,
        LAYER_NORM,
        NOT_CAUSAL,
        VOCAB_SIZE,
        NO_SCALING,
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("local_attention",), 128),
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, u32, computed=global_period),
        ConfigKey(HIDDEN_ACT, string, computed=lambda config, dims: config.first("hidden_activation")),
        ConfigKey(CLASSIFIER_POOLING, u32, computed=classifier_pooling),
        LABELS,
    ),
    rope=Rope(theta=160000.0, local_theta=10000.0, scaling=()),
    require={
        "hidden_activation": ("gelu", "silu"),
        "classifier_activation": ("gelu",),
        **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), (False,)),
    },
    defaults={"max_position_embeddings": 8192},
    drop={**dict.fromkeys(("head.", "decoder."), MASKED_HEAD["lm_head."])},
    check=regular,
    aliases={"global_rope_theta": "rope_theta", "local_rope_theta": "rope_local_base_freq"},
    sizes={"labels": SIZES["labels"]},
    kinds=lambda config, blocks: ["first", *["later"] * (blocks - 1)],
    spellings={r"^model\.": ""},
    pooling=True,
    models="ModernBERT: modernbert-embed, gte-modernbert, granite-embedding",
)
MODERN_BERT_CLASSIFIER = replace(
    MODERN_BERT,
    classes=("ModernBertForSequenceClassification",),
    fused=(named("classifier", T.CLS_OUT),),
    drop={},
    models="rerankers on ModernBERT: gte-reranker-modernbert",
)
EUROBERT = Architecture(
    MODEL_ARCH.EUROBERT,
    ("EuroBertModel", "JinaEmbeddingsV5Model"),
    tensors=(
        *EMBEDDINGS[:2],
        *NORMS,
        *(replace(rule, bias=False) for rule in (*ATTENTION, *FEED_FORWARD)),
    ),
    keys=(*ROOT_SIZES, *STATED_HEAD_SIZE, NOT_CAUSAL, NO_SCALING),
    rope=Rope(scaling=()),
    require={**SILU, **dict.fromkeys(("attention_bias", "mlp_bias"), (False,))},
    defaults={"max_position_embeddings": 8192, "rms_norm_eps": 1e-5},
    drop=INVERSE_FREQUENCIES,
    pooling=True,
    models="EuroBERT, jina-embeddings-v5-text-nano",
)
GEMMA_EMBEDDING = replace(
    GEMMA3,
    arch=MODEL_ARCH.GEMMA_EMBEDDING,
    classes=("Gemma3TextModel",),
    tensors=(
        *(rule for rule in GEMMA3.tensors if rule.tensor is not T.OUTPUT),
        TensorRule(T.DENSE_2_OUT, "dense_2 embd", need=OPTIONAL),
        TensorRule(T.DENSE_3_OUT, "embd dense_3", need=OPTIONAL),
    ),
    keys=(
        *GEMMA3.keys,
        ConfigKey("{arch}.dense_2_feat_in", u32, computed=lambda c, d: d.embd if c.first(DENSE_2) else None),
        ConfigKey("{arch}.dense_2_feat_out", u32, computed=lambda c, d: c.integer(DENSE_2)),
        ConfigKey("{arch}.dense_3_feat_in", u32, computed=lambda c, d: c.integer(DENSE_3)),
        ConfigKey("{arch}.dense_3_feat_out", u32, computed=lambda c, d: d.embd if c.first(DENSE_3) else None),
    ),
    require={key: value for key, value in GEMMA3.require.items() if key != "use_bidirectional_attention"},
    check=bidirectional,
    sizes={"dense_2": size(DENSE_2, 1), "dense_3": size(DENSE_3, 1)},
    pooling=True,
    models="EmbeddingGemma",
)

RECORDS = (
    *(BERT, BERT_CLASSIFIER, DISTILBERT, ROBERTA, NOMIC, MODERN_BERT, MODERN_BERT_CLASSIFIER, EUROBERT),
    *(GEMMA_EMBEDDING, T5_ENCODER),
)
