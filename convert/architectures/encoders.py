"""Encoders: models that turn a text into vectors, or into a score, and write nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import boolean, strings, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import ATTENTION, BASE, LAYER_NORM, OPTIONAL, T, constant
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op, Part

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
SIZES_WITHOUT_KV = tuple(key for key in BASE if key.name != Keys.Attention.HEAD_COUNT_KV)
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

ENCODERS = (BERT, BERT_CLASSIFIER, DISTILBERT, ROBERTA)
