"""What every linear of a model is given: its inputs, under the name of the GGUF tensor that holds its weights."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


class Observer(Protocol):
    """Looks at the inputs of linears while the model runs."""

    def __call__(self, tensor: str, inputs: torch.Tensor, expert: int | None) -> None:
        """inputs: (tokens, n_in) float32, of the linear whose weights are the GGUF tensor `tensor`
        ("blk.0.attn_q.weight", "output.weight"), for the tokens of one batch of windows; not to be changed.

        expert: None, or which of the stacked experts; there is one call for each expert that got tokens. A linear whose
        weights are several GGUF tensors (query, key and value in one, gate and up in one) is told under each name.
        """


class Watching(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """While it is entered, every product with one of these parameters is told to the observer.

    Linears are recognised by the memory of their weights, and not by modules: so experts that transformers keep in one
    parameter, and routers, which are no `Linear`, are seen as everything else is.

    parameters: by name, on their device. names: the GGUF tensors that are made of each (see `Skeleton.names`).
    """

    def __init__(
        self, observe: Observer, parameters: Mapping[str, torch.Tensor], names: Mapping[str, tuple[str, ...]]
    ) -> None:
        super().__init__()
        self._observe = observe
        self._known = {
            value.untyped_storage().data_ptr(): (names[name], stacked(value, name))
            for name, value in parameters.items()
            if value.ndim > 1
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what goes into `linear`, and let everything through as it is."""
        if func is linear:
            inputs, weight = args[0], args[1] if len(args) > 1 else (kwargs or {})["weight"]
            names, expert = self._known.get(weight.untyped_storage().data_ptr(), ((), None))
            if expert is not None and expert < 0:  # a stack: the place within it says which
                expert = weight.storage_offset() // weight.numel()
            for name in names:
                self._observe(name, inputs.reshape(-1, inputs.shape[-1]), expert)
        return func(*args, **(kwargs or {}))


def stacked(value: torch.Tensor, name: str) -> int | None:
    """The number of the expert whose weights a parameter holds; -1 if it holds those of all, None if of none."""
    if value.ndim == 3:
        return -1
    pieces = name.split(".")
    number = pieces[pieces.index("experts") + 1] if "experts" in pieces[:-1] else ""
    return int(number) if number.isdecimal() else None
