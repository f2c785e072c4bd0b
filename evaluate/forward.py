"""Runs a model one block at a time: layers outside, windows inside.

The weights of a block come in through the readers that conversion uses, all windows go through it, the weights go, the
next block comes. In memory are the weights of one block, and the hidden states of all windows, which go to a mapped
file if there are many. Variants of the weights run side by side, and a block is read once for all that share it.

On the CPU each window is computed by one thread, so that nothing depends on the number of threads: what torch computes
with several of them does, in the last bit.

What a block is given besides the hidden states (position embeddings, masks, windows, one kind for each kind of layer)
is what transformers itself gives it, and what comes before and after the blocks is its own forward (`evaluate.ends`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.parallel import parallel_for
from ggufsmith.convert.plan import TensorPlan
from ggufsmith.evaluate.arguments import ArgumentStore, Call, argument_store, handed_on, on_device
from ggufsmith.evaluate.ends import KINDS, ending, outside, start, tables
from ggufsmith.evaluate.head import head_among
from ggufsmith.evaluate.hidden import HiddenStates, States, room
from ggufsmith.evaluate.loading import loaded
from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.observe import Observer, Watching
from ggufsmith.evaluate.scores import score
from ggufsmith.evaluate.skeleton import Skeleton, check_variants, parameters_of
from ggufsmith.evaluate.token_scores import TokenScores
from ggufsmith.evaluate.variants import ModelVariant, Weights, load_kernels, read_tensors
from ggufsmith.pipeline.parallel import available_cores

MEMORY = 1 << 30  # bytes of hidden states in memory; more are in a mapped file
ACTIVATIONS = 1 << 22  # numbers in the widest activation of a batch of windows, which caches hold better than more

Entering = Callable[[int, int, HiddenStates], None]


@dataclass(frozen=True)
class Batch:
    """Windows that go through a block at once.

    calls: what every block is given besides the hidden states. extras: see `ends.Start`.
    """

    windows: slice
    calls: list[Call]
    extras: int | None


@dataclass(frozen=True)
class Passage:
    """All windows on their way through the blocks of one variant."""

    variant: ModelVariant
    states: HiddenStates
    batches: Sequence[Batch]

    def over(self, numbers: States) -> "Passage":
        """The same windows with other hidden states."""
        return replace(self, states=self.states.like(numbers))

    def forget(self, block: int) -> None:
        """Drop what a block was given besides the hidden states, of which the block before it may have made much."""
        for batch in self.batches:
            batch.calls[block] = ((), {})


def run_model(
    skeleton: Skeleton,
    variants: Sequence[ModelVariant],
    tokens: NDArray[np.int32],
    *,
    device: str | None = None,
    observe: Observer | None = None,
    scored: slice | None = None,
    entering: Entering | None = None,
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Callable[[int], None] = lambda weights: None,
) -> list[TokenScores] | None:
    """Run every window through all variants in one pass over the blocks. Everything is float32.

    variants: the source first; only its linears are observed.
    tokens:   (windows, context).
    device:   see `needed.find_device`.
    scored:   which positions of a window are scored by how they predict the next: all but the last may be. None scores
              nothing, and nothing is returned.
    entering: told, before each block and at the end, (block, variant, hidden states); they are overwritten afterwards.
    memory:   bytes of hidden states that may be in memory.
    progress: told of weights that all windows have gone through; `work` says how many there will be.

    Usage: no such device. Malformed: tokens that the model does not have, weights that are not those of the model
    (`check_variants`), or are not finite. Unsupported: no torch, or weights that a recipe's type cannot hold.
    """
    where = torch.device(find_device(device))
    check_tokens(skeleton, tokens)
    check_variants(skeleton, variants[0], variants)
    threads = threads or available_cores()
    with torch.inference_mode(), torch_threads(1), ExitStack() as stack:
        load_kernels(variants)
        share = memory // len(variants)
        passages = [
            begin(
                skeleton,
                variant,
                tokens,
                lambda count: stack.enter_context(room((count,), share)),
                stack.enter_context(argument_store(share)),
                where,
                threads,
            )
            for variant in variants
        ]
        for block, module in enumerate(skeleton.blocks):
            shelf: Mapping[str, Weights] = {}
            for k, (variant, passage) in enumerate(zip(variants, passages, strict=True)):
                if entering is not None:
                    entering(block, k, passage.states)
                outputs = skeleton.outputs(block)
                names = [each.name for each in outputs]
                rows = read_tensors(variant, names, threads, shelf if variant.tensors is variants[0].tensors else {})
                if k == 0 and any(each.encodings and each.tensors is variant.tensors for each in variants):
                    shelf = rows
                parameters = parameters_of(skeleton.inside(block), rows)
                del rows
                with loaded(module, skeleton.prefix(block), parameters, where) as weights:
                    watched = observe is not None and k == 0
                    taps, latent = skeleton.taps(block), skeleton.latent(block)
                    watching = partial(Watching, parameters=weights, taps=taps, latent=latent) if watched else blind
                    through(module, block, passage, where, threads, watching, observe or ignored)
                    passage.forget(block)
                del parameters, weights
                progress(weights_in(outputs))
        finals = []
        for k, passage in enumerate(passages):
            if entering is not None:
                entering(len(skeleton.blocks), k, passage.states)
            finals.append(passage.states.after((*tokens.shape, skeleton.plan.dims.embd)))
            end(skeleton, passage, tokens, finals[-1], where, threads, observe if observe and k == 0 else ignored)
        if scored is None:
            return None
        positions = range(tokens.shape[1] - 1)[scored]
        following = tokens[:, positions.start + 1 : positions.stop + 1].astype(np.int64)
        taken = [final[:, positions.start : positions.stop] for final in finals]
        with torch_threads(threads):
            return score(skeleton, variants, taken, following, device=where, threads=threads, advance=progress)


def check_tokens(skeleton: Skeleton, tokens: NDArray[np.int32]) -> None:
    """Malformed unless these are windows of tokens that the model has. Usage if they are longer than its positions."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise Malformed("there is not a single window of text", fix="Pass more text, or make the windows shorter.")
    if tokens.min() < 0 or tokens.max() >= skeleton.vocabulary:
        raise Malformed(
            f"the text has tokens from {tokens.min()} to {tokens.max()}, but the model has {skeleton.vocabulary}",
            fix="Use the tokenizer of the model itself.",
        )
    if skeleton.positions is not None and tokens.shape[1] > skeleton.positions:
        raise Usage(
            f"windows of {tokens.shape[1]} tokens are longer than the {skeleton.positions} positions of the model",
            fix=f"Make them shorter, with --context {skeleton.positions} of eval and imatrix.",
        )


def work(skeleton: Skeleton, variants: Sequence[ModelVariant], *, scored: bool) -> int:
    """How many weights `run_model` tells `progress` of."""
    blocks = sum(weights_in(skeleton.outputs(block)) for block in range(len(skeleton.blocks)))
    dims = skeleton.plan.dims
    return (blocks + dims.vocab * dims.embd * scored) * len(variants)


def weights_in(outputs: Sequence[TensorPlan]) -> int:
    """How many weights these tensors have."""
    return sum(math.prod(each.shape) for each in outputs)


def begin(
    skeleton: Skeleton,
    variant: ModelVariant,
    tokens: NDArray[np.int32],
    reserve: Callable[[int], States],
    store: ArgumentStore,
    device: torch.device,
    threads: int,
) -> Passage:
    """All windows up to the first block. reserve: gives room for so many numbers, those of all hidden states."""
    size = windows_at_once(skeleton, tokens.shape[1], device)
    slices = [slice(first, min(first + size, len(tokens))) for first in range(0, len(tokens), size)]
    batches, shapes, room = list[Batch](), list[tuple[int, ...]](), None
    with outside(skeleton, variant, tables(skeleton, variant, tokens, threads), device, threads):
        for windows in slices:
            kinds = (batches[0].extras,) if batches else KINDS
            states, calls, extras = start(skeleton, ids_of(tokens[windows], device), kinds)
            count = windows.stop - windows.start
            room = reserve(states.numel() // count * len(tokens)) if room is None else room
            shapes.append(tuple(states.shape))
            HiddenStates(room, shapes)[len(batches)][...] = states.cpu().numpy()
            batches.append(Batch(windows, list(store.keep(count, calls)), extras))
    assert room is not None
    return Passage(variant, HiddenStates(room, shapes), batches)


def ids_of(tokens: NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """Tokens as models take them."""
    return torch.from_numpy(tokens.astype(np.int64)).to(device)


def blind(observe: Observer) -> AbstractContextManager[Any]:
    """Tells an observer of nothing."""
    return nullcontext()


def ignored(tensor: str, inputs: torch.Tensor, expert: int | None) -> None:
    """An observer that looks at nothing."""


def through(
    module: Any,
    block: int,
    passage: Passage,
    device: torch.device,
    threads: int,
    watching: Callable[[Observer], AbstractContextManager[Any]] = blind,
    observe: Observer = ignored,
) -> None:
    """All windows through one block, in place; on the CPU several batches side by side, each in a thread of its own.

    watching: within it, an observer is told of what goes into the block's linears. observe: is told all of that in the
    order of the windows, when the batches that run side by side are through.
    """
    at_once = threads if device.type == "cpu" else 1
    for first in range(0, len(passage.batches), at_once):
        group = range(first, min(first + at_once, len(passage.batches)))
        seen: list[list[tuple[str, torch.Tensor, int | None]]] = [[] for _ in group]

        def run(number: int, told: list[Any]) -> None:
            batch, states = passage.batches[number], passage.states[number]
            args, kwargs = on_device(batch.calls[block], device)
            with torch.no_grad(), watching(lambda *inputs: told.append(inputs)):
                # A copy: what is told of inputs may be the hidden states themselves, which are about to be overwritten.
                made = module(torch.tensor(states, device=device), *args, **kwargs)
            made, *more = made if isinstance(made, tuple) else (made,)
            states[...] = made.cpu().numpy()
            if more and block + 1 < len(batch.calls):
                batch.calls[block + 1] = handed_on(batch.calls[block + 1], on_device(more, torch.device("cpu")))

        parallel_for(lambda stop: lambda task: run(*task), zip(group, seen, strict=True), len(group))
        with torch_threads(threads):
            for told in seen:
                while told:
                    observe(*told.pop(0))


def end(
    skeleton: Skeleton,
    passage: Passage,
    tokens: NDArray[np.int32],
    final: States,
    device: torch.device,
    threads: int,
    observe: Observer = ignored,
) -> None:
    """What the head is given goes into `final`, (windows, context, width); `HiddenStates.after` has room for it.

    observe: told of it.
    """
    head = head_among(passage.variant.tensors)
    with ending(skeleton, passage.variant, device, threads) as go_on:
        for batch, states in zip(passage.batches, passage.states, strict=True):
            made = go_on(ids_of(tokens[batch.windows], device), batch.extras, torch.tensor(states, device=device))
            for window in made:
                observe(head, window, None)
            final[batch.windows] = made.cpu().numpy()


def windows_at_once(skeleton: Skeleton, context: int, device: torch.device) -> int:
    """How many windows make one batch: one on the CPU, where batches run side by side."""
    if device.type == "cpu":
        return 1
    dims = skeleton.plan.dims
    widest = max(dims.ff, dims.qkv, dims.embd)
    if skeleton.implementation == "eager":  # the scores of all heads are whole
        widest = max(widest, dims.heads * context)
    return max(ACTIVATIONS // (widest * context), 1)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within, torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
