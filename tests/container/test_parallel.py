"""Work on threads: every task once, the first error ends all, an interrupt too, and nothing is lost on the way."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_shards import write_set

from ggufsmith.container import provenance
from ggufsmith.container.parallel import TaskStopped, parallel_for, parallel_map
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.quantize.verify import digests


@pytest.mark.parametrize("threads", [1, 4, 40])
def test_every_task_once(threads: int) -> None:
    found: Counter[int] = Counter()
    lock = threading.Lock()

    def work(task: int) -> None:
        with lock:
            found[task] += 1

    parallel_for(lambda stop: work, range(1000), threads)
    assert found == Counter(range(1000))
    assert sorted(parallel_map(lambda stop: str, range(100), threads)) == sorted(map(str, range(100)))
    assert parallel_map(lambda stop: str, [], threads) == []
    assert parallel_map(lambda stop: lambda task: task, [None, 0, False], threads).count(None) == 1


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    def work(task: int) -> None:
        if task == 50:
            raise ValueError("at fifty")

    with pytest.raises(ValueError, match="at fifty"):
        parallel_for(lambda stop: work, tasks(), 3)
    assert 50 <= taken < 1000


def test_a_worker_that_cannot_begin() -> None:
    def worker(stop: threading.Event) -> Callable[[int], None]:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        parallel_for(worker, range(3), 2)


def test_long_tasks_are_told_and_the_error_is_that_of_who_failed() -> None:
    def worker(stop: threading.Event) -> Callable[[int], None]:
        def work(task: int) -> None:
            if task == 3:
                raise ValueError("the third")
            while not stop.wait(0.001):
                pass
            raise TaskStopped

        return work

    begun = time.monotonic()
    with pytest.raises(ValueError, match="the third"):
        parallel_for(worker, range(4), 4)
    assert time.monotonic() - begun < 20


def test_hashing_ends_when_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the end of the files, which can be minutes away."""
    monkeypatch.setattr(provenance, "PIECE", 8)
    lock, calls = threading.Lock(), 0

    def advance(size: int) -> None:
        nonlocal calls
        with lock:
            calls += 1
            first = calls == 1
        if first:
            raise KeyError("enough")
        time.sleep(0.05)

    with open_gguf_set(write_set(tmp_path)) as model, pytest.raises(KeyError, match="enough"):
        digests(model, tensors=False, threads=3, advance=advance)
    assert calls < 40
