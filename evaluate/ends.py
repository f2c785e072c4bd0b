"""What a model does before its first block and after its last: its own forward, with blocks that do nothing.

Before the first block, blocks record what they are given: position embeddings, masks, windows, one kind for each kind
of layer. After the last one, all of them give back what it made, and the model's forward goes on from there: the last
norm, and before it the merging of streams where a model has several. Nothing of this is written down a second time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported
from ggufsmith.evaluate.arguments import Call, Handed, mapped
from ggufsmith.evaluate.loading import installed, move_buffers, replaced
from ggufsmith.evaluate.skeleton import BY_TOKEN, LLAMA_TOOLS, Skeleton, parameters_of
from ggufsmith.evaluate.variants import ModelVariant, Weights, pick_rows, read_tensors

KINDS = (1, 2, None)  # how many values blocks give besides the hidden states; None if they give no tuple


class Start(NamedTuple):
    """A batch of windows before the first block.

    states: the hidden states. calls: what else every block is given. extras: how many values blocks give besides the
    hidden states; None where they give nothing but those, and no tuple.
    """

    states: torch.Tensor
    calls: list[Call]
    extras: int | None


class Table(NamedTuple):
    """Some rows of an embedding, and which of them each token has: int64 to int64, of any shape."""

    rows: Weights
    places: Callable[[torch.Tensor], torch.Tensor]


def tables(skeleton: Skeleton, variant: ModelVariant, tokens: NDArray[np.int32], threads: int) -> dict[str, Table]:
    """Of each embedding, the rows of the tokens that occur, under the name of its parameter."""
    # Gemma 3n takes the first row for tokens that its embeddings for every layer do not have.
    occurring = np.union1d(tokens, 0).astype(np.int64)
    known = torch.from_numpy(occurring)

    def places(ids: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(known.to(ids.device), ids)

    found = {}
    for source, name in embeddings(skeleton).items():
        there = occurring[occurring < variant.tensors[name].shape[0]]
        found[source] = Table(pick_rows(variant, name, there, threads), places)
    return found


def embeddings(skeleton: Skeleton) -> dict[str, str]:
    """The parameters with a row for each token, and the GGUF tensors that they are."""
    names = {each.source.name: each.outputs[0].name for each in skeleton.outside}
    return {source: name for source, name in names.items() if name in BY_TOKEN}


@contextmanager
def outside(
    skeleton: Skeleton,
    variant: ModelVariant,
    embedded: Mapping[str, Table],
    device: torch.device,
    threads: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Within, the model has all weights but those of its blocks and of its head; they are yielded by name.

    embedded: of each of its `embeddings`, the rows that will be asked for.
    """
    whole = [each for each in skeleton.outside if each.source.name not in embedded]
    rows = read_tensors(variant, [output.name for each in whole for output in each.outputs], threads)
    parameters = parameters_of(whole, rows) | {name: table.rows for name, table in embedded.items()}
    inside = {module for block in skeleton.blocks for module in block.modules()}
    for module in skeleton.model.modules():
        if module not in inside:
            move_buffers(module, device)
    with installed(skeleton.model, parameters, device) as weights, ExitStack() as hooks:
        for name, table in embedded.items():
            module = skeleton.model.get_submodule(name.rpartition(".")[0])
            hook = module.register_forward_pre_hook(
                lambda module, args, table=table: (table.places(args[0]), *args[1:])
            )
            hooks.callback(hook.remove)
        yield weights


def start(skeleton: Skeleton, tokens: torch.Tensor, kinds: Sequence[int | None] = KINDS) -> Start:
    """Windows of tokens, (windows, context), up to the first block. The weights `outside` have to be there.

    kinds: which numbers of extras are tried. Unsupported for a model that does something between its blocks, or has
    blocks that are not called one by one.
    """
    why = ""
    for extras in kinds:
        try:
            return _recorded(skeleton, tokens, extras)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:300]}"
    raise Unsupported(
        f"transformers' {type(skeleton.model).__name__} cannot be run block by block yet: {why}", fix=LLAMA_TOOLS
    )


def _recorded(skeleton: Skeleton, tokens: torch.Tensor, extras: int | None) -> Start:
    calls: list[Call] = []
    given: list[tuple[object, ...]] = []  # by each block, besides the hidden states: what the next may be handed

    def record(*args: Any, **kwargs: Any) -> Any:
        states = calls[0][0][0] if calls else args[0]
        if args[0] is not states and not torch.equal(args[0], states):
            raise ValueError("something is done to the hidden states between blocks")
        calls.append((args, kwargs))
        given.append(tuple(object() for _ in range(extras or 0)))
        return states if extras is None else (states, *given[-1])

    with replaced(*skeleton.blocks, record):
        found = skeleton.decoder(input_ids=tokens, use_cache=False)[0]
    if not isinstance(found, torch.Tensor):
        raise ValueError("what blocks give is taken for the hidden states")
    if len(calls) != len(skeleton.blocks):
        raise ValueError(f"{len(calls)} calls of {len(skeleton.blocks)} blocks")
    known = [(), *given]
    handed = [
        mapped((args[1:], kwargs), partial(_handed, before))
        for (args, kwargs), before in zip(calls, known, strict=False)
    ]
    return Start(calls[0][0][0], handed, extras)


def _handed(before: tuple[object, ...], value: Any) -> Any:
    """`Handed` in place of what the block before has given; ValueError for what an earlier one has."""
    return Handed(before.index(value)) if type(value) is object else value


@contextmanager
def ending(
    skeleton: Skeleton, variant: ModelVariant, device: torch.device, threads: int
) -> Iterator[Callable[[torch.Tensor, int | None, torch.Tensor], torch.Tensor]]:
    """Within, a function that goes on from what the last block makes to what the head is given.

    It takes the tokens of some windows, what `start` said of extras, and the hidden states behind the last block;
    it gives (windows, context, width). Unsupported if the model looks at its embeddings once more.
    """
    nothing = {
        source: Table(np.full((1, variant.tensors[name].shape[1]), np.nan, np.float32), torch.zeros_like)
        for source, name in embeddings(skeleton).items()
    }

    def go_on(tokens: torch.Tensor, extras: int | None, states: torch.Tensor) -> torch.Tensor:
        def give(*args: Any, **kwargs: Any) -> Any:
            return states if extras is None else (states, *(object() for _ in range(extras)))

        with replaced(*skeleton.blocks, give):
            found: torch.Tensor = skeleton.decoder(input_ids=tokens, use_cache=False)[0]
        if found.isnan().any() and not states.isnan().any():
            name = type(skeleton.model).__name__
            raise Unsupported(
                f"transformers' {name} takes its embeddings to its head, which is not run yet", fix=LLAMA_TOOLS
            )
        return found

    with outside(skeleton, variant, nothing, device, threads):
        yield go_on
