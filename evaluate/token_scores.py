"""What a model says of every scored token, compared with what its source says of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenScores:
    """The scores of one model at every scored position of every window; arrays of (windows, positions).

    nll:         float32, minus the natural logarithm of the probability of the token that follows.
    divergence:  float32, the Kullback-Leibler divergence of the model's distribution from the source's, in nats: the
                 sum over the vocabulary of p (ln p − ln q), with p the source's probabilities.
    same_top:    bool, whether both think the same token the most probable.
    probability: float32, of the token that follows.
    """

    nll: NDArray[np.float32]
    divergence: NDArray[np.float32]
    same_top: NDArray[np.bool_]
    probability: NDArray[np.float32]


def scored_positions(context: int) -> slice:
    """The positions of a window that are scored: those of its second half that a token follows.

    The token at position i + 1 is predicted at position i, as in `perplexity` of llama.cpp's
    tools/perplexity/perplexity.cpp.
    """
    return slice(context // 2, context - 1)
