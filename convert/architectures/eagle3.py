"""EAGLE-3: a draft model of one block, which reads the hidden states of three layers of the larger model.

They are fused (`fc`); attention sees them beside the embedding of the last token. The embedding, and the output if the
draft has the whole vocabulary, may be those of the larger model. A draft of fewer tokens says which ones they are in
`d2t`, each as the distance from its own place; a file has the tokens themselves.

Source: Li et al., "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test"
(arXiv:2503.01840); llama.cpp's src/models/eagle3.cpp and conversion/llama.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufsmith.container.values import boolean, i32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    NORMS,
    OPTIONAL,
    ROTARY,
    SILU,
    SIZES,
    STATED_HEAD_SIZE,
    VOCAB_SIZE,
    T,
    of_target,
    permute_k,
    permute_q,
    stated_flag,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor
from ggufsmith.convert.ops import PlaceAdded

FEATURES = 3  # layers of the larger model that are read
STATED_LAYERS = "eagle_aux_hidden_state_layer_ids"


def is_eagle3(config: Config) -> bool:
    """Whether a Llama's config is that of such a draft, as the published ones under Llama's own class are."""
    return config.first("draft_vocab_size") is not None and config.integer("num_hidden_layers") == 1


def flat(config: Config) -> Mapping[str, Any]:
    """What the `speculators` library has in an object of its own."""
    return config.mapping("transformer_layer_config")


def target_size(config: Config) -> int:
    """The length of a hidden state of the larger model."""
    return config.integer("target_hidden_size") or of_target(config, "hidden_size")


def draft_vocab(config: Config) -> int:
    """The number of tokens that it can guess."""
    return config.integer("draft_vocab_size", "vocab_size") or 0


def layers(config: Config, dims: Dims) -> list[int]:
    """The layers of the larger model whose inputs are read: stated, or an early, a middle and a late one."""
    blocks = of_target(config, "num_hidden_layers")
    return config.items_of(STATED_LAYERS, int) or [2, blocks // 2, blocks - 3]


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp does not run."""
    found, blocks = layers(config, dims), of_target(config, "num_hidden_layers")
    if len(found) != FEATURES or not all(0 <= layer <= blocks for layer in found):
        return f"the hidden states of {FEATURES} layers of the {blocks} are read, not of {found}"
    return None


def whole(dims: Dims) -> bool:
    """Whether it can guess every token."""
    return dims.size("draft_vocab") == dims.vocab


def narrower(dims: Dims) -> bool:
    """Whether it can guess only some."""
    return not whole(dims)


def as_wide(dims: Dims) -> bool:
    """Whether the embedding of the larger model would fit."""
    return dims.size("target") == dims.embd


TOKENS = TensorRule(NewTensor.D2T, "draft_vocab", lambda dims: PlaceAdded(), part="")
EAGLE3 = Architecture(
    NewArch.EAGLE3,
    ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3DraftModel", "Eagle3Speculator"),
    tensors=(
        TensorRule(NewTensor.FC, "embd features"),
        TensorRule(T.ENC_OUTPUT_NORM, "features", when=lambda dims: bool(dims.size("normed"))),
        TensorRule(T.TOKEN_EMBD, "vocab embd", need=OPTIONAL, when=as_wide),
        TensorRule(T.TOKEN_EMBD, "vocab embd", when=lambda dims: not as_wide(dims)),
        TensorRule(T.OUTPUT_NORM, "embd"),
        TensorRule(T.OUTPUT, "vocab embd", need=OPTIONAL, when=lambda dims: whole(dims) and as_wide(dims)),
        TensorRule(T.OUTPUT, "draft_vocab embd", when=lambda dims: narrower(dims) or not as_wide(dims)),
        replace(TOKENS, need=OPTIONAL, when=whole),
        replace(TOKENS, when=narrower),
        *NORMS,
        TensorRule(T.ATTN_NORM_2, "embd"),
        TensorRule(T.ATTN_Q, "q embd2", permute_q),
        TensorRule(T.ATTN_K, "kv embd2", permute_k),
        TensorRule(T.ATTN_V, "kv embd2"),
        TensorRule(T.ATTN_OUT, ATTENTION[3].shape),
        *(TensorRule(rule.tensor, rule.shape) for rule in FEED_FORWARD),
    ),
    keys=(
        *SIZES,
        *STATED_HEAD_SIZE,
        VOCAB_SIZE,
        ROTARY,
        ConfigKey(NewKeys.TARGET_LAYERS, i32s, (STATED_LAYERS,), computed=layers),
        ConfigKey(NewKeys.TARGET_HIDDEN_SIZE, u32, ("target_hidden_size",), of=lambda dims: dims.size("target")),
        ConfigKey(
            NewKeys.NORM_BEFORE_RESIDUAL,
            boolean,
            ("norm_before_residual",),
            computed=stated_flag("norm_before_residual"),
        ),
        ConfigKey(NewKeys.NORM_BEFORE_FC, boolean, ("norm_before_fc",), computed=stated_flag("norm_before_fc")),
    ),
    models="EAGLE-3 draft models",
    rope=Rope(scaling=("linear", "yarn", "dynamic", "llama3")),
    fused=(
        named("hidden_norm", T.ATTN_NORM_2),
        named("input_norm", T.ENC_OUTPUT_NORM),
        named("fc", NewTensor.FC),
        Fused("d2t", None, ((NewTensor.D2T, None),), ""),
    ),
    spellings={r"^midlayer\.": "model.layers.0."},
    require={**SILU, "num_hidden_layers": (1,), "partial_rotary_factor": (1.0,)},
    drop={**INVERSE_FREQUENCIES, "t2d": "which tokens of the larger model it can guess, which d2t says as well"},
    aliases={f"eagle_config.{STATED_LAYERS}": "layers_of_eagle_config"},
    warn={
        "layers_of_eagle_config": (
            ([],),
            f"programs disagree on how these are counted; the file has the layers of {STATED_LAYERS} beside it, or the "
            "usual ones",
        )
    },
    derived=flat,
    sizes={
        "target": target_size,
        "features": lambda config: FEATURES * target_size(config),
        "embd2": lambda config: 2 * (config.integer("hidden_size") or 0),
        "draft_vocab": draft_vocab,
        "normed": lambda config: int(config.first("norm_before_fc") is True),
    },
    check=problem,
    drafts=True,
)
