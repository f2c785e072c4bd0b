"""IQ types: readable twins, weights that the formats hold exactly, and what ggml does with sub-blocks of zeros."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import grids, rows
from ggufsmith.quantize.kernels import Steering
from ggufsmith.quantize.kernels.common import nearest_integer
from ggufsmith.quantize.kernels.iq_nearest import least, nearest_point, table_entries
from ggufsmith.quantize.simd import W

NAMES = [name for name in rows.MODULES if name.startswith(("IQ", "TQ", "MX", "NV"))]


def sparse_blocks(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """W blocks of which few sub-blocks are not zero (the twin is slow), and importance for a row of that one block."""
    weights, rng = format_of(name).weights, np.random.default_rng(len(name))
    x = np.zeros((W, weights), np.float32)
    x[1, : min(weights, 64)] = rng.standard_normal(min(weights, 64)) * 0.1
    x[W - 1, -16:] = rng.standard_normal(16)
    importance = (rng.standard_normal(weights) ** 2 + 0.01).astype(np.float32)
    return x.reshape(-1), np.tile(importance, W + 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_twin(name: str, weighted: bool) -> None:
    """The kernel's source, run by Python on NumPy lanes, gives the bytes of the compiled kernel."""
    codec = rows.codec_of(format_of(name))
    x, importance = sparse_blocks(name)
    steered = codec.encode is None or (weighted and codec.weighted is not None)
    run = codec.weighted if steered else codec.encode
    steering = Steering(importance, 0, 1, np.empty(0, np.float32)) if steered else ()
    compiled, plain = (np.zeros(W * format_of(name).size, np.uint8) for _ in range(2))
    assert run is not None
    run(x, compiled, *steering)
    with np.errstate(all="ignore"):
        run.py_func(x, plain, *steering)
    assert np.array_equal(compiled, plain)
    assert compiled.any()


@pytest.mark.parametrize("name", NAMES)
def test_decoder_twin(name: str) -> None:
    form, decode = format_of(name), rows.codec_of(format_of(name)).decode
    blocks = np.random.default_rng(3).integers(0, 128, W * form.size, dtype=np.uint8)
    compiled, plain = (np.zeros(W * form.weights, np.float32) for _ in range(2))
    decode(blocks, compiled)
    with np.errstate(all="ignore"):
        decode.py_func(blocks, plain)
    assert np.array_equal(compiled, plain, equal_nan=True)


def round_trip(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    form = format_of(name)
    packed, back = np.empty((1, form.nbytes(x.shape)), np.uint8), np.empty((1, x.size), np.float32)
    rows.encode(form, x.reshape(1, -1), packed, importance=np.ones(x.size, np.float32))
    rows.decode(form, packed, back)
    return back[0]


@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS"])
def test_iq4_holds_its_values_exactly(name: str) -> None:
    """Sixteen values times a power of two, all in each sub-block; a sub-block of IQ4_XS then has the scale -32."""
    x = np.resize(grids.IQ4_VALUES, 256) * np.float32(2.0**-7)
    assert np.array_equal(round_trip(name, x), x)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_grid_points_come_back(name: str) -> None:
    """Weights in the shape of grid points: the codes are found again, so errors are those of the scale alone."""
    grid = grids.codes(name)
    points = grid[np.random.default_rng(5).integers(0, len(grid), 256 // grid.shape[1])]
    points[:: 16 // grid.shape[1]] = grid[np.argmax(grid.sum(1))]  # so that all scales are nearly equal
    x = (2 * points.reshape(-1) + 1).astype(np.float32)
    back = round_trip(name, x)
    assert np.array_equal(np.argsort(np.unique(x)), np.argsort([back[x == value].mean() for value in np.unique(x)]))
    assert np.all(np.abs(back / x - 1) < 0.35)


def test_nearest_point_takes_the_first_of_equals() -> None:
    """Two candidates in different chunks with one distance: the earlier one."""
    nearest = nearest_point(8, 3)
    packed = np.full(32, 0x22100000, np.int64).astype(np.int32)
    packed[[9, 20]] = 0
    near = np.zeros(16, np.float32)
    far = np.ones(16, np.float32)
    far[0] = 0
    assert nearest(packed, 0, 2, near, far) == 9
    packed[9] = packed[0]
    assert nearest(packed, 0, 2, near, far) == 20


def test_keys_order_by_distance_and_place() -> None:
    far, near = np.full(16, 3.0, np.float32), np.full(16, 2.5, np.float32)
    near[[4, 7]] = 0.25
    assert least(near, 16) < least(far, 0)
    assert least(near, 16) & 0xFFFFFFFF == 20
    assert least(far, 0) < least(far, 16)


@pytest.mark.parametrize(("dims", "levels"), [(8, 3), (4, 8)])
def test_table_entries(dims: int, levels: int) -> None:
    """Entry levels * (i % per_table) + code of table i // per_table is for position i and level 2 * code + 1."""
    position, level = table_entries(dims, levels)
    per_table = 16 // levels
    for i in range(dims):
        for code in range(levels):
            entry = 16 * (i // per_table) + levels * (i % per_table) + code
            assert (position[entry], level[entry]) == (i, 2 * code + 1)


def test_nearest_integer() -> None:
    """Ties to even; beyond 2**22 the low mantissa bits of x + 1.5 * 2**23, as in ggml."""
    x = np.resize(np.float32([0.5, 1.5, -0.5, -2.5, 2.4999, 4194304, 1e30, np.inf, np.nan]), W)
    assert list(nearest_integer(x)[:6]) == [0, 2, 0, -2, 2, -4194304]
    assert list(nearest_integer(x)[7:9]) == [-4194304, 0]


def test_iq3_s_keeps_its_place_behind_zeros() -> None:
    """ggml writes what follows a sub-block of zeros one place too early (rows.py)."""
    x = np.tile(np.random.default_rng(7).standard_normal(32).astype(np.float32), 8)
    x[32:64] = 0
    form = format_of("IQ3_S")
    packed, back = np.empty((1, form.size), np.uint8), np.empty((1, 256), np.float32)
    rows.encode(form, x.reshape(1, -1), packed)
    rows.decode(form, packed, back)
    error = np.abs(back[0] - x).reshape(8, 32).max(1)
    assert error.max() < 0.7
    assert np.ptp(np.delete(back.reshape(8, 32), 1, axis=0), axis=0).max() == 0
