"""Rows under a whole Hessian: what is promised of every format, and what damaged inputs do."""

from itertools import combinations

import numpy as np
import pytest
from correlated import correlated
from numpy.typing import NDArray

from ggufsmith.calibrate import refine
from ggufsmith.calibrate.hessian import Hessian, prepare
from ggufsmith.container.formats import format_of
from ggufsmith.quantize import fields, lattice_fields, reference, rows

NAMES = (*fields.LAYOUTS, *lattice_fields.LAYOUTS)
# The part of ggml's loss that has to go, with inputs as in `correlated`. Measured: less than half is left of any.
GAIN = 0.4


def plain(name: str, w: NDArray[np.float32], importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """ggml's bytes."""
    out = np.empty((len(w), format_of(name).nbytes((w.shape[1],))), np.uint8)
    rows.encode(format_of(name), w, out, importance=importance)
    return out


def loss(name: str, w: NDArray[np.float32], data: NDArray[np.uint8], h: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row, in float64, from what the gguf package reads."""
    e = w.astype(np.float64) - reference.dequantize(format_of(name), data)
    return ((e @ h) * e).sum(1)


@pytest.mark.parametrize("effort", ["fast", "normal"])
@pytest.mark.parametrize("name", NAMES)
def test_no_row_loses_more_and_most_lose_much_less(name: str, effort: refine.Effort) -> None:
    w, h = correlated(512, 70)
    w[3], w[4] = 0, w[4] * 1e-6
    done = refine.refine(format_of(name), w, prepare(h), effort=effort)
    before, after = loss(name, w, plain(name, w, h.diagonal()), h), loss(name, w, done.data, h)
    assert np.allclose(done.start, before, rtol=1e-4) and np.allclose(done.end, after, rtol=1e-4)
    assert (after <= before).all()
    assert after.sum() < (1 - GAIN) * before.sum()
    assert done.trouble is None and not done.report.nonfinite.count


@pytest.mark.parametrize("name", NAMES)
def test_more_effort_loses_less(name: str) -> None:
    w, h = correlated(256, 64, seed=1)
    fast, normal, best = (
        refine.refine(format_of(name), w, prepare(h), effort=effort).end.sum() for effort in refine.SWEEPS
    )
    assert best <= normal * 1.001 <= fast * 1.002


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q8_0"])
def test_widths_that_are_not_whole_tiles(name: str) -> None:
    w, h = correlated(32 * 9, 40)
    done = refine.refine(format_of(name), w, prepare(h))
    assert done.end.sum() < (1 - GAIN) * done.start.sum()
    assert np.allclose(done.end, loss(name, w, done.data, h), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_loss_stays(name: str) -> None:
    """Rows of zeros, and rows that ggml's bytes hold exactly."""
    w, h = correlated(256, 64)
    w[10:20] = 0
    for _ in range(4):
        w = reference.dequantize(format_of(name), plain(name, w, h.diagonal()))
    data = plain(name, w, h.diagonal())
    exact = (reference.dequantize(format_of(name), data) == w).all(1)
    done = refine.refine(format_of(name), w, prepare(h))
    assert exact[10:20].all()
    assert np.array_equal(done.data[exact], data[exact])
    assert (done.end[exact] == 0).all()


@pytest.mark.parametrize("name", ["Q4_K", "Q3_K", "IQ4_XS", "IQ2_XS"])
def test_threads_do_not_matter(name: str) -> None:
    w, h = correlated(512, 300)
    one = refine.refine(format_of(name), w, prepare(h), effort="fast")
    four = refine.refine(format_of(name), w, prepare(h), effort="fast", threads=4)
    assert np.array_equal(one.data, four.data) and np.array_equal(one.end, four.end)


@pytest.mark.parametrize("name", NAMES)
def test_columns_without_inputs(name: str) -> None:
    """They cost nothing here, but other text may use them: their errors stay about as small as ggml's, or smaller."""
    w, h = correlated(512, 40)
    dead = np.arange(7, 512, 9)
    h[dead], h[:, dead] = 0, 0
    done = refine.refine(format_of(name), w, prepare(h))
    assert done.trouble is None and done.end.sum() < (1 - GAIN) * done.start.sum()
    ours, ggmls = (
        np.square(w - reference.dequantize(format_of(name), data))[:, dead].mean()
        for data in (done.data, plain(name, w, h.diagonal()))
    )
    assert ours < 1.25 * ggmls


def test_one_column_drowns_the_others() -> None:
    """5e5 times the median, as in real layers: the others gain as they do without it."""
    w, h = correlated(512, 40)
    scale = np.ones(512, np.float32)
    scale[100] = np.sqrt(5e5 * np.median(h.diagonal()) / h[100, 100])
    h = h * scale * scale[:, None]
    done = refine.refine(format_of("Q3_K"), w, prepare(h))
    assert done.end.sum() < (1 - GAIN) * done.start.sum()
    others = np.arange(512) != 100
    weights = reference.dequantize(format_of("Q3_K"), done.data)
    assert np.abs(weights[:, others]).max() < 2 * np.abs(w).max()


def damaged(kind: str) -> NDArray[np.float32]:
    _, h = correlated(256, 1)
    if kind == "not finite":
        h[3, 200] = h[200, 3] = np.nan
    elif kind == "infinite":
        h[9, 9] = np.inf
    elif kind == "negative":
        h[7, 7] = -1
    elif kind == "symmetric":
        h[3, 200] += h[3, 3] + h[200, 200]
    elif kind == "pair":
        h[3, 200] = h[200, 3] = 2 * np.sqrt(h[3, 3] * h[200, 200])
    elif kind == "four":
        for i, j in combinations(range(10, 14), 2):  # each pair could be, but not all four
            h[i, j] = h[j, i] = -0.9 * np.sqrt(h[i, i] * h[j, j])
    elif kind == "nothing":
        h[:] = 0
    return h


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("not finite", "finite"),
        ("infinite", "finite"),
        ("negative", "input 7 is negative"),
        ("symmetric", "not symmetric"),
        ("pair", "not positive"),
        ("four", "not positive"),
        ("nothing", "no inputs"),
    ],
)
def test_damaged_hessians_are_named_and_the_plain_search_is_kept(kind: str, words: str) -> None:
    h, (w, _) = damaged(kind), correlated(256, 40)
    found = prepare(h)
    assert found.trouble is not None and words in found.trouble
    done = refine.refine(format_of("Q4_K"), w, found)
    assert done.trouble == found.trouble
    assert np.array_equal(done.data, plain("Q4_K", w, h.diagonal()))
    assert np.isnan(done.end).all()


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e25])
def test_the_unit_of_the_inputs_does_not_matter(factor: float) -> None:
    w, h = correlated(256, 40)
    scaled = (h.astype(np.float64) * factor).astype(np.float32)
    done, usual = (refine.refine(format_of("Q4_K"), w, prepare(m)) for m in (scaled, h))
    assert done.end.sum() / done.start.sum() == pytest.approx(usual.end.sum() / usual.start.sum(), rel=0.02)


def test_weights_that_are_not_finite_are_reported() -> None:
    w, h = correlated(256, 40)
    w[20, 3] = np.nan
    done = refine.refine(format_of("Q4_K"), w, prepare(h))
    assert done.report.nonfinite.count == 1 and done.report.nonfinite.first == (20, 3)


def test_shapes_that_do_not_fit() -> None:
    w, h = correlated(256, 4)
    with pytest.raises(ValueError, match="square"):
        prepare(h[:100])
    with pytest.raises(ValueError, match="H of"):
        refine.refine(format_of("Q4_K"), w[:, :128].copy(), prepare(h))
    assert isinstance(prepare(h), Hessian)
