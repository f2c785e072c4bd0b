"""Ops of projectors against numpy, in chunks of every size."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.layout import rows_of
from ggufsmith.convert.ops import Op
from ggufsmith.convert.projectors.ops import (
    Bound,
    NormScale,
    NormShift,
    PixelsToPlanes,
    Pointwise,
    RowAsVector,
    Sinusoids,
    Slice,
    Softplus,
)

RNG = np.random.default_rng(0)
FILM = RNG.standard_normal((5, 3, 2, 4, 6), dtype=np.float32)
PATCHES = RNG.standard_normal((5, 3 * 4 * 4), dtype=np.float32)
MATRIX = RNG.standard_normal((9, 7), dtype=np.float32)
CASES: list[tuple[Op, NDArray[np.float32], NDArray[np.float32]]] = [
    (Slice(2, 0), FILM, FILM[:, :, 0]),
    (Slice(2, 1), FILM, FILM[:, :, 1]),
    (Slice(1, 2), FILM, FILM[:, 2]),
    (PixelsToPlanes(4), PATCHES, PATCHES.reshape(5, 4, 4, 3).transpose(0, 3, 1, 2)),
    (RowAsVector(4), MATRIX, MATRIX[4]),
    (Pointwise(), MATRIX[..., None], MATRIX),
    (Bound(), np.float32(1.5).reshape(()), np.array([1.5], np.float32)),
    (Softplus(), MATRIX[0] * 20, np.log1p(np.exp((MATRIX[0] * 20).astype(float))).astype(np.float32)),
]


def made(op: Op, source: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    rows = source.reshape(rows_of(source.shape))
    shape = op.shape(source.shape)
    count = rows_of(shape)[0]

    def read(k: int, start: int, stop: int) -> NDArray[np.float32]:
        assert 0 <= start < stop <= len(rows)
        return rows[start:stop].copy()

    parts = [op.rows(read, (source.shape,), at, min(at + step, count)) for at in range(0, count, step)]
    return np.concatenate(parts).reshape(shape)


@pytest.mark.parametrize(("op", "source", "expected"), CASES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("step", [1, 2, 5, 7, 1000])
def test_rows(op: Op, source: NDArray[np.float32], expected: NDArray[np.float32], step: int) -> None:
    found = made(op, source, step)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-7, atol=0)
    assert found.shape == expected.shape


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Slice(2, 0), (5, 3, 4)),
        (Slice(2, 2), (5, 3, 2, 4, 4)),
        (PixelsToPlanes(4), (5, 47)),
        (PixelsToPlanes(4), (48,)),
        (RowAsVector(9), (9, 7)),
        (Pointwise(), (9, 7)),
        (Pointwise(), (9, 7, 3)),
        (RowAsVector(0), (9,)),
        (Bound(), (2,)),
    ],
)
def test_shapes_that_do_not_fit(op: Op, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        op.shape(shape)


@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_bounds_become_the_largest_number(sign: int) -> None:
    infinite = np.array(sign * np.inf, np.float32)
    assert made(Bound(), infinite, 1) == sign * np.finfo(np.float32).max
    for bits, expected in ((0x7F80, 0x7F7F), (0x7C00, 0x7BFF), (0x3F80, 0x3F80)):
        half = np.array([[bits | (0x8000 if sign < 0 else 0)]], np.uint16)
        found = Bound().rows(lambda k, start, stop, half=half: half, ((),), 0, 1)  # type: ignore[misc]
        assert found.dtype == np.uint16
        assert found[0, 0] & 0x7FFF == expected and (found[0, 0] >> 15) == (sign < 0)


def test_softplus_of_large_numbers() -> None:
    x = np.array([-200, -21, 19.9, 20.1, 3e38], np.float32)
    found: Callable[[int, int, int], NDArray[np.float32]] = lambda k, start, stop: x[start:stop, None]  # noqa: E731
    soft = Softplus().rows(found, (x.shape,), 0, 5)[:, 0]
    assert np.isfinite(soft).all() and soft[-1] == x[-1] and soft[0] >= 0


@pytest.mark.parametrize("step", [1, 4, 1000])
def test_a_trained_batch_norm_is_a_factor_and_a_shift(step: int) -> None:
    """x * scale + shift, against the definition in float64."""
    weight, bias, mean, x = (RNG.standard_normal((9, 1), dtype=np.float32) for _ in range(4))
    variance = RNG.random((9, 1), dtype=np.float32)

    def rows(op: Op, *sources: NDArray[np.float32]) -> NDArray[np.float32]:
        shapes = tuple(source.shape[:1] for source in sources)
        ends = [(at, min(at + step, 9)) for at in range(0, 9, step)]
        return np.concatenate([op.rows(lambda k, a, b: sources[k][a:b].copy(), shapes, *end) for end in ends])

    scale, shift = rows(NormScale(), weight, variance), rows(NormShift(), bias, mean, weight, variance)
    assert scale.dtype == shift.dtype == np.float32
    exact = (x.astype(float) - mean) / np.sqrt(variance.astype(float) + 1e-5) * weight + bias
    assert np.allclose(x * scale + shift, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_sinusoids(step: int) -> None:
    """Against the definition in float64: frequencies from 1 down to 1 / 10000, sines before cosines."""
    op = Sinusoids(13, 8)
    assert op.shape() == (13, 8)
    found = np.concatenate([op.rows(lambda *_: FILM, (), at, min(at + step, 13)) for at in range(0, 13, step)])
    angles = np.arange(13)[:, None] * 10000.0 ** (-np.arange(4) / 3)
    assert found.dtype == np.float32
    assert np.allclose(found, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="sines and cosines"):
        Sinusoids(13, 7).shape()
