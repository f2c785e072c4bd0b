"""What every linear of a model is given: its inputs, under the name of the GGUF tensor that holds its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# The products in which weights stand, and which of their arguments are the inputs and the weights.
PRODUCTS = {
    linear: (0, 1),
    torch.matmul: (0, 1),
    torch.Tensor.matmul: (0, 1),
    torch.Tensor.__matmul__: (0, 1),
    torch.bmm: (0, 1),
    torch.addmm: (1, 2),
}
# Those in which the weights may also stand first, before inputs that are turned: Mamba's time steps.
TURNED = frozenset((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__))


class Observer(Protocol):
    """Looks at the inputs of linears while the model runs."""

    def __call__(self, tensor: str, inputs: torch.Tensor, expert: int | None) -> None:
        """inputs: (tokens, n_in) float32, of the linear whose weights are the GGUF tensor `tensor`
        ("blk.0.attn_q.weight", "output.weight"), for the tokens of one batch of windows; not to be changed.

        expert: None, or which of the stacked matrices; there is one call for each expert that got tokens. A linear
        whose weights are several GGUF tensors (query, key and value in one, gate and up in one) is told under each
        name, with its inputs in the order in which that tensor has its columns.
        """


class Tap(NamedTuple):
    """A GGUF tensor that is made of a parameter. columns: of the parameter, for each of its own; None for the same."""

    tensor: str
    columns: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Latent:
    """Where a block with latent attention has what llama.cpp multiplies instead of its matrix for keys and values.

    llama.cpp takes queries through the part that makes keys, so that all heads attend to the latent itself, and takes
    what they find there through the part that makes values: src/models/deepseek2.cpp.

    queries:      the parameter whose product has the queries of all heads, those of a head beside each other; its
                  first `size` numbers are multiplied with what makes keys.
    latent:       the parameter that makes keys and values of the latent.
    keys, values: the GGUF tensors, stacks of a matrix for each of `heads`.
    """

    queries: str
    latent: str
    keys: str
    values: str
    heads: int
    size: int


class Product(NamedTuple):
    """A product with a parameter. weight: the parameter, or the part of it that stands in the product.

    expert: which matrix of a stack that is; None for a single matrix, and for a whole stack, whose number is the first
    axis of inputs and outputs. turned: the weights stood first; `inputs` are as usual, (..., n_in), but what was made
    is (..., n_out, tokens). grouped: the weight is one matrix, whose rows are cut into groups with inputs of their own
    (DeepSeek-V4's first matrix behind attention); the first axis of inputs and outputs counts the groups.
    """

    name: str
    inputs: torch.Tensor
    weight: torch.Tensor
    expert: int | None
    turned: bool = False
    grouped: bool = False

    @property
    def stacked(self) -> bool:
        """Whether every expert is given all tokens, and zeros for those that did not choose it."""
        return bool(self.weight.ndim == 3)


class Products:
    """Recognises products by the memory of their weights, and not by modules: so experts that transformers keep in one
    parameter, and routers, which are no `Linear`, are seen as everything else is. parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._known = {
            value.untyped_storage().data_ptr(): (name, value.ndim == 3, value.numel())
            for name, value in parameters.items()
            if value.ndim > 1
        }

    def find(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Product | None:
        """The product that this call makes, if it makes one."""
        if func not in PRODUCTS:
            return None
        first, second = PRODUCTS[func]
        inputs = args[first]
        weight = args[second] if len(args) > second else kwargs.get("weight", kwargs.get("mat2"))
        known, turned = self._parameter(weight), False
        if known is None and func in TURNED and inputs.ndim == 2:
            known, turned = self._parameter(inputs), True
            inputs, weight = weight.transpose(-1, -2), inputs
        if known is None:
            return None
        name, stack, numbers = known
        stack = stack or (numbers > weight.numel() and "experts" in name.split("."))
        if weight.ndim == 3:
            return Product(name, inputs, weight, None, grouped=not stack)
        # Of a stack, or of experts one below the other, the place within it says which.
        expert = int(weight.storage_offset()) // weight.numel() if stack else expert_in(name)
        return Product(name, inputs, weight, expert, turned)

    def _parameter(self, weight: Any) -> tuple[str, bool, int] | None:
        return self._known.get(weight.untyped_storage().data_ptr()) if isinstance(weight, torch.Tensor) else None


class Watching(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """While it is entered, every product with one of these parameters is told to the observer.

    parameters: by name, on their device. taps: the GGUF tensors that are made of each (see `Skeleton.taps`).
    """

    def __init__(
        self,
        observe: Observer,
        parameters: Mapping[str, torch.Tensor],
        taps: Mapping[str, tuple[Tap, ...]],
        latent: Latent | None = None,
    ) -> None:
        super().__init__()
        self._observe = observe
        self._taps = taps
        self._products = Products(parameters)
        self._latent = latent
        self._compressed: torch.Tensor | None = None
        self._values: int | None = None  # where what is made of it lies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what goes into products, and let everything through as it is."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        product = self._products.find(func, args, kwargs)
        if product is not None:
            self._product(product, made)
        elif func is scaled_dot_product_attention and self._compressed is not None:
            query, key, _, *more = args
            attend = partial(scaled_dot_product_attention, query, key)
            self._attention(key.shape[2], lambda latent: attend(latent, *more, **kwargs))
        elif func in TURNED and self._compressed is not None and _memory(args[1]) == self._values:
            self._attention(args[1].shape[2], lambda latent: func(args[0], latent))
        return made

    def _product(self, product: Product, made: torch.Tensor) -> None:
        name, inputs, expert = product.name, product.inputs, product.expert
        taps = self._taps[name]
        if product.grouped:
            for rows in inputs:
                self._tell(taps, rows, None)
        elif product.stacked:
            for number, rows in enumerate(inputs):
                self._tell(taps, rows[rows.any(dim=-1)], number)
        else:
            self._tell(taps, inputs.reshape(-1, inputs.shape[-1]), expert)
        if self._latent and name == self._latent.queries:
            heads = made.reshape(-1, self._latent.heads, made.shape[-1] // self._latent.heads)
            for head in range(self._latent.heads):
                self._observe(self._latent.keys, heads[:, head, : self._latent.size], head)
        elif self._latent and name == self._latent.latent:
            self._compressed, self._values = inputs, _memory(made)

    def _tell(self, taps: tuple[Tap, ...], inputs: torch.Tensor, expert: int | None) -> None:
        for tensor, columns in taps:
            self._observe(tensor, inputs if columns is None else inputs[:, columns], expert)

    def _attention(self, tokens: int, attend: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """What heads find in the latent, with the weights that they give to the values."""
        assert self._latent is not None and self._compressed is not None
        heads, width = self._latent.heads, self._compressed.shape[-1]
        latent = self._compressed.reshape(-1, 1, tokens, width).expand(-1, heads, -1, -1)
        found = attend(latent)
        for head in range(heads):
            self._observe(self._latent.values, found[:, head].reshape(-1, width), head)
        self._compressed = None


def expert_in(name: str) -> int | None:
    """The number of the expert whose parameter has this name; None if it belongs to none."""
    pieces = name.split(".")
    number = pieces[pieces.index("experts") + 1] if "experts" in pieces[:-1] else ""
    return int(number) if number.isdecimal() else None


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())
