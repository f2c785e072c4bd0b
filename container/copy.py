"""Splits and merges: the tensors of one model copied, byte for byte, into files of another cut. Bounded memory."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Usage
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import GgufSet, Limits, SetWriter, ShardPlan, plan_shards

PIECE = 4 * 2**20  # bytes; each thread reads and writes through one buffer of this size
THREADS = 4  # copying waits for the disk, not for the processor

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
        raise Usage("the model is in one file already: there is nothing to merge", where=source.path)
    layout = _layout(source)
    return plan_shards(layout, (len(layout.tensors),))


def copy(
    source: GgufSet, plan: ShardPlan, path: Path, *, advance: Advance = lambda size: None, **options: Any
) -> Copied:
    """Write all tensors of `source` into the files of `plan` (see `SetWriter`). `advance` is told of weights copied."""
    with SetWriter(path, plan, inputs=source.paths, **options) as writer:
        _spread(source, plan, writer, advance)
        writer.commit()
    return Copied(tuple(writer.paths), plan.whole.size)


def _layout(source: GgufSet) -> Layout:
    specs = [TensorSpec(tensor.name, tensor.shape, tensor.format) for tensor in source.tensors.values()]
    return lay_out(source.metadata, specs, alignment=source.alignment)


def _pieces(source: GgufSet, plan: ShardPlan) -> Iterator[tuple[TensorInfo, int, int, int]]:
    """(tensor, first byte, bytes, offset in the plan), in file order."""
    for tensor, offset in zip(source.tensors.values(), plan.whole.offsets, strict=True):
        for start in range(0, tensor.nbytes, PIECE):
            yield tensor, start, min(PIECE, tensor.nbytes - start), offset + start


def _spread(source: GgufSet, plan: ShardPlan, writer: SetWriter, advance: Advance) -> None:
    todo, lock, stop = _pieces(source, plan), threading.Lock(), threading.Event()

    def work() -> None:
        buffer = memoryview(bytearray(PIECE))
        while not stop.is_set():
            with lock:
                piece = next(todo, None)
            if piece is None:
                return
            tensor, start, size, offset = piece
            source.read_into(tensor, start, buffer[:size])
            writer.write(offset, buffer[:size])
            advance(size * tensor.format.weights // tensor.format.size)

    threads = min(THREADS, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads, thread_name_prefix="copy") as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
