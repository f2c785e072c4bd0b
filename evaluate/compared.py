"""Scores of logits that lie in memory, against the source's. numpy only."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROWS = 32  # positions at a time: what is worked on then stays near the processor


def score_logits(
    source: NDArray[np.float32], logits: NDArray[np.float32], following: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Of every position: negative log-likelihood, divergence from the source, same top token, probability.

    source, logits: (positions, vocabulary). following: the token after each position. See `TokenScores`. Logits that
    are not finite give scores that are not, without a warning.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        parts = list(_scored(source, logits, following))
    nll, divergence, same, probability = (np.concatenate(each) for each in zip(*parts, strict=True))
    return nll, divergence, same, probability


def _scored(
    source: NDArray[np.float32], logits: NDArray[np.float32], following: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]]:
    for start in range(0, len(logits), ROWS):
        rows = slice(start, start + ROWS)
        base, own = _log_softmax(source[rows]), _log_softmax(logits[rows])
        divergence = np.sum(np.exp(base) * (base - own), axis=1, dtype=np.float64)
        chosen = np.take_along_axis(own, following[rows, None].astype(np.int64), axis=1)[:, 0]
        same = source[rows].argmax(axis=1) == logits[rows].argmax(axis=1)
        yield -chosen, np.maximum(divergence, 0).astype(np.float32), same, np.exp(chosen)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total).astype(np.float32), np.float32)
