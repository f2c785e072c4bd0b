"""The candidates of a search, against the definition by which ggml builds its tables."""

import numpy as np
import pytest

from ggufsmith.quantize import grids

NAMES = list(grids.SHELLS)


def by_definition(name: str, u: int) -> list[int]:
    """The points within the smallest distinct distances of vector u, nearest first; a grid point has only itself."""
    grid, base = grids.codes(name).astype(int), len(grids.levels(name))
    vector = u // base ** np.arange(grid.shape[1]) % base
    distance = ((grid - vector) ** 2).sum(1)
    wanted = 1 if distance.min() == 0 else grids.SHELLS[name]
    reach = sorted(set(distance))[:wanted][-1]
    return sorted(np.flatnonzero(distance <= reach), key=lambda point: (distance[point], point))


@pytest.mark.parametrize("name", NAMES)
def test_candidates(name: str) -> None:
    table, grid = grids.candidates(name), grids.codes(name)
    rng = np.random.default_rng(1)
    for u in rng.integers(0, len(table.starts), 300):
        listed = table.points[table.starts[u] * grids.CHUNK : table.stops[u] * grids.CHUNK]
        expected = by_definition(name, int(u))
        assert list(listed[: len(expected)]) == expected
        assert len(listed) - len(expected) < grids.CHUNK
        assert set(listed[len(expected) :]) <= {expected[-1]}, "a short chunk is filled up with its last candidate"
    assert len(grid) == len({tuple(point) for point in grid})


@pytest.mark.parametrize("name", NAMES)
def test_the_first_chunks_are_the_grid(name: str) -> None:
    table, points = grids.candidates(name), len(grids.codes(name))
    assert np.array_equal(table.points[: points * grids.CHUNK : grids.CHUNK], np.arange(points))
    on_grid = table.starts < points
    assert on_grid.sum() == points
    assert np.all(table.stops[on_grid] - table.starts[on_grid] == 1)


@pytest.mark.parametrize("name", NAMES)
def test_nibbles(name: str) -> None:
    table, base = grids.candidates(name), len(grids.levels(name))
    codes = grids.codes(name)[table.points].astype(int)
    shifts = 4 * np.arange(codes.shape[1])
    assert np.array_equal((table.odd.view(np.uint32)[:, None] >> shifts) & 15, 2 * codes + 1)
    nibbles = (table.packed.view(np.uint32)[:, None] >> shifts) & 15
    assert np.array_equal(nibbles, base * (np.arange(codes.shape[1]) % (16 // base)) + codes)


def test_signs_are_even() -> None:
    """ksigns_iq2xs of ggml-common.h: seven bits as they are, and an eighth for an even number of minus signs."""
    assert np.array_equal(grids.EVEN_SIGNS & 127, np.arange(128))
    assert all(int(signs).bit_count() % 2 == 0 for signs in grids.EVEN_SIGNS)
