"""What token scores say of a file: perplexity, divergence from the source, and how sure one can be of both.

All definitions are those of `kl_divergence` in llama.cpp's tools/perplexity/perplexity.cpp: standard errors are those
of means over tokens, quantiles are interpolated. Errors of tokens in one text are not independent, so two files are
compared by their differences in whole windows (`compare`), which are resampled.

What cannot be known from so little text, or is no number, is None, and null in JSON.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.evaluate.token_scores import TokenScores

ALL = "all"  # the name of the row over all domains
FEWEST_TOKENS = 11  # whose mean has an error, as in `mean_and_uncertainty`
# Windows whose differences have an interval. Of fewer, all lie on one side by chance alone in more than one case of
# twenty, and no resampling of them shows the other side.
FEWEST_WINDOWS = 6
RESAMPLES = 10_000
LEVEL = 0.95
SEED = 20260


@dataclass(frozen=True)
class Quality:
    """One model over the scored tokens of one domain, or of all of them. Each `_error` is a standard error, or null for
    fewer than 11 tokens, which do not say it.

    perplexity: exp of the mean negative log-likelihood; null if that is too large for a number. log_ratio: ln of the
    perplexity over the source's. divergence: mean Kullback-Leibler divergence from the source per token, in nats, then
    its quantiles. same_top: the share of tokens of which both think the same one the most probable. change: root mean
    square of the change in the probability of the token that follows.
    """

    domain: str
    tokens: int
    perplexity: float | None
    perplexity_error: float | None
    log_ratio: float
    log_ratio_error: float | None
    divergence: float
    divergence_error: float | None
    divergence_median: float
    divergence_99: float
    divergence_999: float
    divergence_max: float
    same_top: float
    same_top_error: float | None
    change: float
    change_error: float | None


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds it with a confidence of 95 %; null for fewer than 6 windows."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Two files over the same windows: how far `second` is from `first`.

    divergence: difference of the mean divergences, second − first. divergence_ratio: second / first.
    log_ratio: ln of the perplexity of the second over that of the first. Intervals are those of a bootstrap over
    windows. better: the file that is closer to the source, or null where the interval of the difference holds zero or
    is not known.
    """

    first: str
    second: str
    windows: int
    divergence: Interval
    divergence_ratio: Interval
    log_ratio: Interval
    better: str | None


def qualities(scores: TokenScores, source: TokenScores, domains: Sequence[str]) -> list[Quality]:
    """Over all windows, and then over those of each domain, if there are several, in the order of their first window.

    domains: of each window.
    """
    named = list(dict.fromkeys(domains))
    rows = [quality(scores, source, ALL)]
    if len(named) > 1:
        of_window = np.array(domains)
        rows += [
            quality(_chosen(scores, of_window == name), _chosen(source, of_window == name), name) for name in named
        ]
    return rows


def quality(scores: TokenScores, source: TokenScores, domain: str = ALL) -> Quality:
    """Over all windows of the scores. source: the scores of the source at the same positions."""
    nll, base = _flat(scores.nll), _flat(source.nll)
    divergence = _flat(scores.divergence)
    change = _flat(scores.probability) - _flat(source.probability)
    log_perplexity, error = _mean(nll)
    perplexity = _exp(log_perplexity)
    ratio, ratio_error = _mean(nll - base)
    mean, mean_error = _mean(divergence)
    square, square_error = _mean(change**2)
    root = float(np.sqrt(square))
    median, p99, p999 = (float(each) for each in np.quantile(divergence, (0.5, 0.99, 0.999)))
    same, same_error = _mean(_flat(scores.same_top))
    return Quality(
        domain,
        nll.size,
        perplexity,
        _finite(perplexity * error) if perplexity is not None and error is not None else None,
        ratio,
        ratio_error,
        mean,
        mean_error,
        median,
        p99,
        p999,
        float(divergence.max()),
        same,
        same_error,
        root,
        0.5 * square_error / root if root and square_error is not None else square_error,
    )


def pareto(points: Sequence[tuple[int, float]]) -> list[bool]:
    """Of each (bytes, divergence), whether no other is as small and as close, and better in one of the two."""
    return [
        not any(size <= own_size and loss <= own and (size, loss) != (own_size, own) for size, loss in points)
        for own_size, own in points
    ]


def compare(names: tuple[str, str], first: TokenScores, second: TokenScores) -> Comparison:
    """Two files by paired differences: windows, drawn anew with replacement, are drawn for both at once.

    Percentile intervals of the bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13), seeded.
    """
    means = np.array(
        [_per_window(each) for each in (first.divergence, second.divergence, first.nll, second.nll)]
    )  # (4, windows)
    windows = means.shape[1]
    generator = np.random.default_rng(SEED)
    drawn = generator.multinomial(windows, np.full(windows, 1 / windows), RESAMPLES) / windows  # (resamples, windows)
    found = np.vstack([means.mean(axis=1), drawn @ means.T])  # the estimate, then the resamples
    difference = _interval(found[:, 1] - found[:, 0], windows)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _interval(np.where(found[:, 0] > 0, found[:, 1] / found[:, 0], 1.0), windows)
    better = None
    if difference.low is not None and difference.high is not None:
        better = names[0] if difference.low > 0 else names[1] if difference.high < 0 else None
    return Comparison(*names, windows, difference, ratio, _interval(found[:, 3] - found[:, 2], windows), better)


def _interval(found: NDArray[np.float64], windows: int) -> Interval:
    if windows < FEWEST_WINDOWS:
        return Interval(float(found[0]), None, None)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(found[1:], (tail, 1 - tail))
    return Interval(float(found[0]), float(low), float(high))


def _chosen(scores: TokenScores, windows: NDArray[np.bool_]) -> TokenScores:
    return TokenScores(
        scores.nll[windows], scores.divergence[windows], scores.same_top[windows], scores.probability[windows]
    )


def _flat(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return values.astype(np.float64).ravel()


def _per_window(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(values.astype(np.float64).mean(axis=1), np.float64)


def _mean(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean and standard error, as `mean_and_uncertainty` gives them; it says 0 where there are too few values."""
    mean = float(values.mean())
    variance = float(np.mean((values - mean) ** 2))
    return mean, float(np.sqrt(variance / (values.size - 1))) if values.size >= FEWEST_TOKENS else None


def _exp(logarithm: float) -> float | None:
    with np.errstate(over="ignore"):
        return _finite(float(np.exp(logarithm)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
