"""Kernels as they are compiled and kept."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apart import environment
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows
from ggufsmith.quantize.cache import READ_F32, WRITE_F32, WRITE_U16, Kernel, kernel
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
    """Writable, read-only and misaligned rows and outputs: equal bytes."""
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


@pytest.mark.parametrize(
    "given",
    [
        (np.zeros(W, np.float64), np.zeros(W, np.uint16)),
        (np.zeros((1, W), np.float32), np.zeros(W, np.uint16)),
        (np.zeros(2 * W, np.float32)[::2], np.zeros(W, np.uint16)),
        (np.zeros(W, np.float32), frozen(np.zeros(W, np.uint16))),
        (np.zeros(W, np.float32).tolist(), np.zeros(W, np.uint16)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given: tuple[Any, Any]) -> None:
    """Machine code would read or write what lies elsewhere."""
    with pytest.raises(TypeError, match="wanted"):
        halves(*given)


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


# ---- getting ready before the work ----

PREPARED = """
import json
from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows
told = []
conversions = [(BY_NAME[target], BY_NAME[source], False) for target, source in CONVERSIONS]
seconds = rows.prepare(conversions, lambda done, total: told.append((done, total)))
print(json.dumps([told, seconds]))
"""


def prepared(folder: Path, *conversions: tuple[str, str]) -> tuple[list[list[int]], float]:
    """What a process with its cache in this folder is told, and how long it says that it compiled."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARED.replace("CONVERSIONS", repr(conversions))],
        env={**os.environ, **environment(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    told, seconds = json.loads(done.stdout)
    return told, seconds


def test_progress_counts_what_has_to_be_compiled(tmp_path: Path) -> None:
    """Nothing that the cache has, and each kernel once: those to and from float16, and that of Q8_0."""
    plan = (("F16", "F32"), ("Q8_0", "F16"), ("Q8_0", "F16"))
    told, seconds = prepared(tmp_path, *plan)
    assert told == [[done, 3] for done in range(4)] and seconds > 0
    assert prepared(tmp_path, *plan) == ([], 0.0)
    told, _ = prepared(tmp_path, *plan, ("Q8_0", "F32"))
    assert told == [[0, 1], [1, 1]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("source", ["F32", "BF16", "Q8_0", "IQ4_XS"])
@pytest.mark.parametrize("target", [*rows.FLOATS, *rows.MODULES])
def test_all_that_a_conversion_needs(target: str, source: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other kernel runs, so none is compiled after the clock of the work has started."""
    held, made = BY_NAME[source], BY_NAME[target]
    x = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    given, out = np.empty((3, held.nbytes((512,))), np.uint8), np.empty((3, made.nbytes((512,))), np.uint8)
    rows.encode(held, x, given)
    called: set[Kernel] = set()
    real = Kernel.__call__

    def call(kernel: Kernel, *args: Any) -> Any:
        called.add(kernel)
        return real(kernel, *args)

    monkeypatch.setattr(Kernel, "__call__", call)
    importance = weighted or (not made.plain and rows.codec_of(made).encode is None)
    if not held.plain:
        rows.decode(held, given, x)
        held = BY_NAME["F32"]
    else:
        x = given.view(held.dtype["x"])
    rows.encode(made, x, out, source=held, importance=np.ones(512, np.float32) if importance else None)
    assert called == set(rows.needed(made, BY_NAME[source], weighted))


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
