"""The files that recipes make of a model: where each goes, and the importance matrix fitted to its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Usage
from ggufsmith.naming.filename import FileName
from ggufsmith.pipeline.outputs import OutputFile
from ggufsmith.quantize.imatrix import Imatrix, match
from ggufsmith.quantize.plan import FilePlan, Importance
from ggufsmith.quantize.recipes.assign import Recipe, Stored
from ggufsmith.quantize.recipes.rules import Facts


@dataclass(frozen=True)
class QuantizedFile(OutputFile):
    """The output of a recipe."""

    plan: FilePlan

    @property
    def importance(self) -> Sequence[NDArray[np.float32] | None]:
        return self.plan.importance


def output_paths(name: FileName, recipes: Sequence[Recipe], output: Path | None, folder: Path) -> list[Path]:
    """Where each recipe's file goes: the components of `name` with the recipe as encoding.

    Usage for one output and several recipes, and for two recipes of one name.
    """
    if output is not None:
        if len(recipes) != 1:
            raise Usage("one output file for several recipes", fix="Leave it out, or name a folder with --outdir.")
        return [output]
    paths = [folder / replace(name, encoding=recipe.name.upper()).format() for recipe in recipes]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise Usage(f"two recipes would write {twice[0]}", fix="Name each recipe once.")
    return paths


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
