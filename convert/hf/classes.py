"""The Hugging Face classes that a GGUF file can be turned back into, as data: what they are, and the classic ones.

A class extends the record of its architecture by what only its own files say: names of tensors, constants of
config.json, which biases go with which key. Names: transformers' modeling files; `gguf.tensor_mapping` knows each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf.constants import MODEL_TENSOR

from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.architectures import classic
from ggufsmith.convert.gguf_names import Tensor
from ggufsmith.convert.hf.given import Given

T = MODEL_TENSOR
BLOCK = "model.layers.{bid}."


def in_blocks(names: Mapping[Tensor, str]) -> dict[Tensor, str]:
    """The names of parts of a block."""
    return {tensor: BLOCK + name for tensor, name in names.items()}


NAMES: Mapping[Tensor, str] = {
    T.TOKEN_EMBD: "model.embed_tokens",
    T.OUTPUT_NORM: "model.norm",
    T.OUTPUT: "lm_head",
    **in_blocks(
        {
            T.ATTN_NORM: "input_layernorm",
            T.ATTN_Q: "self_attn.q_proj",
            T.ATTN_K: "self_attn.k_proj",
            T.ATTN_V: "self_attn.v_proj",
            T.ATTN_OUT: "self_attn.o_proj",
            T.ATTN_Q_NORM: "self_attn.q_norm",
            T.ATTN_K_NORM: "self_attn.k_norm",
            T.FFN_NORM: "post_attention_layernorm",
            T.FFN_GATE: "mlp.gate_proj",
            T.FFN_UP: "mlp.up_proj",
            T.FFN_DOWN: "mlp.down_proj",
            T.FFN_GATE_INP: "mlp.gate",
            T.FFN_GATE_EXP: "mlp.experts.{xid}.gate_proj",
            T.FFN_UP_EXP: "mlp.experts.{xid}.up_proj",
            T.FFN_DOWN_EXP: "mlp.experts.{xid}.down_proj",
            T.FFN_GATE_INP_SHEXP: "mlp.shared_expert_gate",
            T.FFN_GATE_SHEXP: "mlp.shared_expert.gate_proj",
            T.FFN_UP_SHEXP: "mlp.shared_expert.up_proj",
            T.FFN_DOWN_SHEXP: "mlp.shared_expert.down_proj",
        }
    ),
}
MIXTRAL_NAMES = in_blocks(
    {
        T.FFN_GATE_INP: "block_sparse_moe.gate",
        T.FFN_GATE_EXP: "block_sparse_moe.experts.{xid}.w1",
        T.FFN_DOWN_EXP: "block_sparse_moe.experts.{xid}.w2",
        T.FFN_UP_EXP: "block_sparse_moe.experts.{xid}.w3",
    }
)
PHI3_NAMES = in_blocks({T.ATTN_QKV: "self_attn.qkv_proj", T.FFN_UP: "mlp.gate_up_proj"})
GEMMA_NAMES = in_blocks(
    {
        T.ATTN_POST_NORM: "post_attention_layernorm",
        T.FFN_PRE_NORM: "pre_feedforward_layernorm",
        T.FFN_POST_NORM: "post_feedforward_layernorm",
    }
)

QKV = frozenset((T.ATTN_Q, T.ATTN_K, T.ATTN_V))
ATTENTION = QKV | {T.ATTN_OUT}
MLP = frozenset((T.FFN_GATE, T.FFN_UP, T.FFN_DOWN))


def always(given: Given) -> bool:
    """Of a class that is the only one of its architecture."""
    return True


def nothing(given: Given) -> dict[str, Any]:
    """Of a class whose config.json has no keys of this kind."""
    return {}


@dataclass(frozen=True)
class HfClass:
    """One class.

    sparse:    whether it has experts, None for either; two classes share the architecture "llama".
    names:     HF names (of `.weight`, `.bias`) where they differ from NAMES; {bid} and {xid} number blocks and experts.
    biases:    the tensors that have a bias if a config key says so, or ("") always.
    free:      the tensors that may have a bias without any key saying so.
    constants: config keys that no GGUF key gives, besides those that llama.cpp's graph assumes (`record.require`).
    tokenizer: transformers' class for a SentencePiece vocabulary.
    called:    the name of the class, where it is not the first of its record's.
    when:      whether a file of the architecture is this class, for those of which there are several.
    renamed:   config keys that this class calls otherwise than most do, beyond those of `record.aliases`.
    more:      config keys that are made of several keys, or of tensors.
    lost:      config keys that this class does not have, or gives another meaning.
    pictures:  it also has an encoder for pictures, which a GGUF file of the language model does not.
    sources:   whole HF names that follow no rule, or are made of several GGUF tensors -> the names of those.
    """

    record: Architecture
    model_type: str
    sparse: bool | None = False
    names: Mapping[Tensor, str] = field(default_factory=dict)
    biases: Mapping[str, frozenset[Tensor]] = field(default_factory=dict)
    free: frozenset[Tensor] = frozenset()
    constants: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = "LlamaTokenizer"
    called: str = ""
    when: Callable[[Given], bool] = always
    renamed: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Given], Mapping[str, Any]] = nothing
    lost: tuple[str, ...] = ()
    pictures: bool = False
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The entry of "architectures" in config.json."""
        return self.called or self.record.classes[0]

    def tensor_name(self, tensor: Tensor) -> str | None:
        """What the class calls this GGUF tensor, without `.weight` or `.bias`; {bid} and {xid} stand for numbers."""
        return self.names.get(tensor) or NAMES.get(tensor)


CLASSIC = (
    HfClass(classic.LLAMA, "llama", biases={"attention_bias": ATTENTION, "mlp_bias": MLP}),
    HfClass(classic.MIXTRAL, "mixtral", sparse=True, names=MIXTRAL_NAMES),
    HfClass(classic.QWEN2, "qwen2", biases={"": QKV}),
    HfClass(classic.QWEN2_MOE, "qwen2_moe", sparse=True, biases={"qkv_bias": QKV}),
    HfClass(classic.QWEN3, "qwen3", biases={"attention_bias": ATTENTION}),
    HfClass(classic.QWEN3_MOE, "qwen3_moe", sparse=True, biases={"attention_bias": ATTENTION}),
    HfClass(classic.PHI3, "phi3", names=PHI3_NAMES),
    HfClass(classic.GEMMA2, "gemma2", names=GEMMA_NAMES, tokenizer="GemmaTokenizer"),
    HfClass(
        classic.GEMMA3,
        "gemma3_text",
        names=GEMMA_NAMES,
        constants={"sliding_window_pattern": 6},
        tokenizer="GemmaTokenizer",
    ),
)
