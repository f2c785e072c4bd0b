"""From a recipe and a model's tensors to the format of every tensor. Pure: names and shapes in, formats out."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.values import Metadata
from ggufsmith.quantize.recipes.filetypes import FileType
from ggufsmith.quantize.recipes.rules import (
    LAST_RESORT,
    SMALLER_BLOCKS,
    VALUES,
    Facts,
    RulePlace,
    block_of,
    choose,
    kept,
    needs_importance,
    role_of,
)

BUDGET = "budget"  # the origin of rules that a budget chose


@dataclass(frozen=True)
class Stored:
    """A tensor as the source has it. shape: slowest axis first."""

    name: str
    shape: tuple[int, ...]
    format: Format


@dataclass(frozen=True)
class Layers:
    """A set of layers: those listed, and the first and last fractions of all."""

    listed: frozenset[int] = frozenset()
    first: float = 0.0
    last: float = 0.0

    def holds(self, layer: int, count: int) -> bool:
        """Whether this layer, of so many, is among them."""
        in_fractions = layer < self.first * count or layer >= count - self.last * count
        return layer in self.listed or in_fractions


@dataclass(frozen=True)
class Override:
    """Gives a format to the tensors that meet all its conditions.

    match:  searched anywhere in the name, in any case.
    roles:  empty for all.
    names:  of single tensors; empty for all.
    layers: None for all tensors, also those outside the layers.
    origin: where it was said, for messages.
    """

    format: Format
    match: re.Pattern[str] | None = None
    roles: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    layers: Layers | None = None
    origin: str = ""

    def applies(self, name: str, blocks: int) -> bool:
        """Whether the rule applies to a tensor of this name, in a model with so many layers."""
        if self.match is not None and not self.match.search(name):
            return False
        if self.roles and role_of(name) not in self.roles:
            return False
        if self.names and name not in self.names:
            return False
        layer = block_of(name)
        return self.layers is None or (layer is not None and self.layers.holds(layer, blocks))

    @property
    def points(self) -> bool:
        """Whether it names tensors or layers, so that meeting none is a mistake; roles may be absent from a model."""
        return bool(self.match or self.names or (self.layers and self.layers.listed))


@dataclass(frozen=True)
class Recipe:
    """A file type, or one with overrides on top; of these the first that applies decides.

    addition: where types are chosen by measurement, the file gets those that are best for the size of the file type
    alone and this part of it more, instead of the overrides. Zero for a recipe that stands as it is.
    """

    name: str
    file_type: FileType
    overrides: tuple[Override, ...] = ()
    description: str = ""
    addition: float = 0.0


@dataclass(frozen=True)
class TypeOptions:
    """What llama-quantize's options of the same names do.

    pure:                 every matrix in the base format of the file type.
    leave_output:         output.weight stays as it is.
    output_type:          for output.weight, and for token embeddings that serve as output.
    token_embedding_type: for token embeddings.
    overrides:            before those of the recipe.
    """

    pure: bool = False
    leave_output: bool = False
    output_type: Format | None = None
    token_embedding_type: Format | None = None
    overrides: tuple[Override, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """What becomes of one tensor.

    format: what it gets.
    wanted: what it would have had, did its rows fit that format's blocks.
    reason: which rule decided.
    needs_importance: the format makes no sense without an importance matrix.
    """

    tensor: Stored
    format: Format
    wanted: Format
    reason: str
    needs_importance: bool = False

    @property
    def fallback(self) -> bool:
        """Whether its rows do not fit the type that the rule asked for."""
        return self.format is not self.wanted

    @property
    def copied(self) -> bool:
        """Whether it keeps its type, so that its bytes are copied."""
        return self.format is self.tensor.format

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its new type, without padding."""
        return self.format.nbytes(self.tensor.shape)


def facts_of(metadata: Metadata, *, importance: bool = False) -> Facts:
    """What the rules need of a GGUF file's metadata. A value per layer counts as that of the first layer.

    Malformed for a count that is NaN or infinite.
    """

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"{architecture}.{key}")
        if value is None:
            return default
        data = value.data
        if not isinstance(data, bool | int | float | str):
            data = data[0] if len(data) else default
        if isinstance(data, str):
            return default
        if not math.isfinite(data):
            raise Malformed(f"is {data}, which is not a valid count", where=f"{architecture}.{key}")
        return int(data)

    name = metadata.get("general.architecture")
    architecture = str(name.data) if name else ""
    heads = number("attention.head_count")
    return Facts(
        architecture,
        blocks=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        experts=number("expert_count"),
        importance=importance,
    )


def file_order(names: Iterable[str]) -> list[str]:
    """The order in which llama-quantize writes tensors, and in which its rules count them."""

    def key(name: str) -> tuple[int, bytes]:
        block = block_of(name)
        return (-1 if block is None else block, name.encode())

    return sorted(names, key=key)


def assign(
    recipe: Recipe, tensors: Sequence[Stored], facts: Facts, options: TypeOptions | None = None
) -> list[Assignment]:
    """The format of every tensor, in the order given, which should be `file_order`: some rules count.

    Usage for an override that points at tensors or layers that there are not; Unsupported for widths that no format
    fits.
    """
    options = options or TypeOptions()
    if recipe.file_type.base is None:
        return [Assignment(tensor, tensor.format, tensor.format, "copied") for tensor in tensors]
    walk = _Walk(recipe, recipe.file_type.base, options, facts, tensors)
    found = [walk.assign(tensor) for tensor in tensors]
    wrong = list(_astray(walk.overrides, walk.matched, facts.blocks))
    if wrong:
        raise Usage(wrong[0], also=wrong[1:], fix="Without --tensor-type, --dry-run prints the names of all tensors.")
    return found


def _astray(overrides: Iterable[Override], matched: set[Override], blocks: int) -> Iterator[str]:
    for override in overrides:
        layers = override.layers.listed if override.layers else ()
        if beyond := sorted(layer for layer in layers if layer >= blocks):
            yield f"{override.origin}: there is no layer {beyond[0]}; the model has layers 0 to {blocks - 1}"
        elif override.points and override not in matched:
            yield f"{override.origin}: matches none of the tensors that could be quantized"


@dataclass
class _Walk:
    """One pass over the tensors: the rules that count need to know what came before."""

    recipe: Recipe
    base: Format
    options: TypeOptions
    facts: Facts
    tensors: Sequence[Stored]
    seen: Counter[str] = field(default_factory=Counter)
    matched: set[Override] = field(default_factory=set)

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        self.tied = "output.weight" not in names
        self.values = sum(role_of(name) in VALUES for name in names)
        self.overrides = (*self.options.overrides, *self.recipe.overrides)

    def assign(self, tensor: Stored) -> Assignment:
        why = kept(tensor.name, tensor.shape, self.facts.architecture)
        if why is None and self.options.leave_output and tensor.name == "output.weight":
            why = "--leave-output-tensor"
        if why is not None:
            return Assignment(tensor, tensor.format, tensor.format, why)
        wanted, reason = self._wanted(tensor)
        format = fit(wanted, tensor)
        if format is not wanted:
            reason = f"fallback: rows of {tensor.shape[-1]} are not a multiple of {wanted.weights} ({wanted.name})"
        needed = needs_importance(tensor.name, format.name, self.recipe.file_type.name)
        return Assignment(tensor, format, wanted, reason, needed)

    def _wanted(self, tensor: Stored) -> tuple[Format, str]:
        """Options, then overrides, then rules."""
        options, role = self.options, role_of(tensor.name)
        applying = [override for override in self.overrides if override.applies(tensor.name, self.facts.blocks)]
        self.matched.update(applying)
        override = applying[0] if applying else None
        # Gemma 3n's second table is large: there an override wins.
        by_option = override is None or tensor.name == "token_embd.weight"
        if role == "token_embd" and by_option and options.token_embedding_type is not None:
            return options.token_embedding_type, "--token-embedding-type"
        if role == "output" and options.output_type is not None:
            return options.output_type, "--output-tensor-type"
        if override is not None:
            return override.format, override.origin
        base = self.base
        if base.plain or options.pure:
            return base, "base"
        if role == "token_embd" and self.tied:
            role = "output"
            if options.output_type is not None:
                return options.output_type, "--output-tensor-type"
        name = choose(self.recipe.file_type.name, self._place(tensor, role, base))
        return (BY_NAME[name], role) if name and name != base.name else (base, "base")

    def _place(self, tensor: Stored, role: str, base: Format) -> RulePlace:
        family = "attn_v" if role in VALUES else role
        ordinal = self.seen[family]
        self.seen[family] += 1
        index = ordinal
        if family != "attn_v" and self.facts.experts > 1:
            index = block_of(tensor.name) or 0
        return RulePlace(
            name=tensor.name,
            role=role,
            index=index,
            ordinal=ordinal,
            count=self.values if family == "attn_v" else self.facts.blocks,
            width=tensor.shape[-1],
            block=base.weights,
            stacked=len(tensor.shape) > 2 and tensor.shape[-3] > 1,
            facts=self.facts,
        )


def fit(wanted: Format, tensor: Stored) -> Format:
    """The format itself if the tensor's rows are whole blocks of it, else the nearest that fits.

    Unsupported where llama.cpp has no fallback either.
    """
    width = tensor.shape[-1]
    if width % wanted.weights == 0:
        return wanted
    name = SMALLER_BLOCKS.get(wanted.name)
    if name is None and wanted.weights > 32:
        raise Unsupported(
            f"rows of {width} are not a multiple of {wanted.weights}, and {wanted.name} has no fallback",
            where=tensor.name,
            fix="Choose another recipe, or another type for this tensor with the option --tensor-type of gguf-quant "
            "and gguf-convert.",
        )
    found = BY_NAME[name] if name else wanted
    return found if width % found.weights == 0 else BY_NAME[LAST_RESORT]
