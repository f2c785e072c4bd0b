"""The files that recipes make of a model: where each goes, and the importance matrix fitted to its tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import Format
from ggufsmith.container.layout import Layout
from ggufsmith.container.shards import plan_shards
from ggufsmith.container.values import Metadata
from ggufsmith.naming.filename import FileName
from ggufsmith.pipeline.outputs import OutputFile
from ggufsmith.quantize.imatrix.fit import match
from ggufsmith.quantize.imatrix.record import Imatrix
from ggufsmith.quantize.plan import FilePlan, Importance, plan_file
from ggufsmith.quantize.recipes.assign import Recipe, Stored, TypeOptions
from ggufsmith.quantize.recipes.rules import Facts


@dataclass(frozen=True)
class QuantizedFile(OutputFile):
    """The output of a recipe."""

    plan: FilePlan

    @property
    def importance(self) -> Sequence[NDArray[np.float32] | None]:
        return self.plan.importance

    @property
    def fallbacks(self) -> tuple[str, ...]:
        return tuple(each.tensor.name for each in self.plan.fallbacks)

    @property
    def requantized(self) -> tuple[str, ...]:
        return tuple(each.tensor.name for each in self.plan.requantized)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.plan.notes())

    def reason(self, index: int) -> str:
        return self.plan.assignments[index].reason

    def wanted(self, index: int) -> Format:
        return self.plan.assignments[index].wanted


def output_paths(name: FileName, recipes: Sequence[Recipe], output: Path | None, folder: Path) -> list[Path]:
    """Where each recipe's file goes: `output`, or the components of `name` with the recipe as encoding."""
    return [output or folder / replace(name, encoding=recipe.name.upper()).format() for recipe in recipes]


def check_names(outputs: Sequence[OutputFile]) -> None:
    """Usage for two outputs of one name."""
    paths = [output.path for output in outputs]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise Usage(
            f"two of the recipes or types would make the same file, {twice[0].name}", fix="Pass each of them only once."
        )


def fit_importance(
    imatrix: Imatrix, tensors: Sequence[Stored], facts: Facts, renamed: Mapping[str, str] | None = None
) -> Importance:
    """The matrix for these tensors. renamed: what outputs call them; the others are left out (see `match`)."""
    weights, coverage = match(imatrix, tensors, facts.blocks, facts.architecture)
    names = {tensor.name: tensor.name for tensor in tensors} if renamed is None else renamed
    found = {
        names[tensor.name]: values
        for tensor, values in zip(tensors, weights, strict=True)
        if values is not None and tensor.name in names
    }
    return Importance(found, coverage, imatrix.metadata)


@dataclass(frozen=True)
class Quantizable:
    """A model as recipes see it.

    tensors:   in the order of `file_order`, or of the shards to keep; metadata: of the source.
    exact:     the same in the types that hold the weights without loss, for recipes that copy.
    overrides: keys to set. counts: how many tensors each shard of a layout has.
    """

    tensors: Sequence[Stored]
    metadata: Metadata
    facts: Facts
    importance: Importance | None
    counts: Callable[[Layout], tuple[int, ...]]
    alignment: int
    exact: tuple[Sequence[Stored], Metadata] | None = None
    overrides: Metadata = field(default_factory=dict)


def plan_outputs(
    model: Quantizable,
    recipes: Sequence[Recipe],
    types: TypeOptions,
    paths: Sequence[Path],
    *,
    strict: bool,
    allow_requantize: bool,
) -> list[QuantizedFile]:
    """One file for each recipe. Raises what `plan_file` raises."""
    planned = []
    for recipe, path in zip(recipes, paths, strict=True):
        copies = recipe.file_type.base is None
        tensors, metadata = model.exact if copies and model.exact else (model.tensors, model.metadata)
        plan = plan_file(
            recipe,
            tensors,
            metadata,
            model.facts,
            types,
            overrides=model.overrides,
            importance=model.importance,
            alignment=model.alignment,
            allow_requantize=allow_requantize,
            strict=strict,
        )
        shards = plan_shards(plan.layout, model.counts(plan.layout))
        planned.append(QuantizedFile(shards, path, recipe.name, plan))
    return planned
