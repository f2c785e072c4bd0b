"""Runs a model backward, one block at a time: what a change of each linear's outputs would do to the predictions.

The forward pass keeps what goes into every block. Then, from the last block to the first, a block is loaded again,
recomputed and differentiated, and its linears' inputs and the gradients of their outputs are told. The loss is the sum
of -log p(label) over all positions, the labels drawn from the model's own predictions: the mean square of such a
gradient is the Fisher information, with which small changes of the weights change the Kullback-Leibler divergence
(Martens, "New insights and perspectives on the natural gradient method", arXiv:1412.1193, sections 5 and 9).

In memory are the weights of one block, and what it computes for a few windows; hidden states go to a mapped file if
there are many. Everything is float32, and on the CPU each window is computed by one thread (see `evaluate.forward`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.parallel import parallel_for
from ggufsmith.convert.plan import TensorPlan
from ggufsmith.evaluate import forward
from ggufsmith.evaluate.arguments import argument_store, on_device
from ggufsmith.evaluate.ends import Table, embeddings, ending, outside, start, tables
from ggufsmith.evaluate.forward import MEMORY, Passage, ids_of, torch_threads, weights_in
from ggufsmith.evaluate.head import EMBEDDING
from ggufsmith.evaluate.hidden import HiddenStates, States, room
from ggufsmith.evaluate.loading import installed, loaded
from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.observe import Product, Products, Tap
from ggufsmith.evaluate.scores import HeadPiece, making_logits, read_head
from ggufsmith.evaluate.skeleton import Skeleton, parameters_of
from ggufsmith.evaluate.variants import ModelVariant, Weights, load_kernels, read_tensors
from ggufsmith.pipeline.parallel import available_cores

PIECE = 4096  # rows of the vocabulary at once
AT_ONCE = 8  # windows, of which all that a block computes is in memory
SEED = 1412  # of the labels
Places = NDArray[np.int64] | None


class Told(NamedTuple):
    """A linear in one batch of windows.

    tensor: the GGUF tensor that its weights are, or are a part of. expert: which one of a stack, or None.
    inputs: float32 (tokens, n_in). gradients: of its outputs, (tokens, n_out), in the order of the tensor's rows.
    """

    tensor: str
    inputs: torch.Tensor
    gradients: torch.Tensor
    expert: int | None


class Finished(NamedTuple):
    """A block that all windows are through. rows: its weights by GGUF name, (rows, width) float32."""

    outputs: Sequence[TensorPlan]
    rows: Mapping[str, Weights]


@dataclass(frozen=True, eq=False)
class HeadFisher:
    """What is known of the matrix that makes the logits. The label's expectation is taken exactly.

    inputs:  float32 (tokens, width). weights: float64 (tokens,), mean |g|^2 of the outputs of each.
    outputs: float64 (vocabulary,), mean g^2 of each. labels: int64 (tokens,), what was drawn for the gradients of the
    blocks.
    """

    inputs: NDArray[np.float32]
    weights: NDArray[np.float64]
    outputs: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EmbeddingFisher:
    """What is known of the embedding. outputs: float64 (width,), mean g^2 of what a row adds to each channel.

    counts: int64 (vocabulary,), how often each row was taken.
    """

    outputs: NDArray[np.float64]
    counts: NDArray[np.int64]


def run_backward(
    skeleton: Skeleton,
    variant: ModelVariant,
    tokens: NDArray[np.int32],
    *,
    observe: Callable[[Sequence[Sequence[Told]]], None],
    finished: Callable[[Finished], None],
    device: str | None = None,
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Callable[[int], None] = lambda weights: None,
) -> tuple[HeadFisher, EmbeddingFisher]:
    """Run every window forward, and then backward.

    tokens:   (windows, context), checked as `run_model` checks them.
    observe:  told of the linears of a block, for a few windows at a time: a list for each window, in their order.
    finished: told of each block when all of it was observed, the last block first.
    progress: told of weights that all windows went through; `backward_work` says how many there will be.

    Raises what `run_model` raises.
    """
    where, threads = torch.device(find_device(device)), threads or available_cores()
    forward.check_tokens(skeleton, tokens)
    if skeleton.whole:  # whose forward keeps no gradients of the first rounds
        raise Unsupported(
            f"transformers' {type(skeleton.model).__name__} uses blocks several times, and is not run backward",
            fix="Choose types by --recipe, or by --tensor-type.",
        )
    with torch.no_grad(), torch_threads(1), ExitStack() as stack:
        load_kernels([variant])
        blocks, kept = skeleton.blocks, list[States]()  # what goes into every block, and what the last one gives

        def reserve(count: int) -> States:
            kept.extend(stack.enter_context(room((len(blocks) + 1, count), memory)))
            return kept[0]

        store = stack.enter_context(argument_store(memory))
        passage = forward.begin(skeleton, variant, tokens, reserve, store, where, threads)
        for block, module in enumerate(blocks):
            kept[block + 1][:] = kept[block]
            passage = passage.over(kept[block + 1])
            outputs = skeleton.outputs(block)
            rows = read_tensors(variant, [each.name for each in outputs], threads)
            parameters = parameters_of(skeleton.inside(block), rows)
            del rows
            with loaded(module, skeleton.prefix(block), parameters, where):
                forward.through(module, block, passage, where, threads)
            del parameters
            progress(weights_in(outputs))
        slope = HiddenStates(stack.enter_context(room(kept[0].shape, memory)), passage.states.shapes)
        head = _from_predictions(skeleton, passage, tokens, slope, where, threads, progress)
        for block in reversed(range(len(blocks))):
            outputs = skeleton.outputs(block)
            rows = read_tensors(variant, [each.name for each in outputs], threads)
            parameters = parameters_of(skeleton.inside(block), rows)
            with loaded(blocks[block], skeleton.prefix(block), parameters, where) as weights:
                places = {
                    each.name: output_rows(each) for each in outputs if len(each.shape) > 1 and not each.op.integers
                }
                follow = partial(Following, weights, skeleton.taps(block), places)
                passage = passage.over(kept[block])
                _back_through(blocks[block], block, passage, slope, where, threads, follow, observe)
            del parameters, weights
            finished(Finished(outputs, rows))
            del rows
            progress(2 * weights_in(outputs))
        return head, _of_embedding(skeleton, passage, tokens, slope, where, threads)


def backward_work(skeleton: Skeleton) -> int:
    """How many weights `run_backward` tells `progress` of."""
    dims = skeleton.plan.dims
    return 3 * sum(weights_in(skeleton.outputs(k)) for k in range(len(skeleton.blocks))) + 2 * dims.vocab * dims.embd


class Following(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """While it is entered, every product with one of these parameters is noted, and its gradient once it is known.

    See `observe.Watching`, which looks at inputs only. places: of each GGUF tensor, see `output_rows`.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        taps: Mapping[str, tuple[Tap, ...]],
        places: Mapping[str, Places],
    ) -> None:
        super().__init__()
        self._places = places
        self._taps = taps
        self._products = Products(parameters)
        self._calls: list[Product] = []
        self._gradients: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what goes into `linear`, and let everything through as it is."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        product = self._products.find(func, args, kwargs)
        if product is not None and made.requires_grad:
            made.register_hook(partial(self._note, len(self._calls)))
            self._calls.append(product._replace(inputs=product.inputs.detach()))
        return made

    def _note(self, number: int, gradient: torch.Tensor) -> None:
        self._gradients[number] = gradient.transpose(-1, -2) if self._calls[number].turned else gradient

    def told(self) -> list[Told]:
        """What was noted, in the order of the calls."""
        return [
            Told(
                tensor,
                inputs if columns is None else inputs[:, columns],
                _own(gradients, self._places[tensor], expert),
                expert,
            )
            for number, product in enumerate(self._calls)
            if number in self._gradients
            for inputs, gradients, expert in _matrices(product, self._gradients[number])
            for tensor, columns in self._taps[product.name]
        ]


def _matrices(product: Product, gradients: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, int | None]]:
    """(inputs, gradients, expert) of every matrix that stands in a product; of experts, the tokens that chose them."""
    if not product.stacked:
        yield _flat(product.inputs), _flat(gradients), product.expert
        return
    if product.grouped:
        for inputs, own in zip(product.inputs, torch.block_diag(*gradients).split(gradients.shape[1]), strict=True):
            yield inputs, own, None  # nothing for the rows of the other groups
        return
    for number, (inputs, own) in enumerate(zip(product.inputs, gradients, strict=True)):
        chosen = inputs.any(dim=-1)
        yield inputs[chosen], own[chosen], number


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1])


def _own(gradients: torch.Tensor, places: Places, expert: int | None) -> torch.Tensor:
    """Of a linear's outputs, those that are rows of a tensor, in their order."""
    if places is None:
        return gradients
    own = (places if expert is None else places[expert]) % gradients.shape[1]
    if np.array_equal(own, np.arange(gradients.shape[1])):
        return gradients
    return gradients[:, torch.from_numpy(own).to(gradients.device)]


def _back_through(
    module: Any,
    block: int,
    passage: Passage,
    slope: HiddenStates,
    device: torch.device,
    threads: int,
    follow: Callable[[], Following],
    observe: Callable[[Sequence[Sequence[Told]]], None],
) -> None:
    """All windows back through one block: `slope`, the gradients of what it gives, become those of what it is given."""
    at_once = min(threads, AT_ONCE) if device.type == "cpu" else 1
    for first in range(0, len(passage.batches), at_once):
        group = range(first, min(first + at_once, len(passage.batches)))
        told: list[Sequence[Told]] = [() for _ in group]

        def run(number: int, first: int = first, told: list[Sequence[Told]] = told) -> None:
            args, kwargs = on_device(passage.batches[number].calls[block], device)
            given = torch.from_numpy(passage.states[number]).to(device).requires_grad_()
            with torch.enable_grad(), follow() as following:
                made = module(given.clone(), *args, **kwargs)
            made = made[0] if isinstance(made, tuple) else made
            after = torch.tensor(slope[number], device=device)  # a copy: what is told may share its memory
            (found,) = torch.autograd.grad(made, given, after)
            slope[number][...] = found.cpu().numpy()
            told[number - first] = following.told()

        parallel_for(lambda stop, run=run: run, group, len(group))  # type: ignore[misc]
        observe(told)


# -- both ends ---------------------------------------------------------------------------------------------------------


def _from_predictions(
    skeleton: Skeleton,
    passage: Passage,
    tokens: NDArray[np.int32],
    slope: HiddenStates,
    device: torch.device,
    threads: int,
    progress: Callable[[int], None],
) -> HeadFisher:
    """Fill `slope` with the gradients of what the last block gives; `states` are its outputs.

    The vocabulary is gone through twice, in pieces: for the normalizers and the labels, which are the largest of
    logit + Gumbel noise; then for the gradients.
    """
    (windows, context), width = tokens.shape, skeleton.plan.dims.embd
    final, toward = (np.zeros((windows, context, width), np.float32) for _ in range(2))
    forward.end(skeleton, passage, tokens, final, device, threads)
    vocabulary = skeleton.vocabulary
    normalizers = torch.full((windows, context), -torch.inf, dtype=_wide(device), device=device)
    best = torch.full((windows, context), -torch.inf, device=device)
    labels = torch.zeros((windows, context), dtype=torch.int64, device=device)
    weights, by_window = np.zeros((windows, context)), np.zeros((windows, vocabulary))

    def in_pieces(work: Callable[[HeadPiece, int, int], None]) -> None:
        for first in range(0, vocabulary, PIECE):
            last = min(first + PIECE, vocabulary)
            head = read_head(passage.variant, first, last, threads, device)
            at_once = threads if device.type == "cpu" else 1
            parallel_for(
                lambda stop, head=head, first=first: partial(work, head, first),  # type: ignore[misc]
                range(windows),
                at_once,
            )
            progress((last - first) * width)

    def draw(head: HeadPiece, first: int, window: int) -> None:
        with torch.no_grad():
            found, _ = logits(torch.from_numpy(final[window]).to(device), head)
        normalizers[window] = torch.logaddexp(normalizers[window], found.to(normalizers.dtype).logsumexp(dim=1))
        generator = torch.Generator().manual_seed(SEED + first * windows + window)
        noise = torch.empty(found.shape).exponential_(generator=generator).log_().to(device)
        values, places = (found - noise).max(dim=1)
        better = values > best[window]
        best[window] = torch.where(better, values, best[window])
        labels[window] = torch.where(better, places + first, labels[window])

    def differentiate(head: HeadPiece, first: int, window: int) -> None:
        given = torch.from_numpy(final[window]).to(device).requires_grad_()
        with torch.enable_grad():
            found, product = logits(given, head)
        chance = (found.detach() - normalizers[window][:, None].to(found.dtype)).exp()
        wanted = labels[window] - first
        inside = ((wanted >= 0) & (wanted < chance.shape[1])).to(chance.dtype)
        pull = chance.clone()
        pull.scatter_add_(1, wanted.clamp(0, chance.shape[1] - 1)[:, None], -inside[:, None])
        (back,) = torch.autograd.grad(found, given, pull, retain_graph=True)
        toward[window] += back.cpu().numpy()
        (own,) = torch.autograd.grad(found, product, (chance * (1 - chance)).clamp_(min=0).sqrt_())
        squares = own[0].square().to(normalizers.dtype)
        weights[window] += squares.sum(dim=1).cpu().numpy()
        by_window[window, first : first + squares.shape[1]] = squares.sum(dim=0).cpu().numpy()

    with making_logits(skeleton) as logits:
        in_pieces(draw)
        in_pieces(differentiate)
    _before_end(skeleton, passage, tokens, toward, slope, device, threads)
    outputs = by_window.sum(axis=0) / (windows * context)
    return HeadFisher(final.reshape(-1, width), weights.reshape(-1), outputs, labels.cpu().numpy().reshape(-1))


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which that device does not have


def _before_end(
    skeleton: Skeleton,
    passage: Passage,
    tokens: NDArray[np.int32],
    toward: States,
    slope: HiddenStates,
    device: torch.device,
    threads: int,
) -> None:
    """The gradients of what the head is given, `toward`, become in `slope` those of what the last block gives."""
    with ending(skeleton, passage.variant, device, threads) as go_on:
        for number, batch in enumerate(passage.batches):
            given = torch.tensor(passage.states[number], device=device).requires_grad_()
            with torch.enable_grad():
                made = go_on(ids_of(tokens[batch.windows], device), batch.extras, given)
            (found,) = torch.autograd.grad(made, given, torch.from_numpy(toward[batch.windows]).to(device))
            slope[number][...] = found.cpu().numpy()


def _of_embedding(
    skeleton: Skeleton,
    passage: Passage,
    tokens: NDArray[np.int32],
    slope: HiddenStates,
    device: torch.device,
    threads: int,
) -> EmbeddingFisher:
    """From the gradients of what goes into the first block. Every token is given a row of its own."""
    variant = passage.variant
    known = tables(skeleton, variant, tokens, threads)
    name = next(source for source, tensor in embeddings(skeleton).items() if tensor == EMBEDDING)
    rows, places = known[name]
    # From the second row on: the first is that of padding, to which torch gives no gradient.
    own = Table(rows, lambda ids: torch.arange(1, 1 + ids.numel(), device=ids.device).reshape(ids.shape))
    squares = np.zeros(rows.shape[1])
    with outside(skeleton, variant, {**known, name: own}, device, threads):
        for number, batch in enumerate(passage.batches):
            ids = ids_of(tokens[batch.windows], device)
            taken = {name: rows[np.concatenate([[0], places(ids).reshape(-1).cpu().numpy()])]}
            with installed(skeleton.model, taken, device), torch.enable_grad():
                weight = skeleton.model.get_parameter(name).requires_grad_()
                states = start(skeleton, ids, (batch.extras,)).states
                (found,) = torch.autograd.grad(states, weight, torch.from_numpy(slope[number]).to(device))
            squares += found[1:].double().square().sum(dim=0).cpu().numpy()
    counts = np.zeros(variant.tensors[EMBEDDING].shape[0], np.int64)
    np.add.at(counts, tokens.reshape(-1), 1)
    return EmbeddingFisher(squares / tokens.size, counts)


def output_rows(output: TensorPlan) -> Places:
    """For every row of a GGUF tensor, which output of its linear it makes: (rows,), or (matrices, rows) for a stack.

    A parameter that is a stack counts the rows of the first matrix, then those of the second, unless it has its outputs
    in columns, as gpt-oss and Llama 4 have. None if rows of the tensor are neither rows nor columns of a parameter.
    """
    across = not output.op.whole_rows

    def read(source: int, first: int, last: int) -> NDArray[np.float32]:
        """The numbers of rows, in two digits that float32 holds; the number of each column, in rows of two inputs."""
        if across:
            return np.tile(np.arange(shapes[source][-1], dtype=np.float32), (last - first, 1))
        numbers = np.arange(first, last)
        return np.stack([numbers >> 16, numbers & 0xFFFF], axis=1).astype(np.float32)

    if across:
        if output.op.computes or any(len(each.shape) < 3 for each in output.sources):
            return None
        shapes = tuple((*each.shape[:-2], 2, each.shape[-1]) for each in output.sources)
    else:
        shapes = tuple((*each.shape[:-1], 2) for each in output.sources)
    found = output.op.rows(read, shapes, 0, math.prod(output.shape[:-1])).astype(np.int64)
    if across:
        same = found.shape[1] == 2 and np.array_equal(found[:, 0], found[:, 1])
        return found[:, 0].reshape(output.shape[:-1]) if same else None
    return ((found[:, 0] << 16) + found[:, 1]).reshape(output.shape[:-1])
