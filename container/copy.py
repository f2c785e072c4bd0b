"""Splits and merges: the tensors of one model copied, byte for byte, into files of another cut. Bounded memory.

The kernel copies from file to file by itself, in less time than a program can read and write; the source is then read
for its checksums, the copy when it is sealed. One thread: a second was measured to cost more, in waiting for locks of
the kernel, than it won.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ggufsmith.container.checksum import PIECE as SUMMED
from ggufsmith.container.checksum import checksum
from ggufsmith.container.errors import Usage
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.positional import copy_at
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import GgufSet, Limits, SetWriter, ShardPlan, plan_shards

PIECE = 2**23  # bytes copied at a time

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Copied:
    """The files that were written, and their bytes."""

    paths: tuple[Path, ...]
    size: int


def plan_split(source: GgufSet, limits: Limits) -> ShardPlan:
    """The shards that a model would be cut into. Usage if it needs no cut."""
    layout = _layout(source)
    plan = plan_shards(layout, limits.counts(layout.tensors, layout.alignment))
    if len(plan.shards) == 1:
        raise Usage(
            f"{len(layout.tensors)} tensors of {layout.size} bytes fit in one file: there is nothing to split",
            where=source.path,
            fix="Lower --split-max-size or --split-max-tensors.",
        )
    return plan


def plan_merge(source: GgufSet) -> ShardPlan:
    """All of a shard set in one file. Usage if it is in one file already."""
    if len(source.files) == 1:
        raise Usage("the model is already a single file", where=source.path, fix="There is nothing to merge.")
    layout = _layout(source)
    return plan_shards(layout, (len(layout.tensors),))


def copy(
    source: GgufSet, plan: ShardPlan, path: Path, *, advance: Advance = lambda size: None, **options: Any
) -> Copied:
    """Write all tensors of `source` into the files of `plan` (see `SetWriter`). `advance` is told of weights copied."""
    with SetWriter(path, plan, inputs=source.paths, **options) as writer:
        for tensor, start, size, offset in _pieces(source, plan):
            writer.fill(offset, size, partial(_copied, source, tensor, start, size))
            advance(size * tensor.format.weights // tensor.format.size)
        writer.commit()
    return Copied(tuple(writer.paths), plan.whole.size)


def _layout(source: GgufSet) -> Layout:
    specs = [TensorSpec(tensor.name, tensor.shape, tensor.format) for tensor in source.tensors.values()]
    return lay_out(source.metadata, specs, alignment=source.alignment)


def _copied(source: GgufSet, tensor: TensorInfo, start: int, size: int, fd: int, offset: int) -> int:
    """Copy a piece to a file; its checksum, by the source."""
    copy_at(source.file_of(tensor).fd, tensor.offset + start, fd, offset, size)
    found = 0
    buffer = memoryview(bytearray(min(size, SUMMED)))
    for at in range(0, size, SUMMED):
        part = buffer[: size - at]
        source.read_into(tensor, start + at, part)
        found = checksum(part, found)
    return found


def _pieces(source: GgufSet, plan: ShardPlan) -> Iterator[tuple[TensorInfo, int, int, int]]:
    """(tensor, first byte, bytes, offset in the plan), in file order."""
    for tensor, offset in zip(source.tensors.values(), plan.whole.offsets, strict=True):
        for start in range(0, tensor.nbytes, PIECE):
            yield tensor, start, min(PIECE, tensor.nbytes - start), offset + start
