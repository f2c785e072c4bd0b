"""The kernels of the descent against their twins, and against what they are to do, by brute force and in float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from correlated import correlated
from numpy.typing import NDArray

from ggufsmith.calibrate import refine
from ggufsmith.calibrate.factor import OF_ITSELF, OF_MEDIAN, damping_of, factor_of
from ggufsmith.calibrate.hessian import Hessian, prepare
from ggufsmith.calibrate.lanes import from_lanes, to_lanes
from ggufsmith.calibrate.tiles import blocks_of, feed
from ggufsmith.container.formats import format_of
from ggufsmith.quantize import fields, lattice_fields, rows
from ggufsmith.quantize.cache import Kernel
from ggufsmith.quantize.kernels import descent, descent_lattice, tile_sums
from ggufsmith.quantize.kernels.cholesky import factor_and_invert

NAMES = sorted(fields.LAYOUTS)
LATTICES = sorted(lattice_fields.LAYOUTS)


def start(name: str, count: int = 40) -> tuple[NDArray[np.float32], Hessian, fields.RowFields]:
    """Weights of one block at least, their Hessian, and ggml's numbers."""
    form = format_of(name)
    w, h = correlated(max(64, form.weights), count, seed=len(name))
    data = np.empty((count, form.nbytes((w.shape[1],))), np.uint8)
    rows.encode(form, w, data, importance=h.diagonal())
    return w, prepare(h), fields.unpack(fields.layout_of(name), data)


def descended_lattice(run: Any, name: str, passes: int, count: int) -> tuple[descent.State, NDArray[np.float32]]:
    """The same for a lattice; W rows, as the twin is slow."""
    w, hessian, found = start(name, count)
    layout, n = fields.layout_of(name), w.shape[1]
    assert isinstance(layout, lattice_fields.LatticeLayout)
    state, x = refine.to_state(layout, found), to_lanes(w)
    e = x - to_lanes(fields.values(layout, found))
    h = hessian.h + np.diag(hessian.damping)
    g = to_lanes((from_lanes(e, count) @ h).astype(np.float32))
    inverse = np.linalg.inv(blocks_of(h, layout.dims)).astype(np.float32)
    codings = descent.coding_of(layout), descent_lattice.lattice_coding(layout)
    with np.errstate(all="ignore"):
        flat = (a.reshape(-1).copy() for a in (h, h.reshape(-1, layout.sub).sum(1), inverse, g))
        run(x.reshape(-1), e.reshape(-1), state, *flat, n, 0, n, passes, *codings)
    return state, e


@pytest.mark.parametrize("name", ["IQ2_XS", "IQ3_XXS"])
def test_descent_of_lattices_as_its_twin(name: str) -> None:
    """One with eight weights to a point, and one with four whose signs depend on those of others."""
    found, error = descended_lattice(descent_lattice.descend_lattice, name, 1, 8)
    twin, twins_error = descended_lattice(descent_lattice.descend_lattice.py_func, name, 1, 8)
    for a, b in zip(found, twin, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(error, twins_error)


@pytest.mark.parametrize("name", ["IQ2_S", "IQ3_XXS", "IQ1_S"])
def test_feedback_of_lattices_as_its_twin(name: str) -> None:
    w, hessian, found = start(name, 8)
    layout, factor = fields.layout_of(name), hessian.factor
    assert factor and isinstance(layout, lattice_fields.LatticeLayout)
    codings = descent.coding_of(layout), descent_lattice.lattice_coding(layout)
    metric = blocks_of(hessian.h, layout.dims).reshape(-1).copy()
    results = []
    for run in (descent_lattice.feed_lattice, descent_lattice.feed_lattice.py_func):
        x, e, state = to_lanes(w), np.zeros_like(to_lanes(w)), refine.to_state(layout, found)
        rest = (e.reshape(-1), state, factor.t.reshape(-1), metric, 256, 0, 256, *codings)
        with np.errstate(all="ignore"):
            run(x.reshape(-1), to_lanes(w).reshape(-1), *rest)
        results.append((x, e, *state))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", LATTICES)
def test_no_point_with_these_signs_could_be_better(name: str) -> None:
    """Every point of the lattice is tried for every group in float64, at the end of a descent.

    The search looks at the points near to what would be best, so that a few groups may miss a better one that is far.
    """
    state, _ = descended_lattice(descent_lattice.descend_lattice, name, 200, 8)
    layout = fields.layout_of(name)
    assert isinstance(layout, lattice_fields.LatticeLayout)
    w, hessian, _ = start(name, 8)
    found, dims = refine.to_fields(layout, state, 8), layout.dims
    assert np.array_equal(fields.unpack(layout, fields.pack(layout, found)).levels, found.levels)
    h = (hessian.h + np.diag(hessian.damping)).astype(np.float64)
    e = w.astype(np.float64) - fields.values(layout, found)
    g, loss, missed = e @ h, ((e @ h) * e).sum(1), 0
    scale = np.repeat(found.d, 256 // layout.sub, 1) * fields.scales_of(layout, found.scales)
    scale = np.repeat(scale, layout.sub, 1).astype(np.float64)
    for at in range(0, 256, dims):
        part = slice(at, at + dims)
        old = found.levels[:, part].astype(np.float64)
        if isinstance(layout, lattice_fields.ShiftedLayout):
            levels = 8 * layout.points + np.where(old % 8 == 1, 1, -1)[:, None]
        else:
            levels = np.where(old < 0, -1, 1)[:, None] * layout.points
        change = (old[:, None] - levels) * scale[:, None, part]  # of the error
        added = (change * (2 * g[:, None, part] + change @ h[part, part])).sum(2)
        missed += int((added.min(1) < -1e-4 * loss).sum())
    assert missed <= 0.01 * 8 * 256 / dims


def descended(run: Any, name: str, passes: int, count: int = 40) -> tuple[descent.State, NDArray[np.float32]]:
    """The state and the errors after `run`, the kernel or its twin, on one tile."""
    w, hessian, found = start(name, count)
    layout, n = fields.layout_of(name), w.shape[1]
    state, x = refine.to_state(layout, found), to_lanes(w)
    e = x - to_lanes(fields.values(layout, found))
    h = hessian.h + np.diag(hessian.damping)
    g = to_lanes((from_lanes(e, count) @ h).astype(np.float32))
    sums = h.reshape(-1, layout.sub).sum(1)
    with np.errstate(all="ignore"):
        flat = (a.reshape(-1).copy() for a in (h, sums, 1 / h.diagonal(), g))
        run(x.reshape(-1), e.reshape(-1), state, *flat, n, 0, n, passes, descent.coding_of(layout))
    return state, e


@pytest.mark.parametrize("name", NAMES)
def test_descent_as_its_twin(name: str) -> None:
    found, error = descended(descent.descend, name, 1)
    twin, twins_error = descended(descent.descend.py_func, name, 1)
    for a, b in zip(found, twin, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(error, twins_error)


@pytest.mark.parametrize("kernel", [tile_sums.project, tile_sums.inner, descent.feed])
def test_sums_and_feedback_as_their_twins(kernel: Kernel) -> None:
    w, hessian, found = start("Q4_K")
    assert hessian.factor
    results = []
    for run in (kernel, kernel.py_func):
        x, e, g = to_lanes(w), to_lanes(w[::-1]), np.zeros_like(to_lanes(w[:, :64]))
        out, state = np.zeros(x.size // 256, np.float32), refine.to_state(fields.layout_of("Q4_K"), found)
        arguments: tuple[Any, ...] = {
            "project": (e.reshape(-1), hessian.h.reshape(-1), 256, 64, 64, 3, 200, g.reshape(-1)),
            "inner": (e.reshape(-1), x.reshape(-1), 256, 0, 256, out),
            "feed": (
                x.reshape(-1),
                to_lanes(w).reshape(-1),
                e.reshape(-1),
                state,
                hessian.factor.t.reshape(-1),
                256,
                0,
                256,
                descent.CODING,
            ),
        }[kernel.py_func.__name__]
        with np.errstate(all="ignore"):
            run(*arguments)
        results.append((x, e, g, out, *state))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_no_single_code_could_be_better(name: str) -> None:
    """Every level of every column is tried in float64, at the end of a descent that found nothing more to do."""
    state, _ = descended(descent.descend, name, 200, 8)
    layout = fields.layout_of(name)
    w, hessian, _ = start(name, 8)
    found = refine.to_fields(layout, state, 8)
    h = (hessian.h + np.diag(hessian.damping)).astype(np.float64)
    scale = np.repeat(np.repeat(found.d, layout.format.weights // layout.sub, 1) * found.scales, layout.sub, 1)
    e = w.astype(np.float64) - fields.values(layout, found)
    g, loss = e @ h, ((e @ h) * e).sum(1)
    # The change of the loss by a change of one weight alone: [rows, columns, levels].
    change = scale[:, :, None] * (layout.levels.astype(np.float64) - found.levels[:, :, None].astype(np.float64))
    gain = 2 * change * g[:, :, None] - change**2 * h.diagonal()[:, None]
    assert gain.max() < 1e-5 * loss.max()


@pytest.mark.parametrize("name", NAMES)
def test_no_step_of_d_could_be_better(name: str) -> None:
    """The neighbours of d among the halves, codes as they are, where there is one block in a row."""
    state, _ = descended(descent.descend, name, 200, 8)
    layout = fields.layout_of(name)
    w, hessian, _ = start(name, 8)
    found = refine.to_fields(layout, state, 8)
    h = (hessian.h + np.diag(hessian.damping)).astype(np.float64)

    def loss(numbers: fields.RowFields) -> NDArray[np.float64]:
        e = w.astype(np.float64) - fields.values(layout, numbers)
        return np.asarray(((e @ h) * e).sum(1))

    here = loss(found)
    for step in (-1, 1):
        bits = found.d.astype(np.float16).view(np.int16) + np.int16(step)
        moved = np.where(found.d == 0, found.d, bits.view(np.float16).astype(np.float32))
        moved[:, 1:] = found.d[:, 1:]
        assert (loss(replace(found, d=moved)) > here * (1 - 1e-4)).all()


def test_feedback_is_ldlq() -> None:
    """As in its definition, column by column in float64, with ggml's scales of the only tile."""
    w, hessian, _ = start("Q4_K")
    factor, layout = hessian.factor, fields.layout_of("Q4_K")
    assert factor
    state, e, _ = refine.feed_back(layout, to_lanes(w), hessian, 0)
    found = refine.to_fields(layout, state, len(w))
    assert np.array_equal(from_lanes(e, len(w)), w - fields.values(layout, found))
    scale = np.repeat(np.repeat(found.d, 8, 1) * found.scales, 32, 1).astype(np.float64)
    low = np.repeat(np.repeat(found.dmin, 8, 1) * found.minima, 32, 1).astype(np.float64)
    t, error, levels = np.tril(factor.t, -1).astype(np.float64), np.zeros(w.shape), np.zeros(w.shape)
    for k in range(256):
        wanted = w[:, k] + error @ t[k]
        levels[:, k] = np.clip(np.rint((wanted + low[:, k]) / scale[:, k]), 0, 15)
        error[:, k] = w[:, k] - (scale[:, k] * levels[:, k] - low[:, k])
    assert (levels == found.levels).mean() > 0.999


@pytest.mark.parametrize("n", [64, 288, 640])
def test_the_factor(n: int) -> None:
    _, h = correlated(n, 1)
    factor = factor_of(h, damping_of(h.diagonal()))
    assert factor
    t = np.tril(factor.t, -1).astype(np.float64) + np.eye(n)
    diagonal = h.diagonal().astype(np.float64)
    wanted = h + np.diag(OF_ITSELF * diagonal + OF_MEDIAN * np.median(diagonal))
    unit = np.sqrt(np.outer(diagonal, diagonal))
    assert np.abs((t.T * factor.d @ t - wanted) / unit).max() < 1e-5
    for at, tile in zip(range(0, n, refine.TILE), factor.tiles, strict=True):
        part = slice(at, at + refine.TILE)
        s = t[part, part].T * factor.d[part] @ t[part, part]
        assert np.abs((tile.s - s) / unit[part, part]).max() < 1e-5
        assert np.abs((tile.back @ t[part, part] - s) / unit[part, part]).max() < 1e-5


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_S", "IQ3_XXS"])
def test_what_a_tile_misses_tells_its_gradient(name: str) -> None:
    """From what feedback leaves in x follows what the errors of a tile add, as if all its columns came at once."""
    w, hessian, _ = start(name, 8)
    factor, layout = hessian.factor, fields.layout_of(name)
    assert factor
    state, e, _ = refine.feed_back(layout, to_lanes(w), hessian, 0)
    x, (tile,) = to_lanes(w), factor.tiles
    feed(layout, x, to_lanes(w), e, state, factor.t, factor.d, 0)
    missed, errors = from_lanes(x, 8).astype(np.float64), from_lanes(e, 8).astype(np.float64)
    wanted = errors @ tile.s
    assert np.allclose(missed @ tile.back.T, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_feedback_with_a_descent_in_each_tile_adds_less() -> None:
    """Under the loss that it is done for: that of H with its damping."""
    w, h = correlated(640, 40)
    hessian = prepare(h[:512, :512].copy())
    layout, x = fields.layout_of("Q4_K"), to_lanes(w[:, :512].copy())
    damped = (hessian.h + np.diag(hessian.damping)).astype(np.float64)
    found = []
    for passes in (0, 1, 2):
        _, lanes, lost = refine.feed_back(layout, x, hessian, passes)
        e = from_lanes(lanes, 40).astype(np.float64)
        found.append(((e @ damped) * e).sum())
        assert np.allclose(lost[:40], ((e @ hessian.h) * e).sum(1), rtol=1e-4), "losses are those of H alone"
    assert found[2] < found[1] < 0.97 * found[0]


@pytest.mark.parametrize("n", [1, 5, 256])
def test_cholesky(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n + 3, n))
    a = x.T @ x
    for run in (factor_and_invert, factor_and_invert.py_func):
        if n == 256 and run is factor_and_invert.py_func:
            continue
        lower, inverse = a.copy(), np.zeros_like(a)
        assert run(lower.reshape(-1), inverse.reshape(-1), n)
        assert np.allclose(lower, np.linalg.cholesky(a)) and np.allclose(inverse @ lower, np.eye(n))
        bad = a - 2 * np.diag(a.diagonal())
        assert not run(bad.reshape(-1), inverse.reshape(-1), n)
