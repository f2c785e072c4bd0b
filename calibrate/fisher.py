"""The Fisher information of a block's linears: how much errors of their outputs count for the predictions.

A change dW of a matrix changes the KL divergence by about 1/2 E[(g^T dW x)^2] per token, with the inputs x and the
gradients g of its outputs under labels drawn from the model. It is taken as
1/2 sum_i (F_i / sum F) dW_i A dW_i^T with F_i = E[g_i^2] and A = E[|g|^2 x x^T]: what E[g^2] E[x x^T] says is wrong
wherever a few tokens have both large inputs and large gradients, as the first token of a text has.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ggufsmith.calibrate.gram import GramCollector, Inputs
from ggufsmith.container.errors import Malformed
from ggufsmith.container.parallel import parallel_for
from ggufsmith.evaluate.backward import Told


@dataclass(frozen=True, eq=False)
class Fisher:
    """Of one matrix. outputs: float64 (rows,), F. inputs: float32 (n, n), A; means over all tokens of the text."""

    outputs: NDArray[np.float64]
    inputs: NDArray[np.float32]


class FisherCollector:
    """Sums what a block's linears are told of (see `evaluate.backward.run_backward`), and the Hessians of their inputs.

    shapes:  of the tensors that are looked at, by name, slowest axis first. tokens: of the whole text.
    threads: the result does not depend on them: each sum is made by one, in the order of the windows.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], tokens: int, threads: int) -> None:
        self._shapes, self._tokens, self._threads = shapes, tokens, threads
        self._grams = GramCollector(shapes)
        self._outputs: dict[tuple[str, int], torch.Tensor] = {}
        self._inputs: dict[tuple[str, int], torch.Tensor] = {}

    def __call__(self, windows: Sequence[Sequence[Told]]) -> None:
        """Take the linears of a few windows."""
        parts: dict[tuple[str, int], list[Told]] = {}
        for told in (each for window in windows for each in window):
            shape = self._shapes.get(told.tensor, (0, 0))
            fits = shape[-2:] == (told.gradients.shape[-1], told.inputs.shape[-1])
            if fits and (len(shape) > 2) == (told.expert is not None) and len(told.inputs):
                parts.setdefault((told.tensor, told.expert or 0), []).append(told)
        for key, (first, *_) in parts.items():  # made here, so that threads add to what is there
            if key not in self._outputs:
                width = first.inputs.shape[-1]
                self._outputs[key] = first.gradients.new_zeros(first.gradients.shape[-1])
                self._inputs[key] = first.inputs.new_zeros((width, width))

        def sums(key: tuple[str, int] | None) -> None:
            if key is None:
                for told in (each for window in windows for each in window):
                    self._grams(told.tensor, told.inputs, told.expert)
                return
            for told in parts[key]:
                squares = told.gradients.square()
                self._outputs[key] += squares.sum(dim=0)
                weighted = told.inputs * squares.sum(dim=1).sqrt()[:, None]
                self._inputs[key].addmm_(weighted.T, weighted)

        parallel_for(lambda stop: sums, [None, *parts], self._threads)

    def take(self, tensors: Collection[str]) -> tuple[dict[str, Inputs], dict[str, list[Fisher | None]]]:
        """What the matrices of these tensors were given, and what is known of them; the sums are forgotten.

        A matrix of a stack that no token reached has None. Malformed if a sum is not finite.
        """
        inputs = self._grams.take(tensors)
        found: dict[str, list[Fisher | None]] = {}
        for name in inputs:
            shape = self._shapes[name]
            keys = [(name, k) for k in range(shape[0] if len(shape) > 2 else 1)]
            if any(key in self._outputs for key in keys):
                found[name] = [self._fisher(key) for key in keys]
        return inputs, found

    def _fisher(self, key: tuple[str, int]) -> Fisher | None:
        if key not in self._outputs:
            return None
        outputs = self._outputs.pop(key).cpu().double().numpy() / self._tokens
        inputs = (self._inputs.pop(key) / self._tokens).cpu().numpy()
        check_finite(key[0], outputs, inputs.diagonal())
        return Fisher(outputs, inputs)


def check_finite(tensor: str, *values: NDArray[np.floating]) -> None:
    """Malformed if not all are finite."""
    if not all(np.isfinite(each).all() for each in values):
        raise Malformed(
            f"the inputs or gradients of {tensor} are NaN, infinite or too large",
            fix="Find the block in which they begin: ggufsmith imatrix MODEL",
        )
