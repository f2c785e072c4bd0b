"""What is said of a model that computes what is not finite, although all of its weights are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggufsmith.container.errors import Malformed
from ggufsmith.pipeline.parallel import available_cores

if TYPE_CHECKING:
    from ggufsmith.evaluate.skeleton import Skeleton
    from ggufsmith.evaluate.variants import ModelVariant

LARGEST = 3  # weights that are named
FIX = (
    "Every weight is finite, but some may be wrong. Compare the model with what it was made from: `ggufsmith verify "
    "FILE --source MODEL`; download or make it again."
)


class NotFinite(Exception):
    """The tensors whose inputs are not finite, in the order in which they were computed."""

    def __init__(self, tensors: Sequence[str]) -> None:
        super().__init__(*tensors)
        self.tensors = tuple(tensors)


def explained(error: NotFinite, skeleton: "Skeleton", source: "ModelVariant", threads: int | None) -> Malformed:
    """Where it began, with the largest weights of that block and of the one before, of which one may have caused it."""
    from ggufsmith.evaluate.variants import read_tensors

    first = error.tensors[0]
    blocks = [[each.name for each in skeleton.outputs(block)] for block in range(len(skeleton.blocks))]
    at = next((k for k, names in enumerate(blocks) if first in names), len(blocks))
    names = [name for block in blocks[max(at - 1, 0) : at + 1] for name in block]
    rows = read_tensors(source, names, threads or available_cores())
    most = {name: float(np.abs(values).max(initial=0)) for name, values in rows.items()}
    largest = sorted(most, key=lambda name: -most[name])[:LARGEST]
    where = f"in block {at}" if at < len(blocks) else "after the last block"
    return Malformed(
        f"the model computes numbers that are NaN, infinite or too large, first {where}, where they go into {first}",
        also=[f"the largest weight of {name} is {most[name]:.3g}" for name in largest],
        fix=FIX,
    )
