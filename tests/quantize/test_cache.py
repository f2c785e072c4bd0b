"""Kernels as they are compiled and kept."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from every_kernel import all_kernels
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows
from ggufsmith.quantize.cache import READ_F32, WRITE_F32, WRITE_U16, kernel
from ggufsmith.quantize.kernels.blocks import get, half_bits, put
from ggufsmith.quantize.simd import W

# ---- one compiled form for all kinds of arrays ----


def odd(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers at an odd address."""
    shifted = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    shifted[:] = array
    return shifted


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", rows.MODULES)
def test_one_compiled_form_takes_all_arrays(name: str) -> None:
    """Writable, read-only and misaligned rows and outputs: equal bytes, and nothing is compiled for them."""
    form = BY_NAME[name]
    x = np.random.default_rng(3).standard_normal((W + 1, 256)).astype(np.float32)
    importance = np.linspace(0.5, 2, 256, dtype=np.float32)
    empty, wide = np.zeros((W + 1) * form.nbytes((256,)), np.uint8), np.zeros((W + 1) * 256, np.float32)
    results = set()
    for change in (np.copy, frozen, odd):
        for room in (np.copy, odd):
            out, back = room(empty).reshape(W + 1, -1), room(wide).reshape(W + 1, -1)
            given = change(x.reshape(-1)).reshape(x.shape)
            rows.encode(form, given, out, importance=None if name == "Q8_0" else change(importance))
            rows.decode(form, change(out.reshape(-1)).reshape(out.shape), back)
            results.add((out.tobytes(), back.tobytes()))
    assert len(results) == 1
    assert {name: len(each.dispatcher.overloads) for name, each in all_kernels().items() if each.compiled} == {
        name: 1 for name, each in all_kernels().items() if each.compiled
    }


@pytest.mark.parametrize("source", rows.FLOATS)
@pytest.mark.parametrize("target", rows.FLOATS)
def test_conversions_take_all_arrays(source: str, target: str) -> None:
    x = np.zeros((3, 2 * W + 1), BY_NAME[source].dtype["x"])
    rows.encode(BY_NAME[source], np.random.default_rng(1).standard_normal(x.shape).astype(np.float32), x.view(np.uint8))
    results = set()
    for change in (np.copy, frozen, odd):
        for room in (np.copy, odd):
            out = room(np.zeros(x.size * BY_NAME[target].size, np.uint8)).reshape(3, -1)
            rows.encode(BY_NAME[target], change(x.reshape(-1)).reshape(x.shape), out, source=BY_NAME[source])
            results.add(out.tobytes())
    assert len(results) == 1
    assert all(len(each.dispatcher.overloads) == 1 for each in all_kernels().values() if each.compiled)


def test_threads_that_need_a_kernel_at_once() -> None:
    """Each of them may be the first; the others wait and then find it compiled."""

    @kernel(READ_F32, WRITE_F32)
    def doubled(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = x[i] * np.float32(2)

    def call(_: int) -> float:
        barrier.wait()
        out = np.empty(4, np.float32)
        doubled(np.ones(4, np.float32), out)
        return float(out.sum())

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == [8.0] * 8


# ---- one pattern for what is no number ----


def test_every_nan_is_stored_as_one_pattern() -> None:
    """Which sign 0 / 0 has depends on the CPU; numbers and infinities are as ever."""
    patterns = [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x3F800000, 0x80000000]
    x = np.resize(np.array(patterns, np.uint32), W).view(np.float32)
    found = np.empty(W, np.uint16)
    halves(x, found)
    assert found[: len(patterns)].tolist() == [0xFE00] * 4 + [0x7C00, 0xFC00, 0x3C00, 0x8000]
    assert half_bits(x).tolist() == found.tolist()


@kernel(READ_F32, WRITE_U16)
def halves(x: Any, out: Any) -> None:
    put(out, 0, half_bits(get(x, 0)))


@pytest.mark.parametrize("name", [name for name in rows.MODULES if "d" in (BY_NAME[name].dtype.names or ())])
def test_rows_that_overflow_hold_no_other_nan(name: str) -> None:
    form, found = BY_NAME[name], set()
    if form.dtype["d"] != np.uint16:
        return
    for power in range(15, 38):
        x = np.random.default_rng(power).standard_normal((W, 256)).astype(np.float32) * np.float32(10.0**power)
        out = np.empty((W, form.nbytes((256,))), np.uint8)
        for importance in (None, np.linspace(0, 2, 256, dtype=np.float32)):
            if importance is not None or rows.codec_of(form).encode is not None:
                rows.encode(form, x, out, importance=importance)
                scales = out.view(form.dtype)["d"]
                found |= set(scales[np.isnan(scales.view(np.float16))].tolist())
    assert found <= {0xFE00}
