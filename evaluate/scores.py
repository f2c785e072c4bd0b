"""What the predictions of a model are worth: likelihood, and divergence from the source, token by token.

The logits of a large vocabulary are never whole: head and log-softmax go over pieces of the vocabulary. For each row
the largest logit m so far, the sum S of exp(z - m) and, against the source, T = sum of exp(z - m) (z - z') are kept and
rescaled as m grows, so that lse = m + log S and the divergence is KL(source || variant) = T/S - lse + lse'. The same
online softmax is in Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ggufsmith.evaluate.head import head_among
from ggufsmith.evaluate.loading import replaced
from ggufsmith.evaluate.skeleton import HEAD_BIAS, Skeleton
from ggufsmith.evaluate.token_scores import TokenScores
from ggufsmith.evaluate.variants import ModelVariant, read_rows

ROWS = 512  # of hidden states in one product
PIECE = 8192  # rows of the vocabulary at once, fewer if
MAX_WEIGHTS = 1 << 26  # those of all variants have more weights than this


class Online:
    """The sums over the vocabulary of one variant, for all scored rows."""

    def __init__(self, rows: int, device: torch.device, wide: torch.dtype) -> None:
        self.wide = wide
        self.peak = torch.full((rows,), -torch.inf, device=device)
        self.top = torch.zeros(rows, dtype=torch.int64, device=device)
        self.total, self.cross = (torch.zeros(rows, dtype=wide, device=device) for _ in range(2))
        self.target = torch.zeros(rows, device=device)

    def add(self, rows: slice, first: int, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Take in the logits (rows, piece) of the vocabulary from `first` on. Returns exp(logits - peak)."""
        values, places = logits.max(dim=1)
        better = values > self.peak[rows]
        peak = torch.where(better, values, self.peak[rows])
        shrink = (self.peak[rows] - peak).exp().to(self.wide)
        self.top[rows] = torch.where(better, places + first, self.top[rows])
        self.peak[rows] = peak
        weights = (logits - peak[:, None]).exp_()
        self.total[rows] = self.total[rows] * shrink + weights.sum(dim=1)
        self.cross[rows] *= shrink
        here = (targets >= first) & (targets < first + logits.shape[1])
        found = logits.gather(1, (targets - first).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.target[rows] = torch.where(here, found, self.target[rows])
        return weights

    @property
    def normalizer(self) -> torch.Tensor:
        """log of the sum of exp(logits)."""
        return self.peak.to(self.wide) + self.total.log()


def score(
    skeleton: Skeleton,
    variants: Sequence[ModelVariant],
    hidden: Sequence[NDArray[np.float32]],
    targets: NDArray[np.int64],
    *,
    device: torch.device,
    threads: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[TokenScores]:
    """Compare the predictions of all variants with those of the first.

    hidden:  of each variant, (windows, positions, width), after the final norm. targets: (windows, positions), the
             tokens that follow. advance: told of weights of the heads that are done with.
    """
    wide = torch.float32 if device.type == "mps" else torch.float64  # which that device does not have
    width = hidden[0].shape[-1]
    states = [each.reshape(-1, width) for each in hidden]
    count, vocabulary = len(states[0]), skeleton.vocabulary
    following = torch.from_numpy(np.ascontiguousarray(targets).reshape(-1)).to(device)
    sums = [Online(count, device, wide) for _ in variants]
    # One more for each variant after the source: T of the pair.
    crosses = [torch.zeros(count, dtype=wide, device=device) for _ in variants]
    piece = min(PIECE, max(MAX_WEIGHTS // (width * len(variants)), 512))
    for first in range(0, vocabulary, piece):
        last = min(first + piece, vocabulary)
        heads = [read_head(variant, first, last, threads, device) for variant in variants]
        for start in range(0, count, ROWS):
            rows = slice(start, min(start + ROWS, count))
            wanted, source, weights = following[rows], None, None
            for k, head in enumerate(heads):
                logits = logits_of(skeleton, torch.from_numpy(states[k][rows]).to(device), head)
                if source is None or weights is None:
                    before = sums[0].peak[rows].clone()
                    source, weights = logits, sums[0].add(rows, first, logits, wanted)
                    shrink = (before - sums[0].peak[rows]).exp().to(wide)
                    continue
                sums[k].add(rows, first, logits, wanted)
                crosses[k][rows] = crosses[k][rows] * shrink + (source - logits).mul_(weights).sum(dim=1)
        advance((last - first) * width * len(variants))
    return [_scores(sums[0], each, cross, targets.shape) for each, cross in zip(sums, crosses, strict=True)]


def _scores(source: Online, ours: Online, cross: torch.Tensor, shape: tuple[int, ...]) -> TokenScores:
    nll = ours.normalizer - ours.target
    divergence = cross / source.total - source.normalizer + ours.normalizer

    def array(values: torch.Tensor) -> NDArray[Any]:
        found: NDArray[Any] = values.cpu().numpy().reshape(shape)
        return found

    return TokenScores(
        array(nll).astype(np.float32),
        np.maximum(array(divergence), 0).astype(np.float32),  # what rounding leaves may lie below
        array(ours.top == source.top),
        array((-nll).exp()).astype(np.float32),
    )


class LastStates:
    """What the part of a model before its head gives: the hidden states, and nothing else that classes hand on."""

    def __init__(self, states: torch.Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: int) -> torch.Tensor:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None


class HeadPiece(NamedTuple):
    """Rows of a head: (piece, width), and their biases, (piece,), if it has any. first: the number of the first row."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    first: int


def read_head(variant: ModelVariant, first: int, last: int, threads: int, device: torch.device) -> HeadPiece:
    """The head of a variant for the vocabulary from `first` to `last` (exclusive)."""

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(read_rows(variant, name, first, last, threads)).to(device)

    bias = read(HEAD_BIAS)[:, 0] if HEAD_BIAS in variant.tensors else None
    return HeadPiece(read(head_among(variant.tensors)), bias, first)


@contextmanager
def making_logits(
    skeleton: Skeleton,
) -> Iterator[Callable[[torch.Tensor, HeadPiece], tuple[torch.Tensor, torch.Tensor]]]:
    """Within, a function that makes logits (rows, piece) of hidden states (rows, width) after the final norm, for a
    piece of the head. It can be called by several threads. Its second result is the product alone.

    The class's own forward makes them, so that whatever it does after the head (soft-capping, scales) is done.
    """
    here = threading.local()

    def states(*args: Any, **kwargs: Any) -> Any:
        return LastStates(here.hidden)

    def product(states: torch.Tensor) -> torch.Tensor:
        here.product = torch.nn.functional.linear(states, here.head.weight, here.head.bias)
        return here.product

    def make(hidden: torch.Tensor, head: HeadPiece) -> tuple[torch.Tensor, torch.Tensor]:
        here.hidden, here.head = hidden[None], head
        logits = skeleton.model(inputs_embeds=here.hidden, use_cache=False).logits[0]
        never = [each - head.first for each in skeleton.never if 0 <= each - head.first < logits.shape[1]]
        if never:
            logits = logits.index_fill(1, torch.tensor(never, device=logits.device), torch.finfo(logits.dtype).min)
        return logits, here.product

    with replaced(skeleton.base, states), replaced(skeleton.model.get_output_embeddings(), product):
        yield make


def logits_of(skeleton: Skeleton, hidden: torch.Tensor, head: HeadPiece) -> torch.Tensor:
    """Logits once (see `making_logits`)."""
    with making_logits(skeleton) as make:
        return make(hidden, head)[0]
