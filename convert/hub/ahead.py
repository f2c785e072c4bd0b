"""Reads remote files ahead: what comes next in the plan is on its way while threads work on what is there."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.hub.http import Ranges, Remote

BLOCK = 4 << 20  # bytes of a request: long enough that a round trip between two does not show
AHEAD = 12  # blocks on their way
KEPT = 2 * AHEAD  # blocks in memory
CONNECTIONS = 8
Extent = tuple[Path, int, int]  # a file, and its bytes from start to stop


@dataclass(frozen=True)
class Block:
    """A piece of a file that is read at once: the file, and its number counted from the start."""

    path: Path
    start: int
    stop: int


@dataclass
class HeldBlock:
    """A block that is in memory or on its way there, and how many threads copy from it."""

    future: Future[NDArray[np.uint8]]
    readers: int = 0

    @property
    def idle(self) -> bool:
        """Whether nobody reads or waits for it, so that it may make room."""
        return not self.readers and self.future.done()


class ReadAhead:
    """A `stored.Reader` of remote files. Thread-safe; memory stays under KEPT blocks, which are used again.

    remotes: by the paths under which the checkpoint knows them. paths: those that will be read.
    """

    def __init__(self, remotes: Mapping[Path, Remote], paths: Sequence[Path], pause: float = 0.5) -> None:
        self._remotes, self._pause = {path: remotes[path] for path in paths}, pause
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="hub")
        self._local = threading.local()
        self._opened: list[Ranges] = []
        self._lock = threading.Lock()
        self._blocks: list[Block] = []
        self._places: dict[Path, tuple[list[int], list[int]]] = {}
        self._held: OrderedDict[int, HeldBlock] = OrderedDict()
        self._free: list[NDArray[np.uint8]] = []

    def expect(self, extents: Iterable[Extent]) -> None:
        """(file, start, stop) of what will be read, in the order of reading; everything else is read when asked for."""
        blocks = [
            Block(path, at, min(at + BLOCK, stop))
            for path, start, stop in joined(dict.fromkeys(extents))
            for at in range(start, stop, BLOCK)
        ]
        places: dict[Path, list[tuple[int, int]]] = {}
        for number, block in enumerate(blocks):
            places.setdefault(block.path, []).append((block.start, number))
        with self._lock:
            self._blocks = blocks
            self._held.clear()
            self._places = {
                path: ([start for start, _ in pairs], [number for _, number in pairs])
                for path, pairs in ((path, sorted(found)) for path, found in places.items())
            }

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from byte `offset` of the file on; waits for the blocks that it lies in. See `Reader`."""
        done, out = 0, np.frombuffer(buffer, np.uint8)  # NumPy copies without Python's lock
        while done < len(buffer):
            at = offset + done
            number = self._number(path, at)
            if number is None:
                self._fetch(Block(path, at, offset + len(buffer)), buffer[done:])
                return len(buffer)
            start = at - self._blocks[number].start
            with self._block(number) as block:
                part = block[start : start + len(buffer) - done]
                out[done : done + len(part)] = part
            done += len(part)
        return done

    def close(self) -> None:
        """Stop the threads and forget what was read."""
        self._stop.set()
        for ranges in self._opened:
            ranges.abort()
        self._pool.shutdown(cancel_futures=True)
        for ranges in self._opened:
            ranges.close()

    def _number(self, path: Path, offset: int) -> int | None:
        """The block that has this byte."""
        starts, numbers = self._places.get(path, ([], []))
        index = bisect_right(starts, offset) - 1
        return numbers[index] if index >= 0 and offset < self._blocks[numbers[index]].stop else None

    @contextmanager
    def _block(self, number: int) -> Iterator[NDArray[np.uint8]]:
        with self._lock:
            for ahead in range(number, min(number + AHEAD, len(self._blocks))):
                if ahead not in self._held:
                    self._held[ahead] = HeldBlock(self._pool.submit(self._load, self._blocks[ahead]))
            held = self._held[number]
            held.readers += 1
            self._held.move_to_end(number)
            self._drop()
        try:
            block = self._blocks[number]
            yield held.future.result()[: block.stop - block.start]
        finally:
            with self._lock:
                held.readers -= 1

    def _drop(self) -> None:
        """Forget the blocks that nobody wanted for the longest time."""
        idle = [number for number, held in self._held.items() if held.idle]
        for number in idle[: max(len(self._held) - KEPT, 0)]:
            future = self._held.pop(number).future
            if future.exception() is None:
                self._free.append(future.result())

    def _load(self, block: Block) -> NDArray[np.uint8]:
        with self._lock:
            memory = self._free.pop() if self._free else np.empty(BLOCK, np.uint8)
        self._fetch(block, memory.data[: block.stop - block.start])
        return memory

    def _fetch(self, block: Block, buffer: memoryview) -> None:
        ranges = getattr(self._local, "ranges", None)
        if ranges is None:
            ranges = self._local.ranges = Ranges(self._stop, self._pause)
            self._opened.append(ranges)
        ranges.read(self._remotes[block.path], block.start, buffer)


def joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same bytes in the same order, with extents that follow each other in a file as one."""
    last: Extent | None = None
    for path, start, stop in extents:
        if last and last[0] == path and last[2] == start:
            last = (path, last[1], stop)
        else:
            if last:
                yield last
            last = (path, start, stop)
    if last:
        yield last
