"""The ops of a plan, backwards: how each source of a conversion is made from the GGUF tensors that it became.

A source that became one tensor is made by the inverse of its op. One that several tensors were cut from (gate and up,
keys and values) is put together again: each op says which of its numbers it took.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.layout import rows_of
from ggufsmith.container.text import some
from ggufsmith.convert.ops import Array, Op, Read, Shape, as_matrix
from ggufsmith.convert.plan import TensorPlan
from ggufsmith.convert.stored import StoredTensor


@dataclass(frozen=True)
class Merge(Op):
    """One tensor from several that were taken from it; the opposite of the ops that took them.

    taken: those ops, of the tensors in this order. whole: the shape of the tensor. It is made matrix by matrix.
    """

    taken: tuple[Op, ...]
    whole: Shape

    @property
    def whole_rows(self) -> bool:
        return all(op.whole_rows for op in self.taken)

    @property
    def _one(self) -> Shape:
        """The shape of one matrix, with an axis of one for a stack; of all, where ops select whole ones."""
        return (1, *self.whole[-2:]) if len(self.whole) > 2 and not self._across else self.whole

    @property
    def _across(self) -> bool:
        return any(op.across for op in self.taken)

    def shape(self, *sources: Shape) -> Shape:
        return self.whole

    def granule(self, *sources: Shape) -> int:
        return rows_of(self.whole)[0] if self._across else as_matrix(self.whole)[-2]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        each, one = self.granule(*sources), self._one
        first, last = start // each, -(-stop // each)
        counts = [rows_of(op.shape(one))[0] for op in self.taken]
        made: Array | None = None
        for number in range(first, last):
            for k, (op, count) in enumerate(zip(self.taken, counts, strict=True)):
                part = read(k, number * count, (number + 1) * count)
                if made is None:  # rows that stay whole may be blocks, whose bytes are not as many as their numbers
                    width = part.shape[-1:] if self.whole_rows else one[-1:]
                    made = np.empty((last - first, *one[:-1], *width) if len(one) > 1 else (1, *one), part.dtype)
                op.put(part, made[number - first])
        assert made is not None
        return made.reshape((last - first) * each, -1)[start - first * each : stop - first * each]


class Inverse(NamedTuple):
    """How a source is made. outputs: the GGUF tensors that `op` makes it from."""

    source: StoredTensor
    outputs: tuple[TensorPlan, ...]
    op: Op


def inverses(outputs: Iterable[TensorPlan]) -> list[Inverse]:
    """How every source of these outputs is made from them, in their order. Unsupported, if there is one that cannot."""
    uses: dict[str, list[tuple[TensorPlan, int]]] = {}
    for output in outputs:
        for k, source in enumerate(output.sources):
            uses.setdefault(source.name, []).append((output, k))
    found, wrong = list[Inverse](), list[str]()
    for name, used in uses.items():
        output, k = used[0]
        source, undo = output.sources[k], output.op.inverse(k)
        if undo is not None:  # an embedding can be two tensors, each of them the whole of it
            found.append(Inverse(source, (output,), undo))
            continue
        taken = tuple(each.op for each, _ in used)
        sizes = [math.prod(each.shape) for each, _ in used]
        if not all(op.selects for op in taken) or sum(sizes) != math.prod(source.shape):
            wrong.append(name)
            continue
        found.append(Inverse(source, tuple(each for each, _ in used), Merge(taken, source.shape)))
    if wrong:
        raise Unsupported(f"{some(wrong)} cannot be made from the GGUF tensors again")
    return found
