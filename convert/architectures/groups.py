"""What the records of architectures have in common: ops, groups of tensors, groups of keys."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import MODEL_TENSOR, Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import f32, string, u32
from ggufsmith.convert.architecture import ConfigKey, Dims, Fused, Need, TensorRule
from ggufsmith.convert.config import Config, as_number
from ggufsmith.convert.ops import AddOne, Op, Part, RopePermute

T = MODEL_TENSOR
OPTIONAL = Need.OPTIONAL
TARGET = "target_config"  # where the config of a draft model has that of the larger model


def dense(dims: Dims) -> bool:
    """Whether every block has one feed-forward."""
    return dims.experts == 0


def sparse(dims: Dims) -> bool:
    """Whether its blocks have experts."""
    return dims.experts > 0


def add_one(dims: Dims) -> Op:
    """The op of Gemma's norms."""
    return AddOne()


def permute_q(dims: Dims) -> Op:
    """The op of query rows for llama.cpp's llama graph."""
    return RopePermute(dims.heads)


def permute_k(dims: Dims) -> Op:
    """The op of key rows for the same graph."""
    return RopePermute(dims.kv_heads)


def expert_half(k: int) -> Callable[[Dims], Op]:
    """The op that cuts gate (k = 0) or up (1) out of packed experts, (experts, 2 * expert_ff, embd)."""
    return lambda dims: Part(k * dims.expert_ff, (k + 1) * dims.expert_ff)


def half(name: str, k: int) -> Callable[[Dims], Op]:
    """The op that cuts gate (0) or up (1) out of both, of this length."""
    return lambda dims: Part(k * dims.size(name), (k + 1) * dims.size(name))


def constant(value: Any) -> Callable[[Config, Dims], Any]:
    """The same value for every model."""
    return lambda config, dims: value


def stated(dims: Dims) -> int | None:
    """The head size, where it is not the embedding divided by the heads."""
    return dims.head_dim if dims.head_dim * dims.heads != dims.embd else None


def head_size(config: Config, dims: Dims) -> int | None:
    """The head size, where the config states it or it is not the embedding divided by the heads."""
    return dims.head_dim if config.first("head_dim") is not None else stated(dims)


def layer_types(config: Config, blocks: int, period: int) -> list[str]:
    """The kind of attention of every block; where the config is silent, every so many-th block has full attention."""
    given = config.items_of("layer_types", str, blocks)
    usual = ["full_attention" if (block + 1) % period == 0 else "sliding_attention" for block in range(blocks)]
    return given or usual


def without(keys: Iterable[ConfigKey], *names: str) -> tuple[ConfigKey, ...]:
    """The keys but for these."""
    return tuple(key for key in keys if key.name not in names)


def window(config: Config, dims: Dims) -> int | None:
    """The sliding window, if there is one."""
    return config.integer("sliding_window")


def of_target(config: Config, name: str) -> int:
    """A size of the larger model that a draft model guesses tokens for. Malformed if its config does not state it."""
    value = config.mapping(TARGET).get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise Malformed(f"{name} of the larger model must be a positive number, not {value!r:.40}", where=config.path)
    return value


def target_rope(config: Config) -> Mapping[str, Any]:
    """The parameters of its rotary embedding."""
    target = config.mapping(TARGET)
    found = target.get("rope_parameters") or target.get("rope_scaling")
    return found if isinstance(found, Mapping) else {}


def stated_flag(name: str) -> Callable[[Config, Dims], bool]:
    """Whether the config has this key, and it is true."""
    return lambda config, dims: config.first(name) is True


def rope_fields(config: Config) -> Mapping[str, Any]:
    """The parameters of the rotary embedding, in whichever object they are."""
    return {**config.mapping("rope_scaling"), **config.mapping("rope_parameters")}


def rope_field(name: str) -> Callable[[Config, Dims], float | None]:
    """One parameter of the rotary embedding, if it is there."""

    def field(config: Config, dims: Dims) -> float | None:
        value = rope_fields(config).get(name)
        return None if value is None else as_number(value, name, config.path)

    return field


def mrope_sections(usual: tuple[int, ...] | None = None) -> Callable[[Config, Dims], list[int] | None]:
    """How the dimensions of a head are divided among time, height and width; 4 numbers."""

    def sections(config: Config, dims: Dims) -> list[int] | None:
        found = rope_fields(config).get("mrope_section", usual)
        if found is None:
            return None
        if not isinstance(found, list | tuple) or not all(isinstance(n, int) and 0 <= n < 1 << 31 for n in found):
            raise Malformed(f"mrope_section must be a list of sizes, not {found!r:.80}", where=config.path)
        return [*found, 0, 0, 0, 0][:4]

    return sections


def window_pattern(period: int) -> Callable[[Config, Dims], list[bool] | None]:
    """Which blocks have a sliding window, of a model that has one (see `layer_types`)."""

    def pattern(config: Config, dims: Dims) -> list[bool] | None:
        if window(config, dims) is None:
            return None
        return [kind == "sliding_attention" for kind in layer_types(config, dims.blocks, period)]

    return pattern


# -- groups of tensors ------------------------------------------------------------------------------------------------

EMBEDDINGS = (
    TensorRule(T.TOKEN_EMBD, "vocab embd"),
    TensorRule(T.OUTPUT_NORM, "embd"),
    TensorRule(T.OUTPUT, "vocab embd", need=OPTIONAL),  # absent: llama.cpp takes the embedding
)
OUTPUT_OR_EMBEDDING = TensorRule(T.OUTPUT, "vocab embd", fallback=T.TOKEN_EMBD)  # llama.cpp wants it in any case
LAYER_NORMS = (
    TensorRule(T.OUTPUT_NORM, "embd", bias=True),
    TensorRule(T.ATTN_NORM, "embd", bias=True),
    TensorRule(T.FFN_NORM, "embd", bias=True),
)
NORMS = (TensorRule(T.ATTN_NORM, "embd"), TensorRule(T.FFN_NORM, "embd"))
ATTENTION = (
    TensorRule(T.ATTN_Q, "q embd", bias=True),
    TensorRule(T.ATTN_K, "kv embd", bias=True),
    TensorRule(T.ATTN_V, "kv embd", bias=True),
    TensorRule(T.ATTN_OUT, "embd q", bias=True),
)
HEAD_NORMS = (TensorRule(T.ATTN_Q_NORM, "head_dim"), TensorRule(T.ATTN_K_NORM, "head_dim"))
FEED_FORWARD = (
    TensorRule(T.FFN_GATE, "ff embd", bias=True, when=dense),
    TensorRule(T.FFN_UP, "ff embd", bias=True, when=dense),
    TensorRule(T.FFN_DOWN, "embd ff", bias=True, when=dense),
)
EXPERTS = (
    TensorRule(T.FFN_GATE_INP, "experts embd", when=sparse),
    TensorRule(T.FFN_GATE_EXP, "experts expert_ff embd", stacked=True, when=sparse),
    TensorRule(T.FFN_UP_EXP, "experts expert_ff embd", stacked=True, when=sparse),
    TensorRule(T.FFN_DOWN_EXP, "experts embd expert_ff", stacked=True, when=sparse),
)
SHARED_EXPERT = (
    TensorRule(T.FFN_GATE_INP_SHEXP, "one embd"),
    TensorRule(T.FFN_GATE_SHEXP, "shared_ff embd"),
    TensorRule(T.FFN_UP_SHEXP, "shared_ff embd"),
    TensorRule(T.FFN_DOWN_SHEXP, "embd shared_ff"),
)
# transformers 5 can write all experts of a layer as one tensor, gate above up.
PACKED_EXPERTS = (
    Fused(
        "mlp.experts.gate_up_proj",
        "experts expert_gate_up embd",
        ((T.FFN_GATE_EXP, expert_half(0)), (T.FFN_UP_EXP, expert_half(1))),
    ),
)

# -- groups of keys ---------------------------------------------------------------------------------------------------

SIZES = (
    ConfigKey(Keys.LLM.BLOCK_COUNT, u32, ("num_hidden_layers",), of=lambda d: d.blocks),
    ConfigKey(Keys.LLM.CONTEXT_LENGTH, u32, ("max_position_embeddings", "max_sequence_length")),
    ConfigKey(Keys.LLM.EMBEDDING_LENGTH, u32, ("hidden_size",), of=lambda d: d.embd),
    ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, u32, ("intermediate_size",), of=lambda d: d.ff),
    ConfigKey(Keys.Attention.HEAD_COUNT, u32, ("num_attention_heads",), of=lambda d: d.heads),
    ConfigKey(Keys.Attention.HEAD_COUNT_KV, u32, ("num_key_value_heads",), of=lambda d: d.kv_heads),
    ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, ("rms_norm_eps",), 1e-6),
)
HEAD_SIZE = (
    ConfigKey(Keys.Attention.KEY_LENGTH, u32, ("head_dim",), of=lambda d: d.head_dim),
    ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.head_dim),
)
RMS = SIZES[-1]
BASE = SIZES[:-1]  # of models with another norm
LAYER_NORM = ConfigKey(
    Keys.Attention.LAYERNORM_EPS, f32, ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"), 1e-5
)
STATED_HEAD_SIZE = (
    ConfigKey(Keys.Attention.KEY_LENGTH, names=("head_dim",), computed=head_size),
    ConfigKey(Keys.Attention.VALUE_LENGTH, computed=head_size),
)
VOCAB_SIZE = ConfigKey(Keys.LLM.VOCAB_SIZE, of=lambda d: d.vocab)
ROTARY = ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.rotary)
NO_SCALING = ConfigKey(Keys.Rope.SCALING_TYPE, string, computed=constant("none"))
WINDOW = ConfigKey(Keys.Attention.SLIDING_WINDOW, names=("sliding_window",), computed=window)
EXPERT_COUNTS = (
    ConfigKey(Keys.LLM.EXPERT_COUNT, u32, ("num_local_experts", "num_experts"), None),
    ConfigKey(Keys.LLM.EXPERT_USED_COUNT, u32, ("num_experts_per_tok",), None),
)
QWEN_EXPERT_COUNTS = (replace(EXPERT_COUNTS[0], names=("num_experts", "num_local_experts")), EXPERT_COUNTS[1])
MOE_SIZES = tuple(
    replace(key, of=lambda d: d.ff or None, default=None) if key.name == Keys.LLM.FEED_FORWARD_LENGTH else key
    for key in SIZES
)
SHARED_LENGTH = ConfigKey(
    Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, u32, ("shared_expert_intermediate_size",), of=lambda d: d.shared_ff
)
EXPERT_LENGTH = (
    ConfigKey(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, u32, ("moe_intermediate_size",), of=lambda d: d.expert_ff),
)

SILU = {"hidden_act": ("silu",)}
GELU = {"hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": ("gelu_pytorch_tanh", "gelu")}
NO_WINDOW = "llama.cpp attends to the whole context here; the source model uses a sliding window"
INVERSE_FREQUENCIES = {".rotary_emb.inv_freq": "recomputed from rope_theta"}
VISION_TOWER = dict.fromkeys(
    ("visual.", "vision_tower.", "vision_model.", "multi_modal_projector.", "vision_encoder."),
    "the vision encoder; this converts the text model",
)
AUDIO_TOWER = dict.fromkeys(
    ("audio_tower.", "multi_modal_projector."), "the encoder of sound; this converts the text model"
)
MTP_HEAD = {"mtp.": "the multi-token prediction head, which llama.cpp does not run for this architecture"}
