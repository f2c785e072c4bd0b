"""What an architecture is: a frozen record of the Hugging Face classes it takes, its keys and its tensors.

The records themselves are in `convert/architectures`. Key names, tensor names and the table from Hugging Face names to
GGUF tensors come from the `gguf` package, and from `convert.gguf_names` where it knows less; a record says which of
those tensors must be there, what shape they must have, and which op makes them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

from ggufsmith.container.values import Value, u32
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import Arch, Tensor, arch_name
from ggufsmith.convert.ops import Copy, Op


@dataclass(frozen=True)
class Dims:
    """The sizes that tensor shapes are made of. 0 where a model has no such thing.

    vocab:     rows of the embedding (the padded vocabulary).
    head_dim:  size of one attention head, taken from attn_q itself when it is there.
    rotary:    how many of them rotate.
    expert_ff: feed-forward length of one expert; shared_ff: of the shared expert.
    more:      the further sizes that the record names.
    kinds:     the words that say what kind of block each one is; empty where all are alike.
    factors:   numbers that weights are multiplied by.
    """

    blocks: int
    vocab: int
    embd: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    ff: int
    experts: int = 0
    expert_ff: int = 0
    shared_ff: int = 0
    one: int = 1
    more: Mapping[str, int] = field(default_factory=dict)
    kinds: tuple[frozenset[str], ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    own: tuple[Mapping[str, int], ...] = ()

    @property
    def q(self) -> int:
        """Rows of the query matrix: those of all heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Rows of the key matrix, and of the value matrix."""
        return self.kv_heads * self.head_dim

    @property
    def qkv(self) -> int:
        """Rows of query, key and value in one matrix."""
        return self.q + 2 * self.kv

    @property
    def gate_up(self) -> int:
        """Rows of gate and up in one matrix."""
        return 2 * self.ff

    @property
    def expert_gate_up(self) -> int:
        """The same of one expert."""
        return 2 * self.expert_ff

    @property
    def gated_q(self) -> int:
        """Rows of the query matrix where every head's queries are followed by their gate."""
        return 2 * self.q

    def size(self, name: str) -> int:
        """The size of this name, of the record's own or of every model's; a number stands for itself."""
        if name in self.more:
            return self.more[name]
        return int(name) if name.isdecimal() else int(getattr(self, name))

    def sizes(self, names: str) -> tuple[int, ...]:
        """The shape spelled by a rule: "q embd" -> (q, embd)."""
        return tuple(self.size(name) for name in names.split())

    def at(self, block: int | None) -> "Dims":
        """The sizes as they are in this block."""
        sizes: dict[str, Any] = {**self.own[block]} if self.own and block is not None else {}
        return replace(self, **sizes)

    def kind(self, block: int) -> frozenset[str]:
        """The words that say what kind of block this one is."""
        return self.kinds[block] if self.kinds else frozenset()


class Need(Enum):
    """Whether a tensor, or a config key, has to be there."""

    REQUIRED = "required"
    OPTIONAL = "optional"


def copy(dims: Dims) -> Op:
    """The op of a tensor that stays as it is."""
    return Copy()


@dataclass(frozen=True)
class TensorRule:
    """One GGUF tensor (in every block, if its name has a block number).

    shape:    names of `Dims` members, slowest axis first, of the source `.weight`; a bias has the first of them.
    op:       makes the output from its source.
    on:       the words that a block must have (see `Architecture.kinds`); "" for every block.
    part:     the end of the GGUF name, "" for a name without one.
    need:     OPTIONAL tensors may be absent; `fallback` then names the tensor to take instead, if llama.cpp wants one.
    bias:     an optional bias goes through the same op, unless that computes.
    stacked:  the sources may also be one tensor per expert, stacked in front.
    unused:   llama.cpp wants the tensor and never uses it: where a checkpoint lacks it, it is made of zeros.
    made:     no checkpoint has the tensor: it is made of the config alone.
    source:   the tensor whose sources it has, where blocks of two kinds have one name for two tensors.
    joined:   makes the output from several sources, each a piece of its own shape (see `Fused.piece`).
    exact:    it is stored in float32 whatever the output type.
    typed:    it has the output type, where llama.cpp's converter keeps such tensors of other architectures in float32.
    """

    tensor: Tensor
    shape: str
    op: Callable[[Dims], Op] = copy
    on: str = ""
    part: str = "weight"
    need: Need = Need.REQUIRED
    bias: bool = False
    stacked: bool = False
    fallback: Tensor | None = None
    unused: bool = False
    made: Callable[[Dims], Op] | None = None
    source: Tensor | None = None
    joined: Callable[[Dims], Op] | None = None
    exact: bool = False
    typed: bool = False
    when: Callable[[Dims], bool] = lambda dims: True

    @property
    def taken(self) -> Tensor:
        """The tensor under whose name its sources are found."""
        return self.source or self.tensor


@dataclass(frozen=True)
class Fused:
    """A source in every block that holds several GGUF tensors, or one that `gguf.tensor_mapping` does not know.

    suffix: the end of its name, without .weight or .bias. shape: as in `TensorRule`; None for that of the rule.
    parts:  each tensor with the op that cuts it; None for that of the rule.
    part:   the end of the GGUF names, where it is not that of the source.
    either: it may also be stored with its last two axes changed, as other releases of transformers do; its shape says.
    piece:  which of several sources of one tensor it is (see `TensorRule.joined`).
    """

    suffix: str
    shape: str | None
    parts: tuple[tuple[Tensor, Callable[[Dims], Op] | None], ...]
    part: str | None = None
    either: bool = False
    piece: int | None = None


def named(suffix: str, tensor: Tensor, part: str | None = None) -> Fused:
    """A source of one tensor, by the end of its name."""
    return Fused(suffix, None, ((tensor, None),), part)


@dataclass(frozen=True)
class Number:
    """A source of one number in every block, which GGUF keeps among its keys: a list for all blocks.

    name: inside a block. key: that of the list. shape: of the source, () or (1,).
    """

    name: str
    key: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A source of whole numbers from 0 on in one block, which GGUF keeps among its keys.

    suffix: the end of its name. key: that of the list, of unsigned 64-bit integers.
    """

    suffix: str
    key: str


@dataclass(frozen=True)
class ConfigKey:
    """One GGUF key.

    name:    with "{arch}", from gguf.constants.Keys.
    names:   config keys in order of preference; the first is the one that `convert.hf` writes, of computed values too.
    make:    the typed value constructor; also decides how the config value is read.
    default: used when no config key is there; None leaves the GGUF key out, Need.REQUIRED is an error.
    of:      takes the value from the dimensions, which know the config, instead.
    computed: makes the value, of any type, from config and dimensions instead; None leaves the GGUF key out.
    """

    name: str
    make: Callable[[Any], Value] = u32
    names: tuple[str, ...] = ()
    default: Any = Need.REQUIRED
    of: Callable[[Dims], int | None] | None = None
    computed: Callable[[Config, Dims], Any] | None = None


@dataclass(frozen=True)
class Rope:
    """How the rotary embedding of an architecture is described.

    theta:            transformers' default where config.json is silent.
    local_theta:      the same for the sliding-window layers, if they have their own.
    scaling:          the rope types that can be expressed for it, besides "default"; "alpha" is "dynamic" with a fixed
                      alpha, which makes another base, and "xdrope" the same of a rotation by sections.
    write_theta:      False where llama.cpp's graph has the base built in.
    original_context: always write the context length the model was first trained for.
    partial:          the part of every head that rotates, where config.json is silent.
    stated_attention: the parameters of LongRoPE state its attention factor, short_mscale and long_mscale.
    rotates:          False where none does: positions are told by a state, or by the mask alone.
    padded:           factors for Llama 3's scaling are for half of a whole head, 1 where it does not rotate.
    """

    theta: float = 10000.0
    local_theta: float | None = None
    scaling: tuple[str, ...] = ("linear", "yarn")
    write_theta: bool = True
    original_context: bool = False
    partial: float = 1.0
    stated_attention: bool = False
    rotates: bool = True
    padded: bool = False


@dataclass(frozen=True)
class Architecture:
    """One GGUF architecture as Hugging Face spells it.

    classes:  entries of "architectures" in config.json; the first is the class of transformers that runs the model.
    models:   what they are called by people.
    require:  config keys that may hold only these values, because llama.cpp's graph assumes them.
    defaults: what transformers assumes where config.json is silent.
    drop:     substrings of source names that are left out, with the reason.
    tied:     ends of source names -> the GGUF tensor that llama.cpp's graph always takes instead. Such a source is left
              out, provided that it holds the same numbers (see `convert.redundant`).
    warn:     config keys whose meaning llama.cpp does not carry out: harmless values, and the sentence for the others.
    check:    the escape hatch: a sentence if config and dimensions do not fit llama.cpp's graph, else None.
    pooling:  sentence-transformers folders say how the hidden states are pooled; write it.
    aliases:  config keys of this architecture -> the key that most models have for the same; "a.b" is b in an object.
    derived:  config keys that stand for what the config says in another way, which they replace.
    sizes:    further sizes for the shapes, or other ways to find the usual ones, from the config.
    factors:  numbers of the config that weights are multiplied by. folded: their config keys; where these are absent,
              transformers multiplies by 1, which is what converted weights want.
    kinds:    the words that say what kind of block each one is, in one string for every block.
    own:      the sizes that are those of one block alone, for every block, by the names that `Dims` has.
    mtp:      what stands around blocks that are called mtp.layers.N (see `convert.mtp`): its name -> the name inside
              the first of them; None where there are no such blocks.
    variants: what the same classes can have inside -> their own records. variant: what that is; mostly a model type.
    appended: blocks for multi-token prediction are further layers in the checkpoint itself.
    beyond:   why further layers are left out, where they are.
    spellings: patterns in names of tensors -> what stands there in those that `gguf.tensor_mapping` knows.
    numbers:  sources that become keys (see `convert.numbers`).
    listed:   lists of whole numbers that become keys.
    head_rows: how many rows attn_q has for each dimension of a head; 0 where it does not show the head's size.
    stacks:   the stacks of one length that its blocks are in (see `convert.stacks`).
    drafts:   it guesses tokens for another model, whose config.json stands in its own config as `target_config` (see
              `convert.targets`), and whose vocabulary its file has.
    """

    arch: Arch
    classes: tuple[str, ...]
    tensors: tuple[TensorRule, ...]
    keys: tuple[ConfigKey, ...]
    models: str = ""
    rope: Rope = Rope()
    fused: tuple[Fused, ...] = ()
    require: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    drop: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, Tensor] = field(default_factory=dict)
    warn: Mapping[str, tuple[tuple[Any, ...], str]] = field(default_factory=dict)
    check: Callable[[Config, Dims], str | None] | None = None
    pooling: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Config], Mapping[str, Any]] | None = None
    sizes: Mapping[str, Callable[[Config], int]] = field(default_factory=dict)
    factors: Mapping[str, Callable[[Config], float]] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    kinds: Callable[[Config, int], Sequence[str]] | None = None
    own: Callable[[Config, int], Sequence[Mapping[str, int]]] | None = None
    mtp: Mapping[str, str] | None = None
    variants: Mapping[str, "Architecture"] = field(default_factory=dict)
    variant: Callable[[Config], Any] = lambda config: config.first("model_type")
    appended: bool = False
    beyond: str = ""
    spellings: Mapping[str, str] = field(default_factory=dict)
    numbers: tuple[Number, ...] = ()
    listed: tuple[Listed, ...] = ()
    head_rows: int = 1
    stacks: tuple[str, ...] = ()
    drafts: bool = False

    def known_name(self, source: str) -> str:
        """The name of a tensor as `gguf.tensor_mapping` spells it (see `spellings`)."""
        for pattern, known in self.spellings.items():
            source = re.sub(pattern, known, source)
        return source

    def why_dropped(self, source: str) -> str | None:
        """Why a source of this name is left out; None if it is not."""
        return next((why for part, why in self.drop.items() if part in source), None)

    @property
    def predicts(self) -> bool:
        """Whether it can have blocks for multi-token prediction."""
        return self.appended or self.mtp is not None

    @cached_property
    def known(self) -> frozenset[Tensor]:
        """The GGUF tensors that it can have."""
        return frozenset(rule.tensor for rule in self.tensors)

    @property
    def name(self) -> str:
        """general.architecture."""
        return arch_name(self.arch)
