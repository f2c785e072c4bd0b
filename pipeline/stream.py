"""Streams tensors into files: read rows, encode, write at the offset. Bounded memory, all cores, one pass.

The work is cut into chunks of rows. Each thread takes the next chunk, and reads, computes and writes it on its own;
while one waits for the disk another computes. Every byte's place is fixed by the layout, so the output does not depend
on the number of threads or on their timing.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME, FLOATS, Format
from ggufsmith.container.layout import Layout, rows_of
from ggufsmith.container.parallel import parallel_for
from ggufsmith.pipeline.encoder import Conversion, Encoder, RowRange
from ggufsmith.pipeline.findings import Finding, Report, Tally

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
        """Take back all pieces; the buffer grows if it was too small."""
        if self.used > self.memory.size:
            self.memory = np.empty(self.used, np.uint8)
        self.used = 0

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` uninitialised bytes at a multiple of 64 from the start of the buffer."""
        start, self.used = self.used, self.used + -(-nbytes // 64) * 64
        return self.memory[start : start + nbytes] if self.used <= self.memory.size else np.empty(nbytes, np.uint8)


class RowSource(Protocol):
    """A tensor that can make its rows, wherever they come from."""

    @property
    def name(self) -> str:
        """The name in the output."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Slowest axis first. All axes but the last are rows; a vector of n numbers is n rows of one."""

    @property
    def held(self) -> Format:
        """The format of what `rows` gives."""

    @property
    def granule(self) -> int:
        """Chunks should begin at a multiple of this many rows."""

    @property
    def origin(self) -> str:
        """What to call it in an error: where its weights come from."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of what it is made from, for reports."""

    @property
    def op(self) -> str:
        """What is done with them, for reports."""

    @property
    def fingerprint(self) -> bytes:
        """Of all that decides its rows, but for the content of files (see `container.fingerprint`): where its bytes are
        stored, and what is done to them, with every parameter.
        """

    def rows(self, start: int, stop: int, scratch: Scratch) -> Array:
        """Rows start..stop: (n, width) in the dtype of a plain format, (n, bytes per row) uint8 of a block format."""


class Opening(Protocol):
    """Tensors that another process can open too; it can be pickled. inputs: the files that they are read from."""

    @property
    def inputs(self) -> Sequence[Path]:
        """The files that the tensors are read from."""

    def __call__(self) -> AbstractContextManager[Sequence[RowSource]]: ...


class Sink(Protocol):
    """Takes bytes at offsets: a `container.writer.Writer`, or a `container.shards.SetWriter`."""

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Put the bytes of `data`, C-contiguous, at `offset` of the file."""

    def holds(self, offset: int, size: int) -> bool:
        """Whether these bytes are there already, and need no writing."""


class SharedSink(Sink, Protocol):
    """A sink whose files other processes write as well: a `container.shards.SetWriter`.

    temporaries: the files as they are called while they are written. starts: where each begins in the layout.
    """

    @property
    def temporaries(self) -> Sequence[Path]:
        """The temporary files, one for each shard."""

    @property
    def starts(self) -> Sequence[int]:
        """Where each file begins, in bytes, if all stood one behind the other."""

    def keep(self) -> None:
        """See that a run that is killed from now on can be resumed here."""

    def record(self, offset: int, size: int, checksum: int) -> None:
        """Note a write that another process did, with the checksum of its bytes (see `container.checksum`)."""


@dataclass(frozen=True)
class StreamTarget:
    """One output: some or all of the tensors that are streamed. Its layout has them in the same order.

    encoder:    makes the bytes of its formats.
    importance: for each tensor of the layout the importance matrix's weights, (width,) or (slices, width) for stacked
                experts.
    """

    layout: Layout
    writer: Sink
    encoder: Encoder
    importance: Sequence[NDArray[np.float32] | None] | None = None

    @cached_property
    def indices(self) -> Mapping[str, int]:
        """The place of every tensor in the layout, by name."""
        return {spec.name: index for index, spec in enumerate(self.layout.tensors)}


@dataclass(frozen=True)
class SharedTarget(StreamTarget):
    """One output that several processes write."""

    writer: SharedSink


def load_kernels(
    tensors: Sequence[RowSource],
    targets: Sequence[StreamTarget],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Compile the kernels that `stream` will need, or load them from the disk, and see that they work.

    advance: told how many are compiled, of how many that have to be. Returns the seconds that compiling took.
    """
    wanted: dict[Encoder, list[Conversion]] = {target.encoder: [] for target in targets}
    by_name = {tensor.name: tensor for tensor in tensors}
    for target in targets:
        specs = target.layout.tensors
        for spec, weights in zip(specs, target.importance or [None] * len(specs), strict=True):
            tensor = by_name[spec.name]
            if spec.format is not tensor.held or tensor.held.name in FLOATS:
                wanted[target.encoder].append((spec.format, tensor.held, weights is not None))
    return sum(encoder.load(conversions, advance) for encoder, conversions in wanted.items())


def stream(
    tensors: Sequence[RowSource],
    targets: Sequence[StreamTarget],
    *,
    threads: int,
    only: Collection[str] | None = None,
    advance: Callable[[int], None] = lambda weights: None,
) -> list[dict[str, Finding]]:
    """Write every tensor into every target. The first error, or an interrupt, stops all threads and is raised.

    only: the names of the tensors to write now, if not all.

    Returns for each target the tensors some of whose weights had no usable importance (see `rows.Report`).

    Malformed: a weight is NaN or infinite. Unsupported: a finite weight that the target type cannot hold.
    """

    tally = Tally(len(targets))

    def worker(stop: threading.Event) -> Callable[[Chunk], None]:
        scratch = Scratch()

        def work(chunk: Chunk) -> None:
            tally.add(*make_chunk(tensors, chunk, targets, scratch))
            advance(weights_of(tensors, chunk))

        return work

    wanted = chunks(tensors) if only is None else (chunk for chunk in chunks(tensors) if tensors[chunk[0]].name in only)
    parallel_for(worker, wanted, threads)
    return tally.unweighted


def chunks(tensors: Sequence[RowSource]) -> Iterator[Chunk]:
    """Every chunk, in file order, but that tensors made from one source come by turns: so its bytes are read once."""
    together: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        alone = len(tensor.sources) != 1
        together.setdefault(index if alone else (tensor.sources, tensor.shape, tensor.granule), []).append(index)
    for indices in together.values():
        tensor = tensors[indices[0]]
        rows, width = rows_of(tensor.shape)
        step = max(CHUNK // max(width * tensor.granule, 1), 1) * tensor.granule
        for start in range(0, rows, step):
            for index in indices:
                yield index, start, min(start + step, rows)


def weights_of(tensors: Sequence[RowSource], chunk: Chunk) -> int:
    """How many weights a chunk has."""
    index, first, last = chunk
    return (last - first) * rows_of(tensors[index].shape)[1]


def is_held(tensors: Sequence[RowSource], chunk: Chunk, targets: Sequence[StreamTarget]) -> bool:
    """Whether no output needs this chunk any more (see `container.writer.Writer`)."""
    index, first, last = chunk
    places = _places(tensors[index], first, last, targets)
    return all(targets[k].writer.holds(offset, size) for k, (_, offset, size) in places.items())


def make_chunk(tensors: Sequence[RowSource], chunk: Chunk, targets: Sequence[StreamTarget], scratch: Scratch) -> Done:
    """Make the rows of a chunk once, and write them to every output that does not hold them yet."""
    index, first, last = chunk
    scratch.reset()
    return tensors[index].name, first, _chunk(tensors[index], first, last, targets, scratch)


def _chunk(tensor: RowSource, first: int, last: int, targets: Sequence[StreamTarget], scratch: Scratch) -> list[Report]:
    """Make rows first..last of one tensor once, and write them to every target that wants and does not hold them."""
    held = tensor.held
    count, width = rows_of(tensor.shape)
    reports = [Report() for _ in targets]
    places = _places(tensor, first, last, targets)
    wanted = {k: place for k, place in places.items() if not targets[k].writer.holds(*place[1:])}
    if not wanted:
        return reports
    rows = np.ascontiguousarray(tensor.rows(first, last, scratch))
    place = RowRange(tensor.name, tensor.origin, first, count)
    wide: Array | None = rows if held.plain else None
    made: dict[
        tuple[str, int, Encoder], tuple[Array, Report]
    ] = {}  # recipes agree on many tensors: each type is made once
    for k, (index, offset, size) in wanted.items():
        target = targets[k]
        format = target.layout.tensors[index].format
        importance = target.importance[index] if target.importance else None
        kind = format.name, id(importance), target.encoder
        if format is held and held.name not in FLOATS:
            made[kind] = rows.view(np.uint8), Report()
        elif kind not in made:
            if wide is None:
                wide = scratch.take((last - first) * width * 4).view(np.float32).reshape(last - first, width)
                target.encoder.decode(held, rows, wide, place=place)
            encoded = scratch.take(size).reshape(last - first, -1)
            report = target.encoder.encode(
                format,
                wide,
                encoded,
                source=held if held.plain else F32,
                importance=importance,
                place=place,
            )
            made[kind] = encoded, report
        encoded, reports[k] = made[kind]
        target.writer.write(offset, encoded)
    return reports


def _places(
    tensor: RowSource, first: int, last: int, targets: Sequence[StreamTarget]
) -> dict[int, tuple[int, int, int]]:
    """Target -> (place in the layout, offset, bytes) of rows first..last of a tensor, for the targets that have it."""
    width, found = rows_of(tensor.shape)[1], {}
    for k, target in enumerate(targets):
        index = target.indices.get(tensor.name)
        if index is not None:
            row = target.layout.tensors[index].format.nbytes((width,))
            found[k] = index, target.layout.offsets[index] + first * row, (last - first) * row
    return found
