"""Importance matrices: for every matrix of a model, how much each of its columns matters.

`llama-imatrix` runs a text through a model and sums the squares of each matrix's inputs. Two formats (llama.cpp,
tools/imatrix and common/imatrix-loader.cpp): GGUF, with tensors NAME.in_sum2 (matrices, width) and NAME.counts
(matrices, 1) in float32, and the legacy `.dat`, little-endian: entry count; per entry the name's length and bytes, the
number of calls, the number of values, the values in float32; then optionally a chunk count and a data set's name. What
steers the quantizer is the mean: sums over counts. An expert that never ran has no mean, and gets 1 everywhere.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.layout import MAGIC
from ggufsmith.container.positional import read_at, regular_file
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.container.values import Metadata, string, u32
from ggufsmith.quantize.recipes.assign import Stored
from ggufsmith.quantize.recipes.rules import block_of, kept, role_of

SUMS, COUNTS = ".in_sum2", ".counts"
F32 = BY_NAME["F32"]
MAX_NAMES = 5  # that a message lists
MAX_BYTES = 2**32  # of values that are read; models of 384 experts in 60 layers have 1.5 GiB
MAX_ENTRIES = 2**20  # as many as a model may have tensors
MAX_TEXT = 2**16  # bytes of a name in a legacy file; that of a data set may be a path
LEAST = 4 + 4 + 4 + 4  # bytes of the smallest entry of a legacy file


@dataclass(frozen=True)
class Entry:
    """The importance of one matrix, or of a stack of them.

    weights: float32, flat: mean squares of the inputs, matrix by matrix.
    unused:  which matrices of the stack never ran, as far as the file says.
    """

    weights: NDArray[np.float32]
    unused: tuple[int, ...] = ()


@dataclass(frozen=True)
class Imatrix:
    """What a file holds. dataset: the name, without its folder, of the first text; chunks: 0 if not said."""

    path: Path
    entries: Mapping[str, Entry]
    dataset: str | None
    chunks: int

    @property
    def metadata(self) -> Metadata:
        """What llama-quantize records of it, without the path, so that the same content gives the same bytes."""
        keys: Metadata = {}
        if self.dataset:
            keys["quantize.imatrix.dataset"] = string(self.dataset)
        keys["quantize.imatrix.entries_count"] = u32(len(self.entries))
        if self.chunks > 0:
            keys["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return keys


@dataclass(frozen=True)
class Coverage:
    """How an importance matrix fits a model.

    covered: matrices that have an entry; missing: those that have none, embeddings and output aside.
    partial: stacks some of whose experts never ran, and how many.
    ignored: entries that are not used, with the reason.
    """

    covered: tuple[str, ...]
    missing: tuple[str, ...]
    partial: Mapping[str, int]
    ignored: tuple[str, ...]

    def summary(self) -> dict[str, list[str]]:
        """Which matrices have an entry and which have none, for reports."""
        return {"covered": list(self.covered), "missing": list(self.missing)}

    def notes(self) -> Iterator[str]:
        """Sentences for the report."""
        total = len(self.covered) + len(self.missing)
        yield f"importance for {len(self.covered)} of {total} matrices"
        if self.missing:
            yield f"no importance for {_some(self.missing)}"
        for name, count in self.partial.items():
            yield f"{name}: {count} experts were never used, so their weights count equally"
        yield from self.ignored


def open_imatrix(path: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Imatrix:
    """Read an importance matrix, in either format, and check all of it.

    include, exclude: keep or drop entries whose name contains one of these; not both.

    Malformed for a damaged file, for NaN, infinite or negative sums, for an entry that no matrix ran for; Usage for a
    filter that matches nothing or leaves nothing, or for a file that is not an importance matrix; Unsupported for more
    values than can be kept in memory. Of entries that are not kept, only the sizes are looked at.
    """
    if include and exclude:
        raise Usage("--include-weights and --exclude-weights cannot be used together", fix="Leave out one of the two.")
    with regular_file(path) as (fd, size):
        pass
    try:
        return _imatrix(path, fd, size, include, exclude)
    finally:
        os.close(fd)


def _imatrix(path: Path, fd: int, size: int, include: Sequence[str], exclude: Sequence[str]) -> Imatrix:
    start = memoryview(bytearray(len(MAGIC)))
    _read(path, fd, start, 0)
    index, dataset, chunks = (_gguf_index if start == MAGIC else _legacy_index)(path, fd, size)
    for part in (*include, *exclude):
        if not any(part in name for name in index):
            raise Usage(
                f"the importance matrix has no entry whose name contains {part!r}",
                where=path,
                fix=f"It has {_some(sorted(index))}.",
            )
    chosen = {
        name: place
        for name, place in index.items()
        if (not include or any(part in name for part in include)) and not any(part in name for part in exclude)
    }
    if not chosen:
        raise Usage(
            "--exclude-weights excludes every entry of this importance matrix", where=path, fix="Leave out --imatrix."
        )
    needed = sum(place.size for place in chosen.values())
    if needed > MAX_BYTES:
        raise Unsupported(
            f"{needed} bytes of values exceed the limit of {MAX_BYTES}",
            where=path,
            fix="Choose entries with --include-weights or --exclude-weights.",
        )
    entries = {name: _entry(path, name, *place.read(path, fd)) for name, place in sorted(chosen.items())}
    # Text files are named with their folder, on whatever system the matrix was made.
    return Imatrix(path, entries, PureWindowsPath(dataset).name if dataset else None, chunks)


def match(
    imatrix: Imatrix, tensors: Sequence[Stored], blocks: int, architecture: str
) -> tuple[list[NDArray[np.float32] | None], Coverage]:
    """The weights of every tensor, (width,) or (slices, width), None where there are none; and the coverage.

    tensors: with the names that the source has. Malformed if the matrix is of another model: shapes or layers that do
    not fit, or no name in common.
    """
    weights: list[NDArray[np.float32] | None] = []
    covered, missing, ignored, wrong = [], [], [], []
    partial: dict[str, int] = {}
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        weights.append(None)
        entry = imatrix.entries.get(tensor.name)
        if kept(tensor.name, tensor.shape, architecture) is not None:
            continue
        edge = role_of(tensor.name) in ("token_embd", "output")
        if entry is None:
            if not edge:
                missing.append(tensor.name)
            continue
        slices = tensor.shape[-3] if len(tensor.shape) > 2 else 1
        wanted = slices * tensor.shape[-1]
        if entry.weights.size == wanted:
            weights[-1] = entry.weights.reshape(slices, -1) if slices > 1 else entry.weights
            covered.append(tensor.name)
            if entry.unused:
                partial[tensor.name] = len(entry.unused)
        elif role_of(tensor.name) == "token_embd":
            ignored.append(f"{tensor.name}: {entry.weights.size} values for rows of {tensor.shape[-1]} are not used")
        else:
            wrong.append(f"{tensor.name}: {entry.weights.size} values, but the tensor needs {wanted}")
    strangers = [name for name in imatrix.entries if name not in names]
    wrong += [f"{name}: the model has {blocks} layers" for name in strangers if (block_of(name) or 0) >= blocks]
    if wrong or not covered:
        raise Malformed(
            "this importance matrix belongs to another model",
            where=imatrix.path,
            also=wrong[:MAX_NAMES] or ["none of its entries has the name of a matrix of this model"],
            fix="Make one with llama-imatrix for this model.",
        )
    if strangers:
        ignored.append(f"entries for tensors that the model does not have: {_some(strangers)}")
    return weights, Coverage(tuple(covered), tuple(missing), partial, tuple(ignored))


def _some(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _entry(path: Path, name: str, sums: NDArray[np.float32], counts: NDArray[np.float32]) -> Entry:
    """Means from sums, in float32 as llama-quantize takes them. counts: one per matrix, or one for all."""
    where = f"{path}: {name}"
    if not np.isfinite(sums).all():
        raise Malformed(f"{np.count_nonzero(~np.isfinite(sums))} values are NaN or infinite", where=where)
    if sums.min() < 0:
        raise Malformed(f"{np.count_nonzero(sums < 0)} values are negative, but sums of squares cannot be", where=where)
    if not np.isfinite(counts).all() or counts.min() < 0:
        raise Malformed("a count is negative, NaN or infinite", where=where)
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)
    if not whole.any():
        raise Malformed(
            "this entry has no counts: its matrix was never used",
            where=where,
            fix=f"Compute it over more text, or leave it out with --exclude-weights {name}.",
        )
    each = sums.reshape(whole.size, -1)
    means = np.where(whole[:, None] > 0, each / np.maximum(whole, 1)[:, None], np.float32(1))
    return Entry(means.reshape(-1), tuple(int(i) for i in np.flatnonzero(whole == 0)))


@dataclass(frozen=True)
class EntryPlace:
    """Where the sums of an entry are stored, and the counts they were taken over; all float32.

    sums:   offset in bytes, and how many. counts: likewise; None if `calls` is the one count of all matrices.
    """

    sums: tuple[int, int]
    counts: tuple[int, int] | None = None
    calls: int = 1

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return 4 * (self.sums[1] + (self.counts[1] if self.counts else 0))

    def read(self, path: Path, fd: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sums and counts. Malformed if the file ends before them, Failure if it cannot be read."""
        counts = np.array([self.calls], np.float32)
        return _floats(path, fd, *self.sums), _floats(path, fd, *self.counts) if self.counts else counts


def _floats(path: Path, fd: int, offset: int, count: int) -> NDArray[np.float32]:
    values = np.empty(count, "<f4")
    got = _read(path, fd, values.view(np.uint8).data, offset)
    if got < values.nbytes:
        raise Malformed(f"the file ends at byte {offset + got}: it was cut while it was read", where=path)
    return values.astype(np.float32, copy=False)


def _read(path: Path, fd: int, buffer: memoryview, offset: int) -> int:
    """As `read_at`. Failure if the file cannot be read."""
    try:
        return read_at(fd, buffer, offset)
    except OSError as error:
        raise Failure(f"the file cannot be read: {error.strerror}", where=path) from error


Index = tuple[Mapping[str, EntryPlace], str | None, int]  # by the names of matrices; the data set; the chunks, or 0


def _gguf_index(path: Path, fd: int, size: int) -> Index:
    with open_gguf(path) as gguf:
        names = [name.removesuffix(SUMS) for name in gguf.tensors if name.endswith(SUMS)]
        if not names:
            raise Usage(
                "this GGUF file is not an importance matrix: it has no tensors named *.in_sum2",
                where=path,
                fix="--imatrix takes the file that llama-imatrix writes.",
            )
        stems = set(names)
        lonely = [name for name in gguf.tensors if name.endswith(COUNTS) and name.removesuffix(COUNTS) not in stems]
        lonely += [name for name in names if name + COUNTS not in gguf.tensors]
        if lonely:
            raise Malformed(f"sums without counts, or counts without sums: {_some(lonely)}", where=path)
        index = {}
        for name in names:
            sums, counts = _extent(gguf, name + SUMS), _extent(gguf, name + COUNTS)
            if sums[1] % counts[1]:
                raise Malformed(f"{sums[1]} sums for {counts[1]} counts", where=f"{path}: {name}")
            index[name] = EntryPlace(sums, counts)
        datasets = gguf.metadata.get("imatrix.datasets")
        chunks = gguf.metadata.get("imatrix.chunk_count")
        first = datasets.data[0] if datasets and isinstance(datasets.data, tuple) and datasets.data else None
        return index, first, int(chunks.data) if chunks and isinstance(chunks.data, int) else 0


def _extent(gguf: Gguf, name: str) -> tuple[int, int]:
    tensor = gguf.tensors[name]
    if tensor.format is not F32:
        raise Malformed(f"the tensor is {tensor.format.name}, not F32", where=f"{gguf.path}: {name}")
    return tensor.offset, tensor.nbytes // 4


def _legacy_index(path: Path, fd: int, size: int) -> Index:
    """Everything is compared with the bytes that remain before it is believed; values are passed over."""
    at = 0

    def refuse(what: str) -> Malformed:
        return Malformed(
            f"{what}: neither a GGUF file nor a legacy importance matrix",
            where=path,
            fix="--imatrix takes the file that llama-imatrix writes.",
        )

    def skip(count: int, what: str) -> int:
        """Where these bytes begin."""
        nonlocal at
        if count < 0 or at + count > size:
            raise refuse(f"{what} needs {count} bytes at byte {at} of {size}")
        at += count
        return at - count

    def take(count: int, what: str) -> bytes:
        start, data = skip(count, what), bytearray(count)
        got = _read(path, fd, memoryview(data), start)
        if got < count:
            raise refuse(f"{what} ends at byte {start + got}")
        return bytes(data)

    def number(what: str) -> int:
        return int.from_bytes(take(4, what), "little", signed=True)

    def text(what: str) -> str:
        length = number(what)
        if length > MAX_TEXT:
            raise refuse(f"{what} has {length} bytes")
        return take(length, what).decode("utf-8", "replace").rstrip("\0")

    index = {}
    entries = number("the number of entries")
    if not 1 <= entries <= min(MAX_ENTRIES, size // LEAST):
        raise refuse(f"{entries} entries in {size} bytes")
    for k in range(entries):
        name = text(f"the name of entry {k}")
        calls = number(f"the calls of entry {k}")
        count = number(f"the size of entry {k}")
        if count < 1:
            raise refuse(f"entry {k} has {count} values")
        # The values are sums already divided by each matrix's own count, times the calls; 0 calls: as they are.
        index[name] = EntryPlace((skip(4 * count, f"entry {k}"), count), None, max(calls, 1))
    if at == size:
        return index, None, 0
    chunks = number("the chunk count")
    return index, text("the data set's name") if at < size else None, max(chunks, 0)
