"""Perplexity, divergence and their errors, against definitions written out token by token."""

import math

import numpy as np
import pytest

from ggufsmith.evaluate.quality import ALL, compare, pareto, qualities, quality
from ggufsmith.evaluate.token_scores import TokenScores, scored_positions


def scores(seed: int, windows: int = 8, positions: int = 40, shift: float = 0.0) -> TokenScores:
    generator = np.random.default_rng(seed)
    nll = generator.gamma(2, 1, (windows, positions)) + shift
    divergence = generator.gamma(0.5, 0.1, (windows, positions))
    return TokenScores(
        nll.astype(np.float32),
        divergence.astype(np.float32),
        generator.random((windows, positions)) < 0.9,
        np.exp(-nll).astype(np.float32),
    )


def moments(values: list[float]) -> tuple[float, float]:
    """`mean_and_uncertainty` of llama.cpp's tools/perplexity/perplexity.cpp, as it is written there."""
    count, total, square = len(values), math.fsum(values), math.fsum(value * value for value in values)
    mean = total / count
    variance = square / count - mean * mean
    return mean, math.sqrt(variance / (count - 1)) if variance > 0 and count > 10 else 0.0


def percentile(values: list[float], fraction: float) -> float:
    """`percentile` of the same file."""
    place = fraction * (len(values) - 1)
    low = int(place)
    return (1 - (place - low)) * values[low] + (place - low) * values[min(low + 1, len(values) - 1)]


def test_the_definitions_are_those_of_llama_perplexity() -> None:
    source, own = scores(1), scores(2)
    found = quality(own, source)
    nll, base = (each.nll.astype(float).ravel().tolist() for each in (own, source))
    mean, error = moments(nll)
    assert found.perplexity == pytest.approx(math.exp(mean))
    assert found.perplexity_error == pytest.approx(math.exp(mean) * error)
    base_mean, base_error = moments(base)
    covariance = (math.fsum(a * b for a, b in zip(nll, base, strict=True)) / len(nll) - mean * base_mean) / (
        len(nll) - 1
    )
    assert found.log_ratio == pytest.approx(mean - base_mean)
    assert found.log_ratio_error == pytest.approx(math.sqrt(error**2 + base_error**2 - 2 * covariance))
    divergence = sorted(own.divergence.astype(float).ravel().tolist())
    assert (found.divergence, found.divergence_error) == pytest.approx(moments(divergence))
    wanted = [percentile(divergence, fraction) for fraction in (0.5, 0.99, 0.999, 1)]
    assert [found.divergence_median, found.divergence_99, found.divergence_999, found.divergence_max] == pytest.approx(
        wanted
    )
    share = float(own.same_top.mean())
    assert found.same_top == pytest.approx(share)
    assert found.same_top_error == pytest.approx(math.sqrt(share * (1 - share) / (own.nll.size - 1)))
    change = own.probability.astype(float).ravel() - source.probability.astype(float).ravel()
    square, square_error = moments((change**2).tolist())
    assert found.change == pytest.approx(math.sqrt(square))
    assert found.change_error == pytest.approx(0.5 / math.sqrt(square) * square_error)


def test_the_source_itself_is_not_away_from_itself() -> None:
    source = scores(1)
    same = TokenScores(source.nll, 0 * source.divergence, np.ones_like(source.same_top), source.probability)
    found = quality(same, same)
    assert (found.divergence, found.log_ratio, found.change, found.change_error) == (0, 0, 0, 0)
    assert found.same_top == 1


def test_the_whole_comes_first_then_every_domain() -> None:
    source, own = scores(1), scores(2)
    found = qualities(own, source, ["b", "b", "a", "a", "a", "b", "a", "b"])
    assert [(each.domain, each.tokens) for each in found] == [(ALL, 320), ("b", 160), ("a", 160)]
    assert found[0].divergence == pytest.approx((found[1].divergence + found[2].divergence) / 2)
    assert [each.domain for each in qualities(own, source, ["a"] * 8)] == [ALL]


def test_pareto_optimal_are_those_that_none_beats() -> None:
    points = [(10, 3.0), (10, 2.0), (20, 2.0), (20, 1.0), (30, 1.5), (40, 0.5), (40, 0.5)]
    assert pareto(points) == [False, True, False, True, False, True, True]


def test_a_comparison_is_paired_and_seeded() -> None:
    first = scores(3, windows=40)
    noise = np.random.default_rng(0).normal(0, 1e-4, first.divergence.shape).astype(np.float32)
    closer = TokenScores(first.nll - 0.01, first.divergence * 0.9 + noise, first.same_top, first.probability)
    found = compare(("a", "b"), first, closer)
    assert found == compare(("a", "b"), first, closer)
    assert found.better == "b"
    low, high = found.divergence.low, found.divergence.high
    assert low is not None and high is not None and low < found.divergence.value < high < 0
    assert found.divergence_ratio.value == pytest.approx(0.9, abs=0.01)
    assert found.log_ratio.value == pytest.approx(-0.01, abs=1e-5)
    assert compare(("b", "a"), closer, first).better == "b"
    assert compare(("a", "c"), first, scores(4, windows=40)).better is None


@pytest.mark.parametrize("windows", [1, 5])
def test_few_windows_have_no_interval_and_no_winner(windows: int) -> None:
    first = scores(3, windows=windows)
    closer = TokenScores(first.nll, first.divergence * 0.5, first.same_top, first.probability)
    found = compare(("a", "b"), first, closer)
    assert found.better is None and found.divergence_ratio.value == pytest.approx(0.5)
    for interval in (found.divergence, found.divergence_ratio, found.log_ratio):
        assert (interval.low, interval.high) == (None, None)
    assert compare(("a", "b"), scores(3, windows=6), scores(3, windows=6)).divergence.low == 0


@pytest.mark.parametrize(("positions", "known"), [(10, False), (11, True)])
def test_few_tokens_do_not_say_their_error(positions: int, known: bool) -> None:
    found = quality(scores(1, 1, positions), scores(2, 1, positions))
    errors = [value for name, value in vars(found).items() if name.endswith("_error")]
    assert len(errors) == 5 and all((each is not None) == known for each in errors)


def test_a_perplexity_that_no_number_holds_is_none() -> None:
    found = quality(scores(1, shift=1000.0), scores(2))
    assert found.perplexity is None and found.perplexity_error is None
    assert found.log_ratio > 900


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        both = [generator.gamma(1, 0.1, (30, 8)).astype(np.float32) for _ in range(2)]
        blank = np.ones((30, 8), np.float32)
        first, second = (TokenScores(blank, each, blank > 0, blank) for each in both)
        found = compare(("a", "b"), first, second).divergence
        assert found.low is not None and found.high is not None
        inside += found.low <= 0 <= found.high
    assert 180 <= inside <= 197


@pytest.mark.parametrize(("context", "first", "count"), [(512, 256, 255), (128, 64, 63), (7, 3, 3)])
def test_the_second_half_is_scored(context: int, first: int, count: int) -> None:
    positions = range(context)[scored_positions(context)]
    assert (positions[0], len(positions), positions[-1]) == (first, count, context - 2)
