"""Statistics of importance matrices, with values worked by hand."""

import math

import numpy as np
import pytest

from ggufsmith.calibrate.statistics import layers, statistics
from ggufsmith.quantize.imatrix.record import Entry, Imatrix


def entry(sums: list[list[float]], counts: list[int]) -> Entry:
    return Entry(np.array(sums, np.float32), np.array(counts, np.int64))


def test_one_tensor() -> None:
    (found,) = statistics(Imatrix({"blk.3.attn_q.weight": entry([[2, 2, 0, 12]], [2])}))
    assert (found.tensor, found.layer, found.part) == ("blk.3.attn_q.weight", 3, "attn_q")
    assert (found.total, found.minimum, found.maximum, found.mean, found.elements) == (8, 0, 6, 2, 4)
    assert found.deviation == pytest.approx(math.sqrt((1 + 1 + 4 + 16) / 4))
    assert (found.active, found.density) == (0.75, 0.25)
    assert found.entropy == pytest.approx(2 * 3 / 8 + 0.75 * math.log2(8 / 6))
    assert found.evenness == pytest.approx(found.entropy / 2)
    assert (found.matrices, found.unused, found.fewest, found.similarity) == (1, 0, 2, 0)


def test_experts_that_saw_no_token_are_left_out_and_stacks_come_first_the_worst_covered_first() -> None:
    dense, zeros = entry([[1, 3]], [1]), [0.0, 0.0]
    found = statistics(
        Imatrix(
            {
                "blk.0.attn_q.weight": dense,
                "blk.0.up_exps.weight": entry([[2, 4], [1, 1]], [2, 1]),
                "blk.1.up_exps.weight": entry([[2, 4], zeros], [2, 0]),
                "blk.2.up_exps.weight": entry([[2, 4], [9, 9]], [2, 9]),
                "blk.1.attn_q.weight": entry([[2, 6]], [1]),
                "output.weight": dense,
            }
        )
    )
    assert [(each.tensor, each.fewest) for each in found] == [
        ("blk.1.up_exps.weight", 0),
        ("blk.0.up_exps.weight", 1),
        ("blk.2.up_exps.weight", 2),
        ("blk.1.attn_q.weight", 1),
        ("blk.0.attn_q.weight", 1),
        ("output.weight", 1),
    ]
    assert (found[0].total, found[0].elements, found[0].unused, found[0].matrices) == (3, 2, 1, 2)
    assert found[3].similarity == pytest.approx(1)
    assert found[5].layer is None
    one = layers(found)[1]
    assert one.layer == 1 and one.total == pytest.approx((3 * 2 + 8 * 2) / 4)


def test_inputs_that_are_all_zero() -> None:
    (found,) = statistics(Imatrix({"blk.0.x.weight": entry([[0, 0]], [4])}))
    assert (found.entropy, found.evenness, found.active, found.density) == (0, 0, 0, 0)
