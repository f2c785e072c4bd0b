"""Streams tensors into files: read rows, encode, write at the offset. Bounded memory, all cores, one pass.

The work is cut into chunks of rows. Each thread takes the next chunk, and reads, computes and writes it on its own;
while one waits for the disk another computes. Every byte's place is fixed by the layout, so the output does not depend
on the number of threads or on their timing.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import Layout
from ggufsmith.quantize.checks import EVERY, check_decoded, check_row, check_scales
from ggufsmith.quantize.rows import FLOATS, Finding, Report, decode, encode, prepare
from ggufsmith.quantize.threads import spread

CHUNK = 1 << 20  # weights per chunk: so many that Python between the kernels, and one write at a time, do not count
F32 = BY_NAME["F32"]
Array = NDArray[Any]
Chunk = tuple[int, int, int]  # tensor, first row, last row exclusive
Done = tuple[str, int, list[Report]]  # of a chunk: tensor, first row, what was found for each output


@dataclass
class Scratch:
    """Reused buffers of one thread: `take` hands out pieces that live until the next `reset`."""

    memory: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    used: int = 0

    def reset(self) -> None:
        if self.used > self.memory.size:
            self.memory = np.empty(self.used, np.uint8)
        self.used = 0

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` uninitialised bytes at a multiple of 64 from the start of the buffer."""
        start, self.used = self.used, self.used + -(-nbytes // 64) * 64
        return self.memory[start : start + nbytes] if self.used <= self.memory.size else np.empty(nbytes, np.uint8)


class Tensor(Protocol):
    """Something that can make its rows.

    shape:   slowest axis first; all axes but the last are rows, a vector of n numbers is n rows of one.
    held:    the format that `rows` gives.
    granule: chunks should begin at a multiple of this many rows.
    origin:  what to call it in an error: where its weights come from.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def held(self) -> Format: ...
    @property
    def granule(self) -> int: ...
    @property
    def origin(self) -> str: ...

    def rows(self, start: int, stop: int, scratch: Scratch) -> Array:
        """Rows start..stop: (n, width) in the dtype of a plain format, (n, bytes per row) uint8 of a block format."""


class Opening(Protocol):
    """Tensors that another process can open too; it can be pickled. inputs: the files that they are read from."""

    @property
    def inputs(self) -> Sequence[Path]: ...
    def __call__(self) -> AbstractContextManager[Sequence[Tensor]]: ...


class Sink(Protocol):
    """Takes bytes at offsets: a `container.writer.Writer`, or a `container.shards.SetWriter`."""

    def write(self, offset: int, data: NDArray[np.uint8]) -> None: ...
    def holds(self, offset: int, size: int) -> bool: ...


@dataclass(frozen=True)
class Target:
    """One output. Its layout has the tensors in the order in which they are streamed.

    importance: for each tensor the importance matrix's weights, (width,) or (slices, width) for stacked experts.
    """

    layout: Layout
    writer: Sink
    importance: Sequence[NDArray[np.float32] | None] | None = None


def load_kernels(
    tensors: Sequence[Tensor],
    targets: Sequence[Target],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Compile the kernels that `stream` will need, or load them from the disk, and see that they work.

    advance: told how many are compiled, of how many that have to be. Returns the seconds that compiling took.
    """
    return prepare(
        (
            (spec.format, tensor.held, weights is not None)
            for target in targets
            for spec, tensor, weights in zip(
                target.layout.tensors, tensors, target.importance or [None] * len(tensors), strict=True
            )
            if spec.format is not tensor.held or tensor.held.name in FLOATS
        ),
        advance,
    )


def stream(
    tensors: Sequence[Tensor],
    targets: Sequence[Target],
    *,
    threads: int,
    advance: Callable[[int], None] = lambda weights: None,
) -> list[dict[str, Finding]]:
    """Write every tensor into every target. The first error, or an interrupt, stops all threads and is raised.

    Returns for each target the tensors some of whose weights had no usable importance (see `rows.Report`).

    Malformed: a weight is NaN or infinite. Unsupported: a finite weight that the target type cannot hold.
    """

    def worker(stop: threading.Event) -> Callable[[Chunk], Done]:
        scratch = Scratch()

        def work(chunk: Chunk) -> Done:
            done = make_chunk(tensors, chunk, targets, scratch)
            advance(weights_of(tensors, chunk))
            return done

        return work

    return findings(spread(worker, chunks(tensors), threads), len(targets))


def findings(done: Iterable[Done], count: int) -> list[dict[str, Finding]]:
    """What chunks found, by output and tensor. count: of outputs."""
    found: list[dict[str, Finding]] = [{} for _ in range(count)]
    for name, first, reports in done:
        for each, report in zip(found, reports, strict=True):
            _note(each, name, first, report.unweighted)
    return found


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, width) of a tensor of this shape."""
    if len(shape) < 2:
        return math.prod(shape), 1
    return math.prod(shape[:-1]), shape[-1]


def chunks(tensors: Sequence[Tensor]) -> Iterator[Chunk]:
    """Every chunk, in file order."""
    for index, tensor in enumerate(tensors):
        rows, width = rows_of(tensor.shape)
        step = max(CHUNK // max(width * tensor.granule, 1), 1) * tensor.granule
        for start in range(0, rows, step):
            yield index, start, min(start + step, rows)


def weights_of(tensors: Sequence[Tensor], chunk: Chunk) -> int:
    index, first, last = chunk
    return (last - first) * rows_of(tensors[index].shape)[1]


def is_held(tensors: Sequence[Tensor], chunk: Chunk, targets: Sequence[Target]) -> bool:
    """Whether no output needs this chunk any more (see `container.writer.Writer`)."""
    index, first, last = chunk
    width = rows_of(tensors[index].shape)[1]
    return all(target.writer.holds(*_place(target.layout, index, first, last, width)) for target in targets)


def make_chunk(tensors: Sequence[Tensor], chunk: Chunk, targets: Sequence[Target], scratch: Scratch) -> Done:
    """Make the rows of a chunk once, and write them to every output that does not hold them yet."""
    index, first, last = chunk
    scratch.reset()
    return tensors[index].name, first, _chunk(tensors[index], index, first, last, targets, scratch)


def _note(findings: dict[str, Finding], name: str, first: int, finding: Finding) -> None:
    """Add a finding of a chunk to that of its tensor; the first place is that of the lowest row."""
    if finding.first is None:
        return
    place = (first + finding.first[0], finding.first[1])
    before = findings.get(name)
    if before is not None and before.first is not None:
        findings[name] = Finding(before.count + finding.count, min(before.first, place))
    else:
        findings[name] = Finding(finding.count, place)


def _chunk(
    tensor: Tensor, index: int, first: int, last: int, targets: Sequence[Target], scratch: Scratch
) -> list[Report]:
    """Make rows first..last of one tensor once, and write them to every target that does not hold them yet."""
    held = tensor.held
    count, width = rows_of(tensor.shape)
    places = [_place(target.layout, index, first, last, width) for target in targets]
    reports = [Report() for _ in targets]
    wanted = [k for k, place in enumerate(places) if not targets[k].writer.holds(*place)]
    if not wanted:
        return reports
    rows = np.ascontiguousarray(tensor.rows(first, last, scratch))
    looked_at = first * width // CHUNK % EVERY == 0
    wide: Array | None = rows if held.plain else None
    made: dict[tuple[str, int], tuple[Array, Report]] = {}  # recipes agree on many tensors: each type is made once
    for k in wanted:
        target, (offset, size) = targets[k], places[k]
        format = target.layout.tensors[index].format
        importance = target.importance[index] if target.importance else None
        kind = format.name, id(importance)
        if format is held and held.name not in FLOATS:
            made[kind] = rows.view(np.uint8), Report()
        elif kind not in made:
            if wide is None:
                wide = scratch.take((last - first) * width * 4).view(np.float32).reshape(last - first, width)
                decode(held, rows, wide)
                if looked_at:
                    check_decoded(held, rows, wide, tensor.origin)
            encoded = scratch.take(size).reshape(last - first, -1)
            source = held if held.plain else F32
            report = _encode(format, wide, encoded, source, importance, first, count)
            _refuse(report, format, tensor, first)
            check_scales(format, encoded, tensor.origin)
            if looked_at:
                check_row(format, encoded, wide, source, partial(_of_row, importance, count, first), tensor.origin)
            made[kind] = encoded, report
        encoded, reports[k] = made[kind]
        target.writer.write(offset, encoded)
    return reports


def _place(layout: Layout, index: int, first: int, last: int, width: int) -> tuple[int, int]:
    """(offset, bytes) of rows first..last of a tensor."""
    row = layout.tensors[index].format.nbytes((width,))
    return layout.offsets[index] + first * row, (last - first) * row


def _encode(
    format: Format,
    rows: Array,
    out: NDArray[np.uint8],
    source: Format,
    importance: NDArray[np.float32] | None,
    first: int,
    count: int,
) -> Report:
    """`encode`, with the importance of each slice of a stack for the rows of that slice."""
    if importance is None or importance.ndim == 1:
        return encode(format, rows, out, source=source, importance=importance)
    each = count // len(importance)
    parts, start = [], 0
    while start < len(rows):
        stop = min(len(rows), ((first + start) // each + 1) * each - first)
        weights = _of_row(importance, count, first, start)
        parts.append((start, encode(format, rows[start:stop], out[start:stop], source=source, importance=weights)))
        start = stop
    return Report.merge(parts)


def _of_row(importance: NDArray[np.float32] | None, count: int, first: int, row: int) -> NDArray[np.float32] | None:
    """The importance of row first + row of `count`: of its slice, for a stack."""
    if importance is None or importance.ndim == 1:
        return importance
    return np.ascontiguousarray(importance[(first + row) * len(importance) // count])


def _refuse(report: Report, format: Format, tensor: Tensor, first: int) -> None:
    """Raise for weights that would not survive."""
    for finding, kind, what, fix in (
        (report.nonfinite, Malformed, "weights are NaN or infinite", "The model is damaged; get it again."),
        (
            report.overflow,
            Unsupported,
            f"weights are too large for {format.name}",
            "Choose bf16 or f32 for it (--outtype bf16; to-hf has --dtype bfloat16).",
        ),
    ):
        if finding.first is not None:
            row, column = finding.first
            what = f"{finding.count} {what}, the first at row {first + row}, column {column}"
            raise kind(what, where=tensor.origin, fix=fix)
