"""A plan's outputs as tensors that can be streamed: source rows, read and transformed by the output's op."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggufsmith.container.errors import Malformed
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.convert.checkpoint import Checkpoint, Source
from ggufsmith.convert.ops import Array
from ggufsmith.convert.plan import SOURCE_FORMATS, Output
from ggufsmith.convert.sources.scheme import Made
from ggufsmith.convert.sources.store import Store
from ggufsmith.quantize.rows import encode
from ggufsmith.quantize.stream import Scratch, rows_of

F32 = BY_NAME["F32"]


@dataclass(frozen=True)
class Converted:
    """One output of a plan over an open checkpoint (see `stream.Tensor`)."""

    checkpoint: Checkpoint
    store: Store
    output: Output

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.output.shape

    @property
    def stored(self) -> Format:
        """What the sources hold."""
        return SOURCE_FORMATS[self.output.sources[0].dtype] if self.output.sources else F32

    @property
    def held(self) -> Format:
        return F32 if self.output.op.computes else self.stored

    @property
    def granule(self) -> int:
        op = self.output.op.granule(*(source.shape for source in self.output.sources))
        return math.lcm(op, *(source.granule for source in self.output.sources))

    @property
    def origin(self) -> str:
        names = " and ".join(source.name for source in self.output.sources[:2])
        return f"{self.name} (from {names})" if names else self.name

    def rows(self, start: int, stop: int, scratch: Scratch) -> Array:
        def read(k: int, first: int, last: int) -> Array:
            rows = self._read(self.output.sources[k], first, last, scratch)
            return self._widen(rows, first, scratch) if self.output.op.computes else rows

        return self.output.op.rows(read, tuple(source.shape for source in self.output.sources), start, stop)

    def _read(self, source: Source, first: int, last: int, scratch: Scratch) -> Array:
        rows, width = rows_of(source.shape)
        if isinstance(source, Made):
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
        report = encode(F32, rows, wide, source=self.stored)
        if report.nonfinite.first is not None:
            row = first + report.nonfinite.first[0]
            raise Malformed(f"{report.nonfinite.count} weights are NaN or infinite, from row {row}", where=self.origin)
        return wide.view(np.float32)


def tensors_of(checkpoint: Checkpoint, outputs: Sequence[Output]) -> list[Converted]:
    store = Store(checkpoint)
    return [Converted(checkpoint, store, output) for output in outputs]


def read_ahead(checkpoint: Checkpoint, tensors: Sequence[Converted]) -> None:
    """Tell the checkpoint in which order these tensors will be made."""
    checkpoint.expect(source for tensor in tensors for source in tensor.output.sources)
