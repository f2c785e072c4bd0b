"""What an importance matrix holds: for every matrix of a model, how much each of its columns matters.

A text is run through a model, and the squares of each matrix's inputs are summed. What steers the quantizer is the
mean: sums over counts. An expert that no token ever reached has no mean, and gets 1 everywhere, so that its columns
count equally (llama.cpp, tools/quantize). llama.cpp: tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.container.text import listed
from ggufsmith.container.values import Metadata, string, u32

CHUNK = 512  # tokens; llama-imatrix's default


@dataclass(frozen=True)
class Entry:
    """What was summed for one matrix, or for a stack of them.

    sums:   float32 (counts, values): squares of the inputs, column by column, matrix by matrix.
    counts: int64 (counts,): tokens that were summed; one for each matrix of the stack, or one for all of it.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]

    @property
    def weights(self) -> NDArray[np.float32]:
        """float32, flat: mean squares, matrix by matrix, in float32 as llama-quantize takes them; 1 for `unused`."""
        counts = self.counts.astype(np.float32)[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), np.float32(1)).reshape(-1)

    @property
    def unused(self) -> tuple[int, ...]:
        """Which matrices of the stack no token ever reached."""
        return tuple(int(k) for k in np.flatnonzero(self.counts == 0))

    @property
    def coverage(self) -> float:
        """The share of the matrices of the stack that saw a token, 0 to 1."""
        return 1 - len(self.unused) / len(self.counts)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    entries:    by the names of GGUF tensors.
    datasets:   the names, without their folders, of the texts.
    chunks:     pieces of text that were summed; 0 if not said.
    chunk_size: tokens of each; 0 if not said, as in legacy files, whose counts are then those of chunks.
    path:       where it was read from.
    method:     keys that say what else is done with it.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0
    path: Path | None = None
    method: Metadata = field(default_factory=dict)

    @property
    def dataset(self) -> str | None:
        """The first text."""
        return self.datasets[0] if self.datasets else None

    @property
    def metadata(self) -> Metadata:
        """What llama-quantize records of it, without the path, so that the same content gives the same bytes."""
        keys: Metadata = {}
        if self.dataset:
            keys["quantize.imatrix.dataset"] = string(self.dataset)
        keys["quantize.imatrix.entries_count"] = u32(len(self.entries))
        if self.chunks > 0:
            keys["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return {**keys, **self.method}


def says_no_length(parts: Sequence[Imatrix]) -> bool:
    """Whether the parts leave it open how many tokens a chunk of what is merged of them has."""
    return len({part.chunk_size for part in parts if part.chunk_size}) != 1


def assumed(parts: Sequence[Imatrix], chunk_size: int = CHUNK) -> Iterator[str]:
    """What `merged` takes for granted of the chunks of these parts; sentences for the report."""
    sizes = sorted({part.chunk_size for part in parts if part.chunk_size})
    size = chunk_size if says_no_length(parts) else sizes[0]
    if len(sizes) > 1:
        yield (
            f"chunks of {listed(list(map(str, sizes)))} tokens were added: sums and counts are exact, the number of "
            f"chunks is that of {size} tokens each"
        )
    if unsaid := [part.path.name for part in parts if not part.chunk_size and part.path]:
        yield f"{', '.join(unsaid)}: the file does not say how many tokens a chunk has; {size} were assumed"


def merged(parts: Sequence[Imatrix], chunk_size: int = CHUNK) -> Imatrix:
    """All of these as if their texts had been run one after the other, as `llama-imatrix --in-file` does.

    chunk_size: tokens of a chunk, if the parts do not say the same. The counts of legacy parts are taken for such
    chunks.

    Malformed for parts that belong to different models.
    """
    size = chunk_size if says_no_length(parts) else next(part.chunk_size for part in parts if part.chunk_size)
    entries: dict[str, Entry] = {}
    for part in parts:
        scale = 1 if part.chunk_size else size
        for name, entry in part.entries.items():
            scaled = Entry(entry.sums * np.float32(scale), entry.counts * scale) if scale > 1 else entry
            entries[name] = _sum(name, entries[name], scaled, part.path) if name in entries else scaled
    most = max((int(entry.counts.max()) for entry in entries.values()), default=0)
    datasets = tuple(name for part in parts for name in part.datasets)
    return Imatrix(dict(sorted(entries.items())), datasets, most // size, size)


def _sum(name: str, one: Entry, other: Entry, path: Path | None) -> Entry:
    """One count for all matrices of a stack, as old files have it, is the count of each. Added as float32."""
    many = max(len(one.counts), len(other.counts))
    if one.sums.size != other.sums.size or {len(one.counts), len(other.counts)} - {1, many}:
        raise Malformed(
            "these importance matrices belong to different models",
            where=path,
            also=[
                f"{name}: {other.sums.size} sums and {len(other.counts)} counts here, {one.sums.size} and "
                f"{len(one.counts)} elsewhere"
            ],
            fix="Merge only importance matrices of one model.",
        )
    sums = one.sums.reshape(-1) + other.sums.reshape(-1)
    counts = np.broadcast_to(one.counts, many) + np.broadcast_to(other.counts, many)
    return Entry(sums.reshape(many, -1), counts)
