"""A plan's outputs as tensors that can be streamed: source rows, read and transformed by the output's op."""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import rows_of
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.ops import Array
from ggufsmith.convert.plan import TensorPlan
from ggufsmith.convert.stored import Checkpoint, StoredTensor
from ggufsmith.pipeline.stream import Scratch
from ggufsmith.quantize.rows import encode

F32 = BY_NAME["F32"]


@dataclass(frozen=True)
class ConvertedTensor:
    """One output of a plan over an open checkpoint (see `stream.RowSource`).

    exact: the block format in which its rows come, if its sources are that in other words.
    """

    checkpoint: Checkpoint
    store: Store
    output: TensorPlan
    exact: Format | None = None

    @property
    def name(self) -> str:
        """The name in the GGUF file."""
        return self.output.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the GGUF file, slowest axis first."""
        return self.output.shape

    @property
    def stored(self) -> Format:
        """What the sources hold."""
        return BY_NAME[self.output.sources[0].dtype] if self.output.sources else F32

    @property
    def held(self) -> Format:
        """The format of its rows: blocks that its sources equal, F32 where an op computes, or what is stored."""
        if self.output.op.integers:
            return BY_NAME[self.output.op.integers]
        return self.exact or (F32 if self.output.op.computes else self.stored)

    @property
    def granule(self) -> int:
        """Chunks begin best at a multiple of this many rows, for the sake of the op and of all sources."""
        op = self.output.op.granule(*(source.shape for source in self.output.sources))
        return math.lcm(op, *(source.granule for source in self.output.sources))

    @property
    def origin(self) -> str:
        """The name in the GGUF file and those of its sources, for messages."""
        names = " and ".join(source.name for source in self.output.sources[:2])
        return f"{self.name} (from {names})" if names else self.name

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors of the checkpoint that it is made from."""
        return tuple(source.name for source in self.output.sources)

    @property
    def op(self) -> str:
        """The name of the op that makes it."""
        return type(self.output.op).__name__

    @property
    def fingerprint(self) -> bytes:
        """Of its plan, with every parameter of its op, of dequantizing and of adapters, and the stored extents."""
        return fingerprint(self.output, self.exact)

    def rows(self, start: int, stop: int, scratch: Scratch) -> Array:
        """Rows start..stop, read and transformed (see `RowSource.rows`)."""

        def read(k: int, first: int, last: int, scratch: Scratch = scratch) -> Array:
            rows = self._read(self.output.sources[k], first, last, scratch)
            return self._widen(rows, first, scratch) if self.output.op.computes else rows

        def kept(k: int, first: int, last: int) -> Array:
            source = self.output.sources[k]
            size = (last - first) * self.held.nbytes(rows_of(source.shape)[1:])
            key = first, last, self.held.name
            return self.store.kept((source.name, key), size, lambda: read(k, first, last, Scratch()))

        op = self.output.op
        shapes = tuple(source.shape for source in self.output.sources)
        try:
            return op.rows(kept if op.shares else read, shapes, start, stop)
        except ValueError as error:
            if not op.integers:
                raise
            raise Malformed(str(error), where=self.origin) from None

    def _read(self, source: StoredTensor, first: int, last: int, scratch: Scratch) -> Array:
        rows, width = rows_of(source.shape)
        if isinstance(source, DequantizedTensor) and source.exact and self.exact:
            blocks = scratch.take((last - first) * self.exact.nbytes((width,))).reshape(last - first, -1)
            if source.exact.blocks(self.store, first, last, blocks):
                return blocks
            dense = replace(self, exact=None)
            self._encode(self.exact, dense._read(source, first, last, scratch), first, blocks)
            return blocks
        if isinstance(source, DequantizedTensor):
            made = scratch.take((last - first) * width * 4).view(np.float32).reshape(last - first, width)
            with np.errstate(all="ignore"):  # what damaged scales make, the stream refuses
                source.weights.rows(self.store, first, last, made)
            return made
        size = source.nbytes // max(rows, 1)
        buffer = scratch.take((last - first) * size)
        self.checkpoint.read_into(source, first * size, buffer.data)
        return buffer.view(self.stored.dtype["x"]).reshape(last - first, width)

    def _widen(self, rows: Array, first: int, scratch: Scratch) -> Array:
        wide = scratch.take(rows.size * 4).reshape(len(rows), -1)
        self._encode(F32, rows, first, wide)
        return wide.view(np.float32)

    def _encode(self, format: Format, rows: Array, first: int, out: NDArray[np.uint8]) -> None:
        report = encode(format, rows, out, source=self.stored)
        if report.nonfinite.first is not None:
            row = first + report.nonfinite.first[0]
            raise Malformed(f"{report.nonfinite.count} weights are NaN or infinite, from row {row}", where=self.origin)


def tensors_of(
    checkpoint: Checkpoint, outputs: Sequence[TensorPlan], wanted: Mapping[str, Set[Format]] = MappingProxyType({})
) -> list[ConvertedTensor]:
    """The outputs as tensors. wanted: the formats that they are to have; one that the sources are is kept exactly."""
    store, tensors = Store(checkpoint), []
    for output in outputs:
        exact = exact_format(output)
        tensors.append(
            ConvertedTensor(checkpoint, store, output, exact if exact in wanted.get(output.name, ()) else None)
        )
    return tensors


def exact_format(output: TensorPlan) -> Format | None:
    """The block format that its sources are in other words, if all are of the same."""
    found = {
        source.exact.format if isinstance(source, DequantizedTensor) and source.exact else None
        for source in output.sources
    }
    return found.pop() if len(found) == 1 and output.op.whole_rows else None


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint, open inside a `with`; it is told in which order these tensors will be made."""

    checkpoint: Checkpoint
    tensors: tuple[ConvertedTensor, ...]

    def __enter__(self) -> Checkpoint:
        opened = self.checkpoint.__enter__()
        opened.expect(source for tensor in self.tensors for source in tensor.output.sources)
        return opened

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.checkpoint.__exit__(kind, error, trace)


@dataclass(frozen=True)
class CheckpointOpening:
    """Tensors of a checkpoint, to be opened in another process (see `stream.Opening`)."""

    checkpoint: Checkpoint
    tensors: tuple[ConvertedTensor, ...]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files on the disk that a worker needs."""
        return tuple(path for path in self.checkpoint.files if path not in self.checkpoint.open_files.remote)

    @contextmanager
    def __call__(self) -> Iterator[Sequence[ConvertedTensor]]:
        with self.checkpoint:
            yield self.tensors
