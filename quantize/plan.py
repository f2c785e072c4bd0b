"""One output of a quantization, planned: the format of every tensor, the metadata, the exact layout."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, Keys
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.formats import FLOATS
from ggufsmith.container.layout import DEFAULT_ALIGNMENT, Layout, TensorSpec, lay_out
from ggufsmith.container.text import counted
from ggufsmith.container.values import Metadata, u32
from ggufsmith.quantize.imatrix.fit import Coverage
from ggufsmith.quantize.recipes.assign import BUDGET, Assignment, Recipe, Stored, TypeOptions, assign
from ggufsmith.quantize.recipes.rules import Facts, kept, role_of
from ggufsmith.quantize.rows import MODULES

MAX_LISTED = 8  # tensors that a message names
IMATRIX = "quantize.imatrix."
METHOD = ("quantize.method", "quantize.calibration.")  # see calibrate/run.py
CALIBRATED = "ggufsmith-calibrated"  # the method, if it was not plain
READABLE = (*FLOATS, *MODULES)
MAKEABLE = tuple(name for name in READABLE if name != "Q8_K")  # that is for activations, and no file has it
VERSION, FILE_TYPE = Keys.General.QUANTIZATION_VERSION, Keys.General.FILE_TYPE


@dataclass(frozen=True)
class Importance:
    """An importance matrix fitted to the tensors of a model, by name. keys: what of it the file records."""

    weights: Mapping[str, NDArray[np.float32]]
    coverage: Coverage
    keys: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class FilePlan:
    """One recipe applied to one model; `layout.tensors` are in the order of `assignments`.

    unused: options for the output matrix that met none.
    """

    recipe: Recipe
    assignments: tuple[Assignment, ...]
    layout: Layout
    importance: tuple[NDArray[np.float32] | None, ...]
    unused: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many weights the file has."""
        return sum(math.prod(each.tensor.shape) for each in self.assignments)

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors alone, without header and padding."""
        return 8 * sum(each.nbytes for each in self.assignments) / max(self.weights, 1)

    @property
    def fallbacks(self) -> list[Assignment]:
        """Tensors that could not have the type of their rule."""
        return [each for each in self.assignments if each.fallback]

    @property
    def requantized(self) -> list[Assignment]:
        """Tensors that were quantized already and get another type."""
        return [each for each in self.assignments if not each.copied and each.tensor.format.name not in FLOATS]

    def notes(self) -> Iterator[str]:
        """What the user should know before the work begins."""
        if fallbacks := self.fallbacks:
            pairs = sorted({f"{each.wanted.name} to {each.format.name}" for each in fallbacks})
            yield (
                f"{len(fallbacks)} of {len(self.assignments)} tensors have another type than the recipe gives "
                f"({', '.join(pairs)}): their rows are "
                f"not a multiple of the block size; {self.bits_per_weight:.2f} bits per weight in total"
            )
        if chosen := [each for each in self.assignments if each.reason == BUDGET]:
            yield self.recipe.description
            yield f"types: {_by_role(chosen)}"
        for option in self.unused:
            yield f"{option} has no effect: there is no output.weight, because the token embeddings are used instead"
        if requantized := self.requantized:
            froms = sorted({each.tensor.format.name for each in requantized})
            yield (
                f"{counted(len(requantized), 'tensor is', 'tensors are')} quantized a second time, from "
                f"{', '.join(froms)}, so the errors add up; it is better to quantize the 16-bit model"
            )


def plan_file(
    recipe: Recipe,
    tensors: Sequence[Stored],
    metadata: Metadata,
    facts: Facts,
    options: TypeOptions | None = None,
    *,
    overrides: Metadata | None = None,
    importance: Importance | None = None,
    alignment: int = DEFAULT_ALIGNMENT,
    allow_requantize: bool = False,
    strict: bool = False,
) -> FilePlan:
    """Apply a recipe. tensors: in the order of the file; metadata: of the source; overrides: keys to set.

    Usage, with all tensors concerned, for a recipe that needs importance where there is none, for a source that is
    quantized already, and, if `strict`, for tensors that fall back to another type. Unsupported for types that cannot
    be read or made.
    """
    assignments = assign(recipe, tensors, facts, options)
    weights = tuple(importance.weights.get(tensor.name) if importance else None for tensor in tensors)
    _check_effect(recipe, assignments, facts)
    _check_types(assignments)
    _check_importance(recipe, assignments, weights, importance)
    if recipe.file_type.base is not None:  # how the source was quantized does not hold for what is quantized anew
        metadata = {key: value for key, value in metadata.items() if not key.startswith(METHOD)}
    if importance:
        metadata = {key: value for key, value in metadata.items() if not key.startswith(IMATRIX)}
        overrides = {**importance.keys, **(overrides or {})}
    layout = lay_out_file(recipe, assignments, metadata, overrides, alignment=alignment)
    plan = FilePlan(recipe, tuple(assignments), layout, weights, tuple(_unused(options or TypeOptions(), assignments)))
    if plan.requantized and not allow_requantize:
        formats = sorted({each.tensor.format.name for each in plan.requantized})
        raise Usage(
            f"{counted(len(plan.requantized), 'tensor is', 'tensors are')} already quantized ({', '.join(formats)})",
            where=plan.requantized[0].tensor.name,
            fix="Quantize from the F16, BF16 or F32 model, or accept the added error with the option "
            "--allow-requantize of gguf-quant and gguf-convert.",
        )
    if strict and plan.fallbacks:
        raise Usage(
            f"{counted(len(plan.fallbacks), 'tensor')} cannot have the type of {recipe.name}, and --strict is set",
            also=_listed([f"{each.tensor.name}: {each.reason}" for each in plan.fallbacks]),
            fix="Give them a type that fits with --tensor-type, or leave out --strict.",
        )
    return plan


def lay_out_file(
    recipe: Recipe,
    assignments: Sequence[Assignment],
    metadata: Metadata,
    overrides: Metadata | None = None,
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> Layout:
    """The file that a recipe makes. metadata: of the source; overrides: keys to set."""
    keys: Metadata = {VERSION: u32(GGML_QUANT_VERSION)}
    if recipe.file_type.number is not None:
        keys[FILE_TYPE] = u32(recipe.file_type.number)
    elif FILE_TYPE in metadata:
        keys[FILE_TYPE] = metadata[FILE_TYPE]
    overrides = overrides or {}
    own = {key: value for key, value in keys.items() if key not in overrides}
    kept = {key: value for key, value in metadata.items() if key not in keys and key not in overrides}
    specs = [TensorSpec(each.tensor.name, _trimmed(each.tensor.shape), each.format) for each in assignments]
    return lay_out({**kept, **own, **overrides}, specs, alignment=alignment)


def _by_role(assignments: Sequence[Assignment]) -> str:
    """How many tensors of each role have each type, those of most tensors first."""
    roles: dict[str, Counter[str]] = {}
    for each in assignments:
        roles.setdefault(role_of(each.tensor.name) or "others", Counter())[each.format.name] += 1
    return "; ".join(
        f"{role} {', '.join(f'{count} {name}' for name, count in types.most_common())}"
        for role, types in sorted(roles.items())
    )


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without slowest axes of length one, as ggml counts dimensions when it writes a file."""
    first = next((axis for axis, length in enumerate(shape) if length > 1), len(shape) - 1)
    return shape[first:]


def _unused(options: TypeOptions, assignments: Sequence[Assignment]) -> Iterator[str]:
    """As in llama-quantize, token embeddings that are the output too are given its type by mixtures only."""
    if any(each.tensor.name == "output.weight" for each in assignments):
        return
    if options.leave_output:
        yield "--leave-output-tensor"
    embeddings = [each for each in assignments if role_of(each.tensor.name) == "token_embd"]
    met = any(each.reason == "--output-tensor-type" or each.fallback for each in embeddings)
    if options.output_type is not None and not met:
        yield "--output-tensor-type"


def _check_effect(recipe: Recipe, assignments: Sequence[Assignment], facts: Facts) -> None:
    """Unsupported if the recipe changes nothing: no tensor may be quantized, and some do not have its type already."""
    base, tensors = recipe.file_type.base, [each.tensor for each in assignments]
    if base is None or all(tensor.format is base for tensor in tensors):
        return
    reasons = Counter(kept(tensor.name, tensor.shape, facts.architecture) for tensor in tensors)
    if None not in reasons:
        raise Unsupported(
            f"none of this file's tensors can have the type {base.name}",
            also=[f"{counted(count, 'tensor')}: {reason}" for reason, count in reasons.most_common()],
            fix="Pass a model.",
        )


def _check_types(assignments: Sequence[Assignment]) -> None:
    for each in assignments:
        if not each.copied and not (each.tensor.format.name in READABLE and each.format.name in MAKEABLE):
            raise Unsupported(
                f"the tensor cannot be converted to {each.format.name} from {each.tensor.format.name}",
                where=each.tensor.name,
                fix=f"Types that can be written: {', '.join(MAKEABLE)}.",
            )


def _check_importance(
    recipe: Recipe,
    assignments: Sequence[Assignment],
    weights: Sequence[NDArray[np.float32] | None],
    importance: Importance | None,
) -> None:
    needy = [
        f"{each.tensor.name} ({each.format.name})"
        for each, found in zip(assignments, weights, strict=True)
        if each.needs_importance and found is None and not each.copied
    ]
    if needy and importance is None:
        raise Usage(
            f"{recipe.file_type.shown} needs an importance matrix for {counted(len(needy), 'tensor')}: so few bits "
            f"would be of no use without one",
            also=_listed(needy),
            fix="Pass one with --imatrix FILE, or have one made with --imatrix auto.",
        )
    if needy:
        raise Usage(
            f"the importance matrix has no entry for {counted(len(needy), 'tensor')} that cannot do without",
            also=_listed(needy),
            fix="Compute it over more text, or give what lacks one another type with the option --tensor-type of "
            "gguf-quant and gguf-convert.",
        )


def _listed(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - MAX_LISTED
    return [*lines[:MAX_LISTED], *([f"and {rest} more"] if rest > 0 else [])]
