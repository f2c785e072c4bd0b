"""Which rows are measured, and how they stand for all."""

import numpy as np
import pytest

from ggufsmith.calibrate.measure import modern, sample_rows, sampled
from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize.recipes.assign import Stored


def test_the_shares_of_a_sample_are_those_of_the_whole() -> None:
    importance = np.random.default_rng(3).exponential(size=500) ** 3
    rows, shares = sample_rows(importance, 48)
    assert len(rows) == 48 and np.array_equal(rows, np.unique(rows)) and shares.sum() == pytest.approx(1)
    top = set(np.argsort(-importance)[:24].tolist())
    assert top <= set(rows.tolist())
    for row, share in zip(rows.tolist(), shares, strict=True):
        exact = importance[row] / importance.sum()
        assert share == pytest.approx(exact) if row in top else share > exact


def test_a_sample_stands_for_all_rows() -> None:
    """Losses that have little to do with importance are estimated within a few percent."""
    rng = np.random.default_rng(8)
    importance, losses = rng.exponential(size=4000) ** 2, rng.uniform(0.8, 1.2, 4000)
    rows, shares = sample_rows(importance, 250)
    assert losses[rows] @ shares == pytest.approx(losses @ importance / importance.sum(), rel=0.03)


def test_few_rows_are_all_measured_and_none_counts_where_nothing_is_important() -> None:
    rows, shares = sample_rows(np.array([1.0, 3.0]), 5)
    assert rows.tolist() == [0, 1] and shares.tolist() == [0.25, 0.75]
    rows, shares = sample_rows(np.zeros(9), 4)
    assert len(rows) == 4 and not shares.any()
    rows, shares = sample_rows(np.array([5.0, *[0.0] * 99]), 10)
    assert shares.sum() == 1 and shares.max() == 1


def test_a_sixteenth_of_the_rows_but_some_dozens() -> None:
    assert sampled(4096) == 256 and sampled(256) == 48 and sampled(20) == 20
    assert sampled(768, matrices=128) == 48 and sampled(64, matrices=8) == 6


def test_old_types_are_tried_only_where_new_ones_do_not_fit() -> None:
    def names(width: int, importance: bool = True) -> list[str]:
        return [each.name for each in modern(Stored("blk.0.ffn_up.weight", (64, width), BY_NAME["F16"]), importance)]

    assert {"IQ2_XXS", "Q4_K", "Q8_0"} <= set(names(512)) and not {"Q4_0", "Q5_1", "F16"} & set(names(512))
    assert {"Q4_0", "IQ4_NL", "Q5_1", "Q8_0"} == set(names(96)) - {"Q4_1", "Q5_0"}
    assert "IQ1_S" not in names(512, importance=False)
