"""What transformers gives every block besides the hidden states, kept from one forward until the block's turn comes.

Position embeddings and masks are the same for all windows of a length, and are kept once. What differs from window to
window, as the embeddings that Gemma 4 has for every layer do, is kept for each, in a mapped file if it is much. Objects
that are no tensors stay as they are: into some, blocks write what later blocks read (Gemma 4's shared keys and values).
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ggufsmith.container.errors import Unsupported

Call = tuple[tuple[Any, ...], dict[str, Any]]  # the positional and the named arguments of one block


@dataclass(frozen=True)
class Handed:
    """Stands among the arguments of a block for what the block before it gives besides the hidden states.

    GLM-5 hands on which tokens its indexer chose. place: among what that block gives.
    """

    place: int


class ArgumentStore:
    """Keeps the arguments of batches of windows. file: where tensors go when more than `memory` bytes are kept."""

    def __init__(self, file: Path, memory: int) -> None:
        self._file = file
        self._memory = memory
        self._size = 0
        self._written = 0
        self._first: dict[int, tuple[Call, ...]] = {}

    def keep(self, windows: int, calls: Sequence[Call]) -> tuple[Call, ...]:
        """The arguments of all blocks for one batch of so many windows, in memory or in the file."""
        first = self._first.setdefault(windows, tuple(calls))
        known: dict[int, torch.Tensor] = {}

        def own(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in known:
                known[id(tensor)] = self._kept(tensor)
            return known[id(tensor)]

        return tuple(_matched(call, usual, own) for call, usual in zip(calls, first, strict=True))

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        self._size += tensor.nbytes
        if self._size <= self._memory:
            return tensor.cpu()
        mode = "r+" if self._written else "w+"
        kept = torch.from_numpy(
            np.memmap(self._file, np.uint8, mode, offset=self._written, shape=(tensor.nbytes,))  # type: ignore[call-overload]
        )
        self._written += tensor.nbytes
        return kept.view(tensor.dtype).view(tensor.shape).copy_(tensor)


@contextmanager
def argument_store(memory: int) -> Iterator[ArgumentStore]:
    """A store whose file goes with it. memory: bytes that may be kept in memory."""
    with tempfile.TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as folder:
        yield ArgumentStore(Path(folder) / "arguments", memory)


def on_device(value: Any, device: torch.device) -> Any:
    """The same arguments, with every tensor on this device."""
    return mapped(value, lambda each: each.to(device) if isinstance(each, torch.Tensor) else each)


def handed_on(call: Call, given: Sequence[Any]) -> Call:
    """The arguments of a block, with what the block before it has given in the places where they say so.

    Only choices may be handed on, through which no gradient goes: Unsupported for numbers.
    """

    def fill(value: Any) -> Any:
        if not isinstance(value, Handed):
            return value
        found = given[value.place]
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            raise Unsupported("blocks of this model hand on numbers besides the hidden states, which is not run yet")
        return found

    args, kwargs = call
    return mapped(args, fill), mapped(kwargs, fill)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same arguments, with what `change` makes of each that is no list, tuple or dictionary."""
    if type(value) in (list, tuple):
        return type(value)(mapped(each, change) for each in value)
    if type(value) is dict:
        return {key: mapped(each, change) for key, each in value.items()}
    return change(value)


def _matched(value: Any, usual: Any, own: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same arguments, with the usual tensor in place of every one that equals it."""
    if isinstance(value, torch.Tensor):
        same = value is usual or (
            isinstance(usual, torch.Tensor) and value.shape == usual.shape and torch.equal(value, usual)
        )
        return usual if same else own(value)
    if type(value) in (list, tuple):
        return type(value)(_matched(*pair, own) for pair in zip(value, usual, strict=True))
    if type(value) is dict:
        return {key: _matched(each, usual[key], own) for key, each in value.items()}
    return value
