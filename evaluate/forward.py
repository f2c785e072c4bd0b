"""Runs a model one block at a time: layers outside, windows inside.

The weights of a block come in through the readers that conversion uses, all windows go through it, the weights go, the
next block comes. In memory are the weights of one block, and the hidden states of all windows, which go to a mapped
file if there are many. Variants of the weights run side by side, and a block is read once for all that share it.

On the CPU each window is computed by one thread, so that nothing depends on the number of threads: what torch computes
with several of them does, in the last bit.

What a block is given besides the hidden states (position embeddings, masks, windows, one kind for each kind of layer)
is what transformers itself gives it: the model's own forward runs once with blocks that only record their arguments.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, NoSpace, Unsupported, Usage
from ggufsmith.container.parallel import parallel_for
from ggufsmith.convert.plan import TensorPlan
from ggufsmith.evaluate.arguments import ArgumentStore, Call, argument_store, on_device
from ggufsmith.evaluate.head import head_among
from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.observe import Observer, Watching
from ggufsmith.evaluate.scores import replaced, score
from ggufsmith.evaluate.skeleton import BY_TOKEN, Skeleton, check_variants, parameters_of
from ggufsmith.evaluate.token_scores import TokenScores
from ggufsmith.evaluate.variants import ModelVariant, Weights, load_kernels, pick_rows, read_tensors
from ggufsmith.pipeline.parallel import available_cores

MEMORY = 1 << 30  # bytes of hidden states in memory; more are in a mapped file
ACTIVATIONS = 1 << 22  # numbers in the widest activation of a batch of windows, which caches hold better than more

States = NDArray[np.float32]  # (windows, context, width)
Entering = Callable[[int, int, States], None]


@dataclass(frozen=True)
class Batch:
    """Windows that go through a block at once. arguments: what every block is given besides the hidden states."""

    windows: slice
    arguments: tuple[Call, ...]


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
        shape = (*tokens.shape, skeleton.plan.dims.embd)
        states = [stack.enter_context(room(shape, memory // len(variants))) for _ in variants]
        stores = [stack.enter_context(argument_store(memory // len(variants))) for _ in variants]
        batches = [
            embed(skeleton, variant, tokens, hidden, store, where, threads)
            for variant, hidden, store in zip(variants, states, stores, strict=True)
        ]
        for block, module in enumerate(skeleton.blocks):
            shelf: Mapping[str, Weights] = {}
            for k, (variant, hidden) in enumerate(zip(variants, states, strict=True)):
                if entering is not None:
                    entering(block, k, hidden)
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
                    through(module, block, batches[k], hidden, where, threads, watching, observe or ignored)
                del parameters, weights
                progress(weights_in(outputs))
        for k, (variant, hidden) in enumerate(zip(variants, states, strict=True)):
            if entering is not None:
                entering(len(skeleton.blocks), k, hidden)
            normalize(skeleton, variant, hidden, where, threads, observe if k == 0 else None)
        if scored is None:
            return None
        positions = range(tokens.shape[1] - 1)[scored]
        following = tokens[:, positions.start + 1 : positions.stop + 1].astype(np.int64)
        taken = [hidden[:, positions.start : positions.stop] for hidden in states]
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
            fix=f"Make them shorter: --context {skeleton.positions}",
        )


def work(skeleton: Skeleton, variants: Sequence[ModelVariant], *, scored: bool) -> int:
    """How many weights `run_model` tells `progress` of."""
    blocks = sum(weights_in(skeleton.outputs(block)) for block in range(len(skeleton.blocks)))
    dims = skeleton.plan.dims
    return (blocks + dims.vocab * dims.embd * scored) * len(variants)


def weights_in(outputs: Sequence[TensorPlan]) -> int:
    """How many weights these tensors have."""
    return sum(math.prod(each.shape) for each in outputs)


def embed(
    skeleton: Skeleton,
    variant: ModelVariant,
    tokens: NDArray[np.int32],
    hidden: States,
    store: ArgumentStore,
    device: torch.device,
    threads: int,
) -> list[Batch]:
    """Fill `hidden` with what goes into the first block, and record what every block is given.

    Of embeddings, only the rows of the tokens that occur are read; the model's own forward does the rest.
    """
    occurring, ids = np.unique(tokens, return_inverse=True)
    numbers = torch.from_numpy(ids.reshape(tokens.shape).astype(np.int64))
    picked = {each.source.name: each.outputs[0].name for each in skeleton.before if each.outputs[0].name in BY_TOKEN}
    whole = [each for each in skeleton.before if each.source.name not in picked]
    rows = read_tensors(variant, [output.name for each in whole for output in each.outputs], threads)
    parameters = parameters_of(whole, rows)
    for source, name in picked.items():
        parameters[source] = pick_rows(variant, name, occurring.astype(np.int64), threads)
    size, batches = windows_at_once(skeleton, tokens.shape[1], device), list[Batch]()
    with installed(skeleton.model, parameters, device), replaced(skeleton.norm, lambda states: states):
        for first in range(0, len(tokens), size):
            windows = slice(first, min(first + size, len(tokens)))
            calls = recorded(skeleton, numbers[windows].to(device))
            hidden[windows] = calls[0][0][0].cpu().numpy()
            arguments = store.keep(windows.stop - windows.start, [(args[1:], kwargs) for args, kwargs in calls])
            batches.append(Batch(windows, arguments))
    return batches


def recorded(skeleton: Skeleton, numbers: torch.Tensor) -> list[Call]:
    """The arguments of every block, from the model's own forward, in which blocks only record.

    Unsupported: a model whose blocks hand over more to each other than hidden states.
    """
    marker, why = object(), ""
    for more in ((), (marker,)):  # blocks that give back a pair, of which the model takes the first part
        try:
            with recording(skeleton.blocks, more) as calls:
                skeleton.decoder(input_ids=numbers, use_cache=False)
        except Exception as error:
            why = why or f"{type(error).__name__}: {str(error)[:300]}"
            continue
        if not any(each is marker for args, kwargs in calls for each in (*args, *kwargs.values())):
            return calls
    raise Unsupported(
        f"transformers' {type(skeleton.model).__name__} cannot be run block by block yet: {why}",
        fix="Convert the model, and measure it with llama.cpp's own tools: llama-imatrix, llama-perplexity.",
    )


def blind(observe: Observer) -> AbstractContextManager[Any]:
    """Tells an observer of nothing."""
    return nullcontext()


def ignored(tensor: str, inputs: torch.Tensor, expert: int | None) -> None:
    """An observer that looks at nothing."""


def through(
    module: Any,
    block: int,
    batches: Sequence[Batch],
    hidden: States,
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
    for first in range(0, len(batches), at_once):
        group = batches[first : first + at_once]
        seen: list[list[tuple[str, torch.Tensor, int | None]]] = [[] for _ in group]

        def run(batch: Batch, told: list[Any]) -> None:
            args, kwargs = on_device(batch.arguments[block], device)
            with torch.no_grad(), watching(lambda *inputs: told.append(inputs)):
                # A copy: what is told of inputs may be the hidden states themselves, which are about to be overwritten.
                made = module(torch.tensor(hidden[batch.windows], device=device), *args, **kwargs)
            hidden[batch.windows] = (made[0] if isinstance(made, tuple) else made).cpu().numpy()

        parallel_for(lambda stop: lambda task: run(*task), zip(group, seen, strict=True), len(group))
        with torch_threads(threads):
            for told in seen:
                while told:
                    observe(*told.pop(0))


def normalize(
    skeleton: Skeleton,
    variant: ModelVariant,
    hidden: States,
    device: torch.device,
    threads: int,
    observe: Observer | None = None,
) -> None:
    """The final norm, in place. observe: told of what the head is given."""
    with loaded_norm(skeleton, variant, device, threads) as module:
        for window in hidden:
            made = module(torch.from_numpy(window).to(device))
            if observe is not None:
                observe(head_among(variant.tensors), made, None)
            window[...] = made.cpu().numpy()


@contextmanager
def loaded_norm(skeleton: Skeleton, variant: ModelVariant, device: torch.device, threads: int) -> Iterator[Any]:
    """Within, the module of the final norm, which is yielded, has its weights."""
    rows = read_tensors(variant, [output.name for each in skeleton.last for output in each.outputs], threads)
    parameters = parameters_of(skeleton.last, rows)
    name = skeleton.last[0].source.name.rpartition(".")[0] + "." if skeleton.last else ""
    with loaded(skeleton.norm, name, parameters, device):
        yield skeleton.norm


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
def loaded(
    module: Any, prefix: str, parameters: Mapping[str, Weights], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Within, the module has these weights, all that it needs. prefix: what the names have that its own do not.

    See `installed`.
    """
    own = {name.removeprefix(prefix): value for name, value in parameters.items()}
    if own.keys() != module.state_dict(keep_vars=True).keys():
        raise KeyError(f"{sorted(own.keys() ^ module.state_dict(keep_vars=True).keys())} of {type(module).__name__}")
    with installed(module, own, device) as weights:
        module.to(device)
        yield weights


@contextmanager
def installed(
    module: Any, parameters: Mapping[str, Weights], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Within, the module has these weights, which share memory with the arrays on the CPU; they are yielded by name."""
    empty: dict[str, Any] = module.state_dict(keep_vars=True)
    weights = {name: torch.from_numpy(value).to(device) for name, value in parameters.items()}
    wrapped = {
        name: torch.nn.Parameter(value, requires_grad=False) if isinstance(empty[name], torch.nn.Parameter) else value
        for name, value in weights.items()
    }
    _install(module, wrapped)
    for name in wrapped:
        module.get_submodule(name.rpartition(".")[0]).to(device)  # its buffers
    try:
        yield weights
    finally:
        _install(module, {name: empty[name] for name in wrapped})


def _install(module: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, value)


@contextmanager
def recording(blocks: Sequence[Any], more: tuple[Any, ...] = ()) -> Iterator[list[Call]]:
    """Within, blocks give back the hidden states as they are, in a tuple with `more`; yields the calls.

    Those of the first block: some models take the first part of what a block gives back, which is a tuple there.
    """
    calls: list[Call] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return (calls[0][0][0], *more) if more else calls[0][0][0]

    with replaced(*blocks, record):
        yield calls


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within, torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def room(shape: tuple[int, ...], memory: int) -> Iterator[States]:
    """Memory for hidden states; a mapped temporary file if they have more bytes than `memory`. NoSpace without room."""
    size = 4 * math.prod(shape)
    if size <= memory:
        yield np.empty(shape, np.float32)
        return
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:  # a mapped file that cannot grow ends the process
        raise NoSpace(
            f"the hidden states of the text need {size} bytes, but only {free} are free",
            where=tempfile.gettempdir(),
            fix="Run the model on fewer windows, or set TMPDIR to a folder on another disk.",
        )
    with tempfile.TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as folder:
        yield np.memmap(Path(folder) / "hidden", np.float32, "w+", shape=shape)
