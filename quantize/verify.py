"""Checks a finished model: every weight finite, and every tensor what its source gives.

Quantizing is deterministic, so a tensor made without an importance matrix is made again and compared byte by byte. One
that differs (an importance matrix, or another program's search) is judged by its error: it may be at most TOLERANCE
times that of our own search without importance, which needs no table of what is usual for a type.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME, FLOATS, Format
from ggufsmith.container.layout import rows_of
from ggufsmith.container.parallel import TaskStopped, parallel_for, parallel_map
from ggufsmith.container.provenance import file_sha256
from ggufsmith.container.reader import Gguf, TensorInfo
from ggufsmith.container.shards import GgufSet
from ggufsmith.pipeline.stream import RowSource, Scratch, chunks
from ggufsmith.quantize.checks import check_decoded, check_row, nonfinite
from ggufsmith.quantize.rows import MODULES, codec_of, decode, encode, prepare

PIECE = 2**20  # bytes read at a time: they stay in the cache of a core
TOLERANCE = 2.0  # importance of real models raises the plain error of the lowest types by up to a half
F32 = BY_NAME["F32"]
COMPARABLE = {*FLOATS, *MODULES}  # what weights can be read from
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Examined:
    """One tensor looked at. nonfinite: weights, or scales of blocks, that are NaN or infinite. sha256: if asked for."""

    name: str
    nonfinite: int
    sha256: str | None


def examine(
    model: GgufSet, *, hashes: bool = False, threads: int = 1, advance: Advance = lambda weights: None
) -> list[Examined]:
    """Read every tensor once; `advance` is told of weights. A tensor is one thread's work, the largest come first."""
    tensors = sorted(model.tensors.values(), key=lambda tensor: -tensor.nbytes)

    def one(tensor: TensorInfo, stop: threading.Event) -> Examined:
        digest = hashlib.sha256() if hashes else None
        buffer = np.empty(min(tensor.nbytes, PIECE // tensor.format.size * tensor.format.size), np.uint8)
        bad = 0
        for start in range(0, tensor.nbytes, buffer.size):
            if stop.is_set():
                break
            piece = buffer[: tensor.nbytes - start]
            model.read_into(tensor, start, piece)
            bad += nonfinite(tensor.format, piece)
            if digest is not None:
                digest.update(piece.data)
            advance(piece.size // tensor.format.size * tensor.format.weights)
        return Examined(tensor.name, bad, digest.hexdigest() if digest else None)

    found = {each.name: each for each in parallel_map(lambda stop: partial(one, stop=stop), tensors, threads)}
    return [found[name] for name in model.tensors]


def digests(
    model: GgufSet, *, tensors: bool = True, threads: int = 1, advance: Advance = lambda size: None
) -> tuple[list[str], dict[str, str]]:
    """SHA-256, in hex, of every file and of every tensor. `advance` is told of bytes of files."""

    def tensor_sha256(tensor: TensorInfo, stop: threading.Event) -> str:
        digest, buffer = hashlib.sha256(), np.empty(min(tensor.nbytes, PIECE), np.uint8)
        for start in range(0, tensor.nbytes, PIECE):
            if stop.is_set():
                break
            piece = buffer[: tensor.nbytes - start]
            model.read_into(tensor, start, piece)
            digest.update(piece.data)
        return digest.hexdigest()

    def worker(stop: threading.Event) -> Callable[[Gguf | TensorInfo], tuple[Path | str, str]]:
        def one(task: Gguf | TensorInfo) -> tuple[Path | str, str]:
            if isinstance(task, TensorInfo):
                return task.name, tensor_sha256(task, stop)
            return task.path, file_sha256(task.path, told)

        def told(size: int) -> None:
            if stop.is_set():
                raise TaskStopped
            advance(size)

        return one

    tasks: list[Gguf | TensorInfo] = [*model.files, *(model.tensors.values() if tensors else ())]
    found = dict(parallel_map(worker, tasks, threads))
    return [found[file.path] for file in model.files], {name: found[name] for name in model.tensors if name in found}


@dataclass
class Compared:
    """One tensor beside its source.

    exact: made again, it has the same bytes.
    error: of the file's weights; ours: of the weights as we make them. Root mean square, relative to the source's.
    """

    name: str
    format: Format
    exact: bool = True
    power: float = 0
    squares: float = 0
    ours_squares: float = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, exact: bool, power: float, squares: float, ours: float) -> None:
        """Some rows more: sums of squares of the source, and of the errors. Safe from many threads."""
        with self.lock:
            self.exact &= exact
            self.power += power
            self.squares += squares
            self.ours_squares += ours

    @property
    def error(self) -> float:
        """Root mean square of the file's error, relative to the source's weights; absolute if those are all zero."""
        return math.sqrt(self.squares / self.power) if self.power else math.sqrt(self.squares)

    @property
    def ours(self) -> float:
        """The same of the weights as we make them."""
        return math.sqrt(self.ours_squares / self.power) if self.power else math.sqrt(self.ours_squares)

    @property
    def acceptable(self) -> bool:
        """Whether the file's weights are as near to the source as this type can be expected to come."""
        return self.exact or self.error <= TOLERANCE * self.ours


def compare(
    model: GgufSet, sources: Sequence[RowSource], *, threads: int = 1, advance: Advance = lambda weights: None
) -> list[Compared]:
    """Each tensor of `sources` that the model has, in the same shape, made again and compared."""
    pairs = [(source, model.tensors[source.name]) for source in sources if source.name in model.tensors]
    pairs = [(source, info) for source, info in pairs if _fit(source, info)]
    kinds = {(source.held, info.format) for source, info in pairs}
    kinds = {(held, made) for held, made in kinds if {held.name, made.name} <= COMPARABLE}
    prepare([(made, held, False) for held, made in kinds] + [(F32, made, False) for _, made in kinds])
    results = [Compared(info.name, info.format) for _, info in pairs]

    def worker(stop: threading.Event) -> Callable[[tuple[int, int, int]], None]:
        scratch = Scratch()

        def one(task: tuple[int, int, int]) -> None:
            index, first, last = task
            scratch.reset()
            source, info = pairs[index]
            _compare_rows(model, source, info, first, last, results[index], scratch)
            advance((last - first) * rows_of(source.shape)[1])

        return one

    parallel_for(worker, chunks([source for source, _ in pairs]), threads)
    return results


def _compare_rows(
    model: GgufSet, source: RowSource, info: TensorInfo, first: int, last: int, result: Compared, scratch: Scratch
) -> None:
    count, (rows, width) = last - first, rows_of(source.shape)
    size = info.nbytes // rows
    found = scratch.take(count * size).reshape(count, size)
    model.read_into(info, first * size, found)
    given = np.ascontiguousarray(source.rows(first, last, scratch))
    same = source.held is info.format and bool(np.array_equal(given.reshape(count, -1).view(np.uint8), found))
    if same or not {source.held.name, info.format.name} <= COMPARABLE:
        result.add(same, 1, 0 if same else math.inf, 0)
        return
    wide = scratch.take(count * width * 4).view(np.float32).reshape(count, width)
    _widen(source.held, given, wide)
    if not source.held.plain:
        check_decoded(source.held, given.reshape(count, -1), wide, source.origin)
    ours = scratch.take(count * size).reshape(count, size)
    needs = not info.format.plain and codec_of(info.format).encode is None
    encode(info.format, wide, ours, importance=np.ones(width, np.float32) if needs else None)
    same = not needs and bool(np.array_equal(ours, found))
    if same:  # or both were made wrongly
        check_row(info.format, found, wide, F32, lambda row: None, info.name)
    back = scratch.take(count * width * 4).view(np.float32).reshape(count, width)
    errors = []
    for data in (found,) if same else (found, ours):
        decode(info.format, data, back)
        if not info.format.plain:
            check_decoded(info.format, data, back, info.name)
        np.subtract(back, wide, out=back)
        errors.append(_squares(back))
    result.add(same, _squares(wide), errors[0], errors[-1])


def _squares(rows: NDArray[np.float32]) -> float:
    total = float(np.vdot(rows, rows))
    return total if math.isfinite(total) else float(np.square(rows, dtype=np.float64).sum())


def _widen(held: Format, rows: NDArray[Any], out: NDArray[np.float32]) -> None:
    if held.plain:
        encode(F32, rows, out.view(np.uint8), source=held)
    else:
        decode(held, rows, out)


def _fit(source: RowSource, info: TensorInfo) -> bool:
    """The same rows; a vector in blocks may be given as one row."""
    return math.prod(info.shape) == math.prod(source.shape) and info.shape[-1] == source.shape[-1]


def unpaired(model: GgufSet, sources: Sequence[RowSource]) -> Mapping[str, str]:
    """Tensors that only one side has, or with another shape, and what is wrong with them."""
    wanted = {source.name: source for source in sources}
    problems = {name: "the tensor is not in the source" for name in model.tensors if name not in wanted}
    for name, source in wanted.items():
        info = model.tensors.get(name)
        if info is None:
            problems[name] = "the tensor is in the source but not in the file"
        elif not _fit(source, info):
            problems[name] = f"has shape {info.shape}, the source gives {source.shape}"
    return problems
