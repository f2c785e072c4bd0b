"""Sums what an importance matrix holds, while a model runs: an observer of the inputs of its linear layers.

llama.cpp (tools/imatrix/imatrix.cpp, collect_imatrix) takes every matrix in a block, the routers of experts included,
and the output matrix on request; so does this.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.finite import NotFinite
from ggufsmith.quantize.imatrix.record import Entry, Imatrix

if TYPE_CHECKING:
    import torch

OUTPUT = "output.weight"


class Collector:
    """Sums the squares of inputs, column by column. An `evaluate.forward.Observer`.

    shapes:         of the model's GGUF tensors, by name, slowest axis first: a stack of experts has three axes.
    process_output: sum for `output.weight` too.

    The squares of one call are summed in float32 as a tree, whose order depends on nothing but their number: not on
    threads, and not on the width of vectors. The calls are summed in float64, in their order.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, process_output: bool = False) -> None:
        self.shapes = shapes
        self.process_output = process_output
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._last: tuple[torch.Tensor, NDArray[np.float64]] | None = None

    def __call__(self, tensor: str, inputs: "torch.Tensor", expert: int | None) -> None:
        """Take the inputs of a linear layer: float32, (tokens, n_in). expert: which one, of a stack."""
        wanted = tensor.startswith("blk.") or (self.process_output and tensor == OUTPUT)
        if not wanted or not len(inputs) or not self._fits(tensor, inputs.shape[-1], expert):
            return
        many = self.shapes[tensor][0] if expert is not None else 1
        if tensor not in self._sums:
            self._sums[tensor] = np.zeros((many, inputs.shape[-1]), np.float64)
            self._counts[tensor] = np.zeros(many, np.int64)
        index = expert or 0
        self._sums[tensor][index] += self._squares(inputs)
        self._counts[tensor][index] += len(inputs)

    def _fits(self, tensor: str, width: int, expert: int | None) -> bool:
        """Whether these are the inputs of that tensor. They are not where a model is written in another way than in
        llama.cpp, as multi-head latent attention is, whose matrices for keys and values are one in transformers.
        `evaluate.observe.Latent` says what theirs are.
        """
        *stack, _, columns = self.shapes.get(tensor, (0, 0))
        return columns == width and len(stack) == (expert is not None)

    def _entry(self, name: str) -> Entry:
        """A stack that is not one of experts has one count, as all of its matrices have the same tokens."""
        counts = self._counts[name] if "_exps." in name else self._counts[name][:1]
        return Entry(self._sums[name].astype(np.float32).reshape(len(counts), -1), counts)

    def _squares(self, inputs: "torch.Tensor") -> NDArray[np.float64]:
        """Queries, keys and values have the same inputs, which are squared once."""
        if self._last is None or not same_memory(self._last[0], inputs):
            self._last = inputs, squares(inputs)  # as long as it is kept, nothing else is in its memory
        return self._last[1]

    def check(self) -> None:
        """NotFinite if the model has computed numbers that are not finite, or whose squares are not, in float32."""
        with np.errstate(over="ignore"):
            wrong = [name for name, sums in self._sums.items() if not np.isfinite(sums.astype(np.float32)).all()]
        if wrong:
            raise NotFinite(wrong)

    def imatrix(self, datasets: Sequence[str], chunks: int, chunk_size: int) -> Imatrix:
        """What was summed. NotFinite: see `check`."""
        self._last = None
        self.check()
        entries = {name: self._entry(name) for name in sorted(self._sums)}
        return Imatrix(entries, tuple(datasets), chunks, chunk_size)


def same_memory(one: "torch.Tensor", other: "torch.Tensor") -> bool:
    """Whether two tensors are the same memory, seen in the same way."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def squares(inputs: "torch.Tensor") -> NDArray[np.float64]:
    """The sums of the squares of each column, (n_in,); inputs: float32, (tokens, n_in).

    Halves are added until one row is left. Sums of whole rows are the same on any device and for any number of threads.
    """
    rows = inputs.detach().square()
    while len(rows) > 1:
        half = len(rows) // 2
        odd = rows[2 * half :]
        rows = rows[:half] + rows[half : 2 * half]
        if len(odd):
            rows[0] += odd[0]
    found: NDArray[np.float64] = rows[0].double().cpu().numpy()
    return found
