"""What a projector is: frozen records of encoders of images or sound, their keys and tensors, and what follows them.

A projector file (`mmproj-*.gguf`) holds what stands before a language model that sees or hears: the encoders, and the
layers that turn what they find into embeddings for the text model. The records are in the other modules of this
package. Which tensors and keys each kind is read from: llama.cpp, tools/mtmd/clip.cpp and tools/mtmd/models/*.cpp.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ggufsmith.container.values import Value
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Copy, Op


@dataclass(frozen=True)
class ProjectorFacts:
    """What sizes, keys and tensors of an encoder follow from.

    config:    the part of config.json that describes it. text: config.json with the text model's part on top.
    processor: preprocessor_config.json, with what processor_config.json says of images on top.
    token:     the id of a token of the vocabulary, None if there is no such token.
    sizes:     by the names that the record gives them.
    """

    config: Config
    text: Config
    processor: Config
    token: Callable[[str], int | None]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """The size of this name; a number stands for itself, and sizes with * between them for their product."""
        return math.prod(int(part) if part.isdecimal() else self.sizes[part] for part in name.split("*"))

    def shape(self, names: str) -> tuple[int, ...]:
        """The shape spelled by a rule: "merge*merge*embd text" -> (4 * embd, text)."""
        return tuple(self.size(name) for name in names.split())


Copies = Callable[[ProjectorFacts], Iterable[tuple[int, int]]]
# The type of a tensor in a file whose matrices have another; what is not listed has that of the matrices.
SINGLE = (("F16", "F32"), ("BF16", "F32"), ("Q8_0", "F32"))
HALF = (("F32", "F16"), ("BF16", "F16"), ("Q8_0", "F16"))
CONVOLUTION = (("BF16", "F32"), ("Q8_0", "F32"))  # ggml convolves with F16 or F32 only


def unchanged(facts: ProjectorFacts) -> Op:
    """The op of a tensor that stays as it is."""
    return Copy()


def always(facts: ProjectorFacts) -> bool:
    """Of every model."""
    return True


def each_block(facts: ProjectorFacts) -> Iterable[tuple[int, int]]:
    """(number in the checkpoint, number in the file) of every block."""
    return ((block, block) for block in range(facts.sizes["blocks"]))


@dataclass(frozen=True)
class ProjectorRule:
    """One tensor of the file, or one for each block where the names have {}.

    name:   in the file. source: in the checkpoint, without what stands before all names (see `Projector`); "" for one
            that is computed from the config alone.
    more:   further sources of the same shape, for ops of several.
    shape:  of the source, slowest axis first (see `ProjectorFacts.shape`).
    op:     makes the tensor from its source. types: see `CONVOLUTION`.
    copies: the numbers that {} stands for. when: whether a model has the tensor.
    """

    name: str
    source: str
    shape: str
    op: Callable[[ProjectorFacts], Op] = unchanged
    types: tuple[tuple[str, str], ...] = ()
    copies: Copies = each_block
    when: Callable[[ProjectorFacts], bool] = always
    more: tuple[str, ...] = ()


def weight(name: str, source: str, shape: str, **more: Any) -> tuple[ProjectorRule]:
    """The rule of a matrix, or of the factors of a norm."""
    return (ProjectorRule(f"{name}.weight", f"{source}.weight", shape, **more),)


def biased(name: str, source: str, shape: str, **more: Any) -> tuple[ProjectorRule, ProjectorRule]:
    """The rules of a matrix, or of the factors of a norm, and of its bias."""
    bias = {key: value for key, value in more.items() if key != "types"}
    return (
        *weight(name, source, shape, **more),
        ProjectorRule(f"{name}.bias", f"{source}.bias", shape.split()[0], **bias),
    )


@dataclass(frozen=True)
class ProjectorKey:
    """One key of the file. value: None leaves it out."""

    name: str
    make: Callable[[Any], Value]
    value: Callable[[ProjectorFacts], Any]


def fixed(value: Any) -> Callable[[ProjectorFacts], Any]:
    """The same value for every model."""
    return lambda facts: value


def sized(name: str) -> Callable[[ProjectorFacts], int]:
    """The size of this name."""
    return lambda facts: facts.size(name)


@dataclass(frozen=True)
class EncoderRecord:
    """One encoder with what turns its output into embeddings.

    kind:     "vision" or "audio". section: the key of config.json that describes it.
    prefixes: how the names of its tensors begin.
    sizes:    of the shapes, from the facts, in an order in which each can use those before it.
    require:  config keys that may hold only these values, because llama.cpp's graph assumes them.
    defaults: what transformers assumes where the section is silent.
    harmless: keys of the section that say nothing about the converted model.
    check:    a sentence if something else does not fit llama.cpp's graph, else None.
    optional: models of the class may lack it.
    note:     what llama.cpp is known to compute otherwise than the model, said with every conversion.
    """

    kind: str
    section: str
    prefixes: tuple[str, ...]
    sizes: Mapping[str, Callable[[ProjectorFacts], int]]
    tensors: tuple[ProjectorRule, ...]
    keys: tuple[ProjectorKey, ...]
    require: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    check: Callable[[ProjectorFacts], str | None] | None = None
    optional: bool = False
    note: str = ""


@dataclass(frozen=True)
class Projector:
    """The encoders of a class of models.

    classes: entries of "architectures" in config.json. models: what they are called by people.
    type:    clip.projector_type, or those of the encoders.
    renamed: beginnings of names -> how they begin in the rules. "model." in front is passed over before.
    drop:    beginnings or ends of names that are left out, with the reason.
    """

    classes: tuple[str, ...]
    models: str
    type: str
    encoders: tuple[EncoderRecord, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    drop: Mapping[str, str] = field(default_factory=dict)

    def own_name(self, source: str) -> str:
        """The name of a tensor of the checkpoint as the rules have it."""
        name = source.removeprefix("model.")
        before = next((before for before in self.renamed if name.startswith(before)), None)
        return name if before is None else self.renamed[before] + name.removeprefix(before)

    def takes(self, source: str) -> bool:
        """Whether a tensor of the checkpoint belongs to one of the encoders."""
        return any(self.own_name(source).startswith(encoder.prefixes) for encoder in self.encoders)
