"""Sums X^T X of what the linear layers of a model are given: an observer, whose sums become Hessians.

Layers that are given the same (queries, keys and values; gates and ups) share one sum. The sums of a block are taken
out when the block is done, so that only those of one block are in memory.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.collect import same_memory

if TYPE_CHECKING:
    import torch

# Tokens that the inputs of all experts together count for in the Hessian of each, as a part of the number of columns:
# an expert that saw few tokens leans on what its layer sees.
LEAN = 0.25


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the matrices of a layer were given. Two are shared by several layers if they are the same object.

    h:      float32 [n, n], mean of x x^T; one for all matrices of a stack, or one for each. Zeros without tokens.
    counts: tokens, in the same order.
    """

    h: tuple[NDArray[np.float32], ...]
    counts: tuple[int, ...]

    @property
    def tokens(self) -> tuple[float, ...]:
        """The tokens that each h counts for, those of other experts included."""
        lean = LEAN * len(self.h[0]) if len(self.h) > 1 else 0
        return tuple(count + lean for count in self.counts)


class GramCollector:
    """Sums X^T X. An `evaluate.observe.Observer`.

    shapes: of the GGUF tensors that are to be quantized, by name, slowest axis first; others are not looked at.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._leader: dict[str, str] = {}
        self._sums: dict[tuple[str, int], torch.Tensor] = {}
        self._counts: dict[tuple[str, int], int] = {}
        self._last: tuple[str, torch.Tensor] | None = None

    def __call__(self, tensor: str, inputs: "torch.Tensor", expert: int | None) -> None:
        """Take the inputs of a linear layer: float32, (tokens, n_in). expert: which one, of a stack."""
        shape = self._shapes.get(tensor, (0,))
        if shape[-1] != inputs.shape[-1] or (len(shape) > 2) != (expert is not None) or not len(inputs):
            return  # written in another way than in llama.cpp
        if tensor not in self._leader:
            same = self._last is not None and same_memory(self._last[1], inputs)
            self._leader[tensor] = self._last[0] if same and self._last else tensor
        leader = self._leader[tensor]
        if leader != tensor:
            return
        self._last = tensor, inputs  # as long as it is kept, nothing else is in its memory
        key = tensor, expert or 0
        product = inputs.T @ inputs
        if key in self._sums:
            self._sums[key] += product
        else:
            self._sums[key] = product
        self._counts[key] = self._counts.get(key, 0) + len(inputs)

    def take(self, tensors: Collection[str]) -> dict[str, Inputs]:
        """The inputs of these tensors, as far as they had any; the sums are forgotten."""
        self._last = None
        made: dict[str, Inputs] = {}
        found: dict[str, Inputs] = {}
        for tensor in tensors:
            leader = self._leader.get(tensor)
            if leader is None:
                continue
            if leader not in made:
                made[leader] = self._inputs(leader)
            found[tensor] = made[leader]
        for leader in made:
            for key in [key for key in self._sums if key[0] == leader]:
                del self._sums[key], self._counts[key]
        return found

    def _inputs(self, leader: str) -> Inputs:
        shape = self._shapes[leader]
        keys = [(leader, k) for k in range(shape[0] if len(shape) > 2 else 1)]
        counts = tuple(self._counts.get(key, 0) for key in keys)
        if len(keys) == 1:
            return Inputs((_mean(self._sums[keys[0]].cpu().numpy(), counts[0]),), counts)
        whole = sum(self._sums[key] for key in keys if key in self._sums)
        of_all = _mean(whole.cpu().numpy(), sum(counts))
        lean = LEAN * shape[-1]
        means = []
        for key, count in zip(keys, counts, strict=True):
            if not count:
                means.append(np.zeros_like(of_all))
                continue
            own = self._sums[key].cpu().numpy()
            means.append(np.asarray((own + np.float32(lean) * of_all) / np.float32(count + lean), np.float32))
        return Inputs(tuple(means), counts)


def _mean(total: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return np.asarray(total / np.float32(max(count, 1)), np.float32)
