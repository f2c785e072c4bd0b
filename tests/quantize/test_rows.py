"""The interface: what is refused, what is reported, and that bytes depend on nothing but the row and its importance."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import cpu, rows
from ggufsmith.quantize.rows import Finding, Report
from ggufsmith.quantize.simd import W

Q8_0, Q4_0, Q4_K, Q6_K = (format_of(name) for name in ("Q8_0", "Q4_0", "Q4_K", "Q6_K"))


def encode(
    name: str, x: NDArray[Any], importance: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.uint8], Report]:
    form = format_of(name)
    out = np.full((len(x), form.nbytes((x.shape[1],))), 0xA5, np.uint8)
    return out, rows.encode(form, x, out, importance=importance)


def decode(name: str, out: NDArray[np.uint8]) -> NDArray[np.float32]:
    form = format_of(name)
    back = np.empty((len(out), out.shape[1] // form.size * form.weights), np.float32)
    rows.decode(form, out, back)
    return back


def normal(n: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


# ---- the same bytes however the work is cut ----


@pytest.mark.parametrize(("name", "weighted"), [("Q4_K", True), ("Q6_K", False), ("Q4_0", True), ("Q8_0", False)])
@settings(deadline=None, max_examples=12)
@given(cuts=st.lists(st.integers(1, W + 5), min_size=1, max_size=4), blocks=st.integers(1, 3))
def test_bytes_do_not_depend_on_cuts(name: str, weighted: bool, cuts: list[int], blocks: int) -> None:
    x = normal(sum(cuts), 256 * blocks)
    importance = strategies.squares(np.random.default_rng(1), 256 * blocks) if weighted else None
    whole = encode(name, x, importance)[0]
    edges = np.cumsum([0, *cuts]).tolist()
    parts = [encode(name, x[a:b], importance)[0] for a, b in pairwise(edges)]
    assert np.array_equal(whole, np.concatenate(parts))
    back = [decode(name, part) for part in parts]
    assert np.array_equal(decode(name, whole), np.concatenate(back))


def test_bytes_do_not_depend_on_chunks_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(64, 512)
    half = x.astype(np.float16).view(np.uint16)
    expected = encode("Q4_K", half.view(np.float16).astype(np.float32))[0]
    monkeypatch.setattr(rows, "CHUNK", 2048)
    out = np.zeros_like(expected)

    def work(share: int) -> None:
        rows.encode(Q4_K, half[share::4].copy(), part := np.empty_like(out[share::4]), source=format_of("F16"))
        out[share::4] = part

    threads = [threading.Thread(target=work, args=(share,)) for share in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(out, expected)


def test_read_only_and_unaligned_rows() -> None:
    x = normal(5, 256)
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(5, 256)
    assert np.array_equal(encode("Q4_K", raw)[0], encode("Q4_K", x)[0])


# ---- what is reported ----


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "Q6_K"])
def test_nan_and_infinity_are_located_and_not_quantized(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK", 1024)  # two rows a chunk
    x = normal(9, 512)
    x[5, 300], x[5, 301], x[7, 0] = np.nan, -np.inf, np.inf
    out, report = encode(name, x)
    assert report.nonfinite == Finding(3, (5, 300)) and report.overflow == Finding()
    assert not out[4:8].any()
    assert np.array_equal(out[8:], encode(name, x[8:])[0])


@pytest.mark.parametrize(
    ("name", "value"), [("Q6_K", 1e19), ("Q3_K", 1e19), ("Q4_K", 1e12), ("Q8_0", 1e9), ("Q4_1", -7e4)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_an_outlier_that_erases_its_neighbours_is_reported(name: str, value: float, weighted: bool) -> None:
    x = normal(40, 512)
    x[33, 260] = value
    _, report = encode(name, x, np.ones(512, np.float32) if weighted else None)
    assert report.overflow.count >= 1
    row, column = report.overflow.first or (0, 0)
    assert row == 33 and 256 <= column < 512


def test_large_weights_that_fit_are_fine() -> None:
    x = normal(3, 512) * np.float32(1e5)
    for name in ("Q6_K", "Q4_K", "Q8_0"):
        out, report = encode(name, x)
        assert report == Report()
        assert np.abs(decode(name, out) - x).max() < 1e5


@pytest.mark.parametrize(
    ("name", "group"),
    [("Q4_K", 256), ("Q5_K", 256), ("Q2_K", 256), ("Q6_K", 16), ("Q3_K", 16), ("Q4_0", 32), ("Q5_0", 32)],
)
@pytest.mark.parametrize("nothing", [0.0, -1.0, np.nan, np.inf])
def test_importance_that_says_nothing_erases_nothing(name: str, group: int, nothing: float) -> None:
    x = normal(4, 768)
    importance = strategies.squares(np.random.default_rng(1), 768)
    importance[256 : 256 + group] = nothing
    out, report = encode(name, x, importance)
    assert report.unweighted == Finding(4 * group, (0, 256))
    lost = x - decode(name, out)
    assert np.sqrt(np.mean(lost[:, 256 : 256 + group] ** 2)) < 0.5
    everywhere, report = encode(name, x, np.full(768, nothing, np.float32))
    assert report.unweighted.count == x.size
    assert np.array_equal(everywhere, encode(name, x, np.ones(768, np.float32))[0])


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1"])
def test_formats_that_survive_zero_importance(name: str) -> None:
    x = normal(4, 64)
    out, report = encode(name, x, np.zeros(64, np.float32))
    assert report == Report()
    assert np.array_equal(out, encode(name, x, np.zeros(64, np.float32))[0]) and decode(name, out).any()
    assert encode(name, x, np.full(64, -1, np.float32))[1].unweighted.count == x.size


def test_a_few_zeros_are_importance_too() -> None:
    importance = strategies.squares(np.random.default_rng(1), 256)
    importance[::2] = 0
    assert encode("Q6_K", normal(1, 256), importance)[1] == Report()


def test_reports_are_merged_in_the_order_of_rows() -> None:
    first = Report(nonfinite=Finding(2, (1, 5)))
    second = Report(nonfinite=Finding(1, (0, 3)), overflow=Finding(4, (2, 2)))
    merged = Report.merge([(0, Report()), (10, first), (20, second)])
    assert merged == Report(nonfinite=Finding(3, (11, 5)), overflow=Finding(4, (22, 2)))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": np.zeros((2, 512), np.float64)}, "float64"),
        ({"rows": np.zeros(512, np.float32)}, "1 dimensions"),
        ({"rows": np.zeros((2, 500), np.float32)}, "multiple of 256"),
        ({"rows": np.zeros((2, 1024), np.float32)[:, ::2]}, "contiguous"),
        ({"out": np.zeros((2, 287), np.uint8)}, "wanted uint8"),
        ({"out": np.zeros((3, 288), np.uint8)}, "wanted uint8"),
        ({"importance": np.ones(256, np.float32)}, "importance of shape"),
        ({"source": format_of("F16")}, "as F16"),
        ({"source": Q8_0}, "as Q8_0"),
        ({"target": format_of("I8"), "out": np.zeros((2, 512), np.uint8)}, "I8 is not"),
        ({"target": format_of("Q8_1"), "out": np.zeros((2, 576), np.uint8)}, "no kernels for Q8_1"),
        ({"target": format_of("IQ2_XXS"), "out": np.zeros((2, 132), np.uint8)}, "without an importance matrix"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], says: str) -> None:
    arguments = {"target": Q4_K, "rows": np.zeros((2, 512), np.float32), "out": np.zeros((2, 288), np.uint8), **change}
    with pytest.raises(ValueError, match=says):
        rows.encode(arguments.pop("target"), arguments.pop("rows"), arguments.pop("out"), **arguments)


def test_no_rows() -> None:
    for name in ("Q4_K", "F16"):
        assert encode(name, np.empty((0, 512), np.float32))[1] == Report()


# ---- start-up, the cache on disk, other CPUs ----


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )


def test_numba_is_loaded_on_first_use_only() -> None:
    script = "import sys, ggufsmith.quantize.rows, ggufsmith.quantize.kernels; print('numba' in sys.modules)"
    assert python(script).stdout.strip() == "False"


HASH = """
import hashlib, numpy as np
from ggufsmith.container.formats import format_of
from ggufsmith.quantize import cpu, rows
rng = np.random.default_rng(7)
x = (rng.standard_normal((37, 512)) * 10.0 ** rng.integers(-6, 3, (37, 1))).astype(np.float32)
importance = rng.random(512).astype(np.float32)
digest = hashlib.sha256()
for name in NAMES:
    form = format_of(name)
    out, back = np.empty((37, form.nbytes((512,))), np.uint8), np.empty((37, 512), np.float32)
    for weights in (None, importance):
        rows.encode(form, x, out, importance=weights)
        digest.update(out.tobytes())
    rows.decode(form, out, back)
    digest.update(back.tobytes())
"""


def digest_here(names: tuple[str, ...]) -> str:
    scope: dict[str, Any] = {"NAMES": names}
    exec(HASH, scope)
    return str(scope["digest"].hexdigest())


LEVELS = [level.name for level in (*cpu.LEVELS.values(), cpu.native()) if cpu.runs_here(level)]


@pytest.mark.parametrize("level", LEVELS)
def test_bytes_do_not_depend_on_the_level(level: str) -> None:
    names = ("F16", "Q8_0", "Q4_K")
    there = python(f"NAMES = {names}\n{HASH}\nprint(digest.hexdigest())", GGUFSMITH_CPU=level).stdout.strip()
    assert there == digest_here(names)


CACHED = """
import numpy as np
from ggufsmith.container.formats import format_of
from ggufsmith.quantize import cache, rows
from ggufsmith.quantize.kernels import floats
print(rows.prepare([(format_of("F16"), format_of("F32"), False)]) == 0, cache.folder())
"""


def cached_run(folder: Path) -> tuple[bool, str]:
    there = {"XDG_CACHE_HOME": str(folder), "LOCALAPPDATA": str(folder), "HOME": str(folder)}
    cached, where = python(CACHED, **there).stdout.strip().split(maxsplit=1)
    return cached == "True", where


def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert not cached_run(tmp_path)[0]
    cached, where = cached_run(tmp_path)
    assert cached and Path(where).is_relative_to(tmp_path)
    for path in Path(where).glob("*.o"):
        path.write_bytes(path.read_bytes()[:-100])  # damaged
    assert not cached_run(tmp_path)[0]
    for path in Path(where).glob("*.o"):
        path.write_bytes(b"")
    assert not cached_run(tmp_path)[0]
    assert cached_run(tmp_path)[0]
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    blocked.chmod(stat.S_IRUSR)
    assert cached_run(blocked) == (False, "None")


def test_every_kernel_of_a_change_in_any_source_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    from ggufsmith.quantize import machine_code

    before = machine_code.source_stamp()
    monkeypatch.setattr(Path, "read_bytes", lambda path, real=Path.read_bytes: real(path) + b"#")
    assert machine_code.source_stamp() != before
