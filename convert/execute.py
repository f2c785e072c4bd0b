"""Streams a plan: read rows, transform, encode, write at the offset. Bounded memory, all cores, one pass.

The work is cut into chunks of rows. Each thread takes the next chunk, and reads, computes and writes it on its own;
while one waits for the disk another computes. Every byte's place is fixed by the layout, so the output does not depend
on the number of threads or on their timing.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import Layout
from ggufsmith.container.writer import Writer
from ggufsmith.convert.checkpoint import Checkpoint, Source
from ggufsmith.convert.ops import Array, rows_of
from ggufsmith.convert.plan import SOURCE_FORMATS, Output
from ggufsmith.quantize.rows import Report, encode

CHUNK = 1 << 20  # weights per chunk: 4 MiB of float32, well inside the caches' reach
F32 = BY_NAME["F32"]


@dataclass(frozen=True)
class Target:
    """One output file: where each output of the plan goes, in the plan's order, and in which format."""

    layout: Layout
    writer: Writer


@dataclass
class Scratch:
    """Reused buffers of one thread: `take` hands out pieces that live until the next `reset`."""

    memory: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    used: int = 0
    wanted: int = 0

    def reset(self) -> None:
        if self.wanted > self.memory.size:
            self.memory = np.empty(self.wanted, np.uint8)
        self.used = self.wanted = 0

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` uninitialised bytes, 64-byte aligned relative to the buffer."""
        step = -(-nbytes // 64) * 64
        self.wanted += step
        if self.used + nbytes > self.memory.size:
            return np.empty(nbytes, np.uint8)
        piece = self.memory[self.used : self.used + nbytes]
        self.used += step
        return piece


def chunks(outputs: Sequence[Output]) -> Iterator[tuple[int, int, int]]:
    """(output, first row, last row exclusive) of every chunk, in file order."""
    for index, output in enumerate(outputs):
        rows, width = rows_of(output.shape)
        granule = output.op.granule(*(source.shape for source in output.sources))
        step = max(CHUNK // max(width * granule, 1), 1) * granule
        for start in range(0, rows, step):
            yield index, start, min(start + step, rows)


def execute(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    targets: Sequence[Target],
    *,
    threads: int,
    advance: Callable[[int], None] = lambda weights: None,
) -> None:
    """Write every tensor into every target. The first error, or an interrupt, stops all threads and is raised.

    Malformed: a weight is NaN or infinite. Unsupported: a finite weight that the target type cannot hold.
    """
    todo = chunks(outputs)
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        scratch = Scratch()
        while not stop.is_set():
            with lock:
                task = next(todo, None)
            if task is None:
                return
            scratch.reset()
            index, start, stop_row = task
            _chunk(checkpoint, outputs[index], index, start, stop_row, targets, scratch)
            advance((stop_row - start) * rows_of(outputs[index].shape)[1])

    with ThreadPoolExecutor(threads, thread_name_prefix="ggufsmith") as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()


def _chunk(
    checkpoint: Checkpoint,
    output: Output,
    index: int,
    start: int,
    stop: int,
    targets: Sequence[Target],
    scratch: Scratch,
) -> None:
    """Make rows start..stop of one output once, and write them to every target."""
    stored = SOURCE_FORMATS[output.sources[0].dtype] if output.sources else F32

    def read(k: int, first: int, last: int) -> Array:
        rows = _read(checkpoint, output.sources[k], first, last, scratch)
        return _encode(F32, rows, stored, output, first, scratch).view("<f4") if output.op.computes else rows

    shapes = tuple(source.shape for source in output.sources)
    rows = output.op.rows(read, shapes, start, stop)
    held = F32 if output.op.computes else stored
    for target in targets:
        spec = target.layout.tensors[index]
        encoded = _encode(spec.format, rows, held, output, start, scratch)
        row_bytes = spec.nbytes // rows_of(output.shape)[0]
        target.writer.write(target.layout.offsets[index] + start * row_bytes, encoded)


def _read(checkpoint: Checkpoint, source: Source, first: int, last: int, scratch: Scratch) -> Array:
    rows, width = rows_of(source.shape)
    size = source.nbytes // max(rows, 1)
    buffer = scratch.take((last - first) * size)
    checkpoint.read_into(source, first * size, buffer.data)
    return buffer.view(SOURCE_FORMATS[source.dtype].dtype["x"]).reshape(last - first, width)


def _encode(
    target: Format, rows: Array, stored: Format, output: Output, first: int, scratch: Scratch
) -> NDArray[np.uint8]:
    """Rows in another type, as bytes (rows, row bytes)."""
    count, width = rows.shape
    row_bytes = target.nbytes((width,))
    encoded = scratch.take(count * row_bytes).reshape(count, row_bytes)
    report = encode(target, np.ascontiguousarray(rows), encoded, source=stored)
    _refuse(report, target, output, first)
    return encoded


def _refuse(report: Report, target: Format, output: Output, first: int) -> None:
    """Raise for weights that would not survive."""
    names = " and ".join(source.name for source in output.sources[:2])
    where = f"{output.name} (from {names})" if names else output.name
    for finding, kind, what, fix in (
        (report.nonfinite, Malformed, "weights are NaN or infinite", "The checkpoint is damaged; download it again."),
        (report.overflow, Unsupported, f"weights are too large for {target.name}", "Convert with --outtype bf16."),
    ):
        if finding.first is not None:
            row, column = finding.first
            raise kind(f"{finding.count} {what}, the first at row {first + row}, column {column}", where=where, fix=fix)


def weights_of(outputs: Sequence[Output]) -> int:
    """All weights of a plan, the unit that `advance` counts in."""
    return sum(math.prod(output.shape) for output in outputs)
