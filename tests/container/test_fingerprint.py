"""Fingerprints: equal for equal values, different for anything else, and none for what has none."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.container import fingerprint as module
from ggufsmith.container.fingerprint import file_mark, fingerprint


@dataclass(frozen=True)
class Part:
    number: float
    name: str = "x"
    handle: object = field(default=None, compare=False)

    def method(self) -> None: ...


@dataclass(frozen=True)
class OtherPart:
    number: float
    name: str = "x"


class Numbers(IntEnum):
    ONE = 1


DIFFERENT: list[Any] = [
    *(None, True, False, 0, 1, 1.0, -0.0, 0.0, float("inf"), "", "1", "None", b"1", b"", Numbers.ONE),
    *((), (1,), (1, 1), ((1,), 1), (1, (1,)), ("ab", "c"), ("a", "bc"), {1}, {}, {1: 1}, {"a": 1}, {"a": {"b": 1}}),
    *(Path("a/b"), Path("b/a"), Path("b"), Part(1), Part(1.0), Part(2), Part(1, "y"), OtherPart(1), Part, OtherPart),
    *(Part(1).method, Part(2).method, fingerprint, file_mark, len, "\ud800"),
    *(np.zeros(2, np.float32), np.zeros(2, np.int32), np.zeros((1, 2), np.float32), np.array([0, -0.0], np.float32)),
    *(np.float32(1), np.float64(1), np.int64(1), np.array(1.0, np.float32)),
]


def test_different_values() -> None:
    found = [fingerprint(value) for value in DIFFERENT]
    assert len(set(found)) == len(found)
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint("a")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], (1, 2)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1, 2, 3}, frozenset({3, 2, 1})),
        (Path("/x/y/folder/file"), Path("folder/file")),
        (Part(1.0, handle=1), Part(1.0, handle=2)),
        (np.arange(6)[::2], np.array([0, 2, 4])),
        (bytearray(b"x"), memoryview(b"x")),
    ],
)
def test_equal_values(first: object, second: object) -> None:
    assert fingerprint(first) == fingerprint(second)


def test_the_same_in_every_process() -> None:
    """Sets and mappings have an order of their own in each."""
    code = (
        "from ggufsmith.container.fingerprint import fingerprint, file_mark\n"
        "from pathlib import Path\n"
        "print(fingerprint({'a', 'b', 'c'}, {'x': (1, 2.5), 'y': None}, Path('a/b'), file_mark).hex())"
    )
    found = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout)
    assert found == {
        fingerprint({"c", "a", "b"}, {"y": None, "x": (1, 2.5)}, Path("a/b"), file_mark).hex().encode() + b"\n"
    }


@pytest.mark.parametrize(
    "value", [object(), lambda: 0, partial(len, "x"), np.array([object()]), iter(()), (1, [object()]), {1: object()}]
)
def test_what_has_no_fingerprint(value: object) -> None:
    with pytest.raises(TypeError, match="has no fingerprint"):
        fingerprint(value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_equal_only_if_equal(first: Any, second: Any) -> None:
    same = repr(_sorted(first)) == repr(_sorted(second))  # unlike ==, it knows 1 from True
    assert (fingerprint(first) == fingerprint(second)) == same


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return tuple(map(_sorted, value)) if isinstance(value, tuple) else value


# ---- files ----


def test_a_small_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}", encoding="utf-8")
    first = file_mark(path)
    os.utime(path, ns=(1, 1))
    assert file_mark(path) == first
    path.write_text("[]", encoding="utf-8")
    assert file_mark(path) != first


def test_a_large_file_is_its_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 1)
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    os.utime(path, ns=(1, 1))
    first, content = file_mark(path), file_mark(path, by_content=True)
    path.write_bytes(b"xyz")
    os.utime(path, ns=(1, 1))
    assert file_mark(path) == first
    assert file_mark(path, by_content=True) != content
    os.utime(path, ns=(1, 2))
    assert file_mark(path) != first


def test_what_is_no_file(tmp_path: Path) -> None:
    assert file_mark(tmp_path / "missing") == (0, "")
    assert file_mark(tmp_path) == file_mark(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert file_mark(tmp_path / "pipe", by_content=True)[0] == 0  # and nobody waits for a writer
