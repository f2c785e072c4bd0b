"""How an importance matrix fits a model: the weights of each tensor, what is covered and what is not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.container.text import counted, some
from ggufsmith.quantize.imatrix.record import Imatrix
from ggufsmith.quantize.recipes.assign import Stored
from ggufsmith.quantize.recipes.rules import block_of, kept, role_of

MAX_PROBLEMS = 5  # that a message lists


@dataclass(frozen=True)
class Coverage:
    """How an importance matrix fits a model.

    covered: matrices that have an entry; missing: those that have none, embeddings and output aside.
    partial: stacks some of whose experts never ran, and how many.
    ignored: entries that are not used, with the reason.
    """

    covered: tuple[str, ...]
    missing: tuple[str, ...]
    partial: Mapping[str, int]
    ignored: tuple[str, ...]

    def summary(self) -> dict[str, list[str]]:
        """Which matrices have an entry and which have none, for reports."""
        return {"covered": list(self.covered), "missing": list(self.missing)}

    def notes(self) -> Iterator[str]:
        """Sentences for the report."""
        total = len(self.covered) + len(self.missing)
        yield f"importance for {len(self.covered)} of {counted(total, 'matrix', 'matrices')}"
        if self.missing:
            yield f"no importance for {some(self.missing)}"
        for name, count in self.partial.items():
            never = "1 expert was never used, so its" if count == 1 else f"{count} experts were never used, so their"
            yield f"{name}: {never} weights count equally"
        yield from self.ignored


def match(
    imatrix: Imatrix, tensors: Sequence[Stored], blocks: int, architecture: str
) -> tuple[list[NDArray[np.float32] | None], Coverage]:
    """The weights of every tensor, (width,) or (slices, width), None where there are none; and the coverage.

    tensors: with the names that the source has. Malformed if the matrix is of another model: shapes or layers that do
    not fit, or no name in common.
    """
    weights: list[NDArray[np.float32] | None] = []
    covered, missing, ignored, wrong = [], [], [], []
    partial: dict[str, int] = {}
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        weights.append(None)
        entry = imatrix.entries.get(tensor.name)
        if kept(tensor.name, tensor.shape, architecture) is not None:
            continue
        edge = role_of(tensor.name) in ("token_embd", "output")
        if entry is None:
            if not edge:
                missing.append(tensor.name)
            continue
        slices = tensor.shape[-3] if len(tensor.shape) > 2 else 1
        wanted = slices * tensor.shape[-1]
        if entry.sums.size == wanted:
            weights[-1] = entry.weights.reshape(slices, -1) if slices > 1 else entry.weights
            covered.append(tensor.name)
            if entry.unused:
                partial[tensor.name] = len(entry.unused)
        elif role_of(tensor.name) == "token_embd":
            ignored.append(
                f"{tensor.name}: {counted(entry.sums.size, 'value')} for rows of {tensor.shape[-1]} are not used"
            )
        else:
            wrong.append(f"{tensor.name}: {counted(entry.sums.size, 'value')}, but the tensor needs {wanted}")
    strangers = [name for name in imatrix.entries if name not in names]
    wrong += [f"{name}: the model has {blocks} layers" for name in strangers if (block_of(name) or 0) >= blocks]
    if wrong or not covered:
        raise Malformed(
            "this importance matrix belongs to another model",
            where=imatrix.path,
            also=wrong[:MAX_PROBLEMS] or ["none of its entries has the name of a matrix of this model"],
            fix="Make one for this model: ggufsmith imatrix MODEL",
        )
    if strangers:
        ignored.append(f"entries for tensors that the model does not have: {some(strangers)}")
    return weights, Coverage(tuple(covered), tuple(missing), partial, tuple(ignored))
