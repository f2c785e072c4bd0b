"""Reads importance matrices, in both formats of llama.cpp (tools/imatrix and common/imatrix-loader.cpp).

GGUF: tensors NAME.in_sum2 (counts, values) and NAME.counts (counts, 1) in float32, and keys `imatrix.*`.
Legacy `.dat`, little-endian: entry count; per entry the name's length and bytes, the number of calls, the number of
values, the values in float32; then optionally a chunk count and a data set's name. A call is a chunk, and the values
are means times the calls.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.layout import MAGIC
from ggufsmith.container.positional import read_at, regular_file
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.container.text import counted, some
from ggufsmith.container.values import Metadata
from ggufsmith.quantize.imatrix.record import Entry, Imatrix

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
MAKERS = "Give --imatrix a file that llama-imatrix or `ggufsmith imatrix` wrote."
F32 = BY_NAME["F32"]
MAX_BYTES = 2**32  # of values that are read; models of 384 experts in 60 layers have 1.5 GiB
MAX_ENTRIES = 2**20  # as many as a model may have tensors
MAX_TEXT = 2**16  # bytes of a name in a legacy file; that of a data set may be a path
LEAST = 4 + 4 + 4 + 4  # bytes of the smallest entry of a legacy file


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
    found = (_gguf_index if start == MAGIC else _legacy_index)(path, fd, size)
    index = found.places
    for part in (*include, *exclude):
        if not any(part in name for name in index):
            raise Usage(
                f"the importance matrix has no entry whose name contains {part!r}",
                where=path,
                fix=f"It has {some(sorted(index))}.",
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
    datasets = tuple(PureWindowsPath(name).name for name in found.datasets)
    return Imatrix(entries, datasets, found.chunks, found.chunk_size, path)


def _entry(path: Path, name: str, sums: NDArray[np.float32], counts: NDArray[np.float32]) -> Entry:
    """What was read, checked. counts: one per matrix, or one for all; whole numbers in float32, rounded here."""
    where = f"{path}: {name}"
    if not np.isfinite(sums).all():
        wrong = counted(int(np.count_nonzero(~np.isfinite(sums))), "value is", "values are")
        raise Malformed(f"{wrong} NaN or infinite", where=where)
    if sums.min() < 0:
        wrong = counted(int(np.count_nonzero(sums < 0)), "value is", "values are")
        raise Malformed(f"{wrong} negative, but sums of squares cannot be", where=where)
    if not np.isfinite(counts).all() or counts.min() < 0:
        raise Malformed("a count is negative, NaN or infinite", where=where)
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.int64)
    if not whole.any():
        raise Malformed(
            "this entry has no counts: its matrix was never used",
            where=where,
            fix=f"Compute it over more text, or leave it out with --exclude-weights {name}.",
        )
    return Entry(sums.reshape(whole.size, -1), whole)


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


@dataclass(frozen=True)
class Index:
    """What a file says of itself. places: by the names of tensors; the rest as `Imatrix` has it."""

    places: Mapping[str, EntryPlace]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0


def _gguf_index(path: Path, fd: int, size: int) -> Index:
    with open_gguf(path) as gguf:
        stems = [name.removesuffix(SUMS) for name in gguf.tensors if name.endswith(SUMS)]
        if not stems:
            raise Usage(
                "this GGUF file is not an importance matrix: it has no tensors named *.in_sum2",
                where=path,
                fix=MAKERS,
            )
        known = set(stems)
        lonely = [name for name in gguf.tensors if name.endswith(COUNTS) and name.removesuffix(COUNTS) not in known]
        lonely += [name for name in stems if name + COUNTS not in gguf.tensors]
        if lonely:
            raise Malformed(f"sums without counts, or counts without sums: {some(lonely)}", where=path)
        index = {}
        for name in stems:
            sums, counts = _extent(gguf, name + SUMS), _extent(gguf, name + COUNTS)
            if sums[1] % counts[1]:
                raise Malformed(f"{sums[1]} sums for {counts[1]} counts", where=f"{path}: {name}")
            index[name] = EntryPlace(sums, counts)
        datasets = gguf.metadata.get(DATASETS)
        names = datasets.data if datasets and isinstance(datasets.data, tuple) else ()
        return Index(index, tuple(names), _number(gguf.metadata, CHUNKS), _number(gguf.metadata, CHUNK_SIZE))


def _number(metadata: Metadata, key: str) -> int:
    value = metadata.get(key)
    return max(int(value.data), 0) if value and isinstance(value.data, int) else 0


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
            fix=MAKERS,
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
        return Index(index)
    chunks = number("the chunk count")
    datasets = (text("the data set's name"),) if at < size else ()
    return Index(index, tuple(filter(None, datasets)), max(chunks, 0))
