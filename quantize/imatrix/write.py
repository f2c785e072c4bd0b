"""Writes importance matrices in the two formats of llama-imatrix (tools/imatrix/imatrix.cpp, save_imatrix).

The GGUF file has the sums and counts themselves, so that it can be merged with others; the legacy `.dat` only means.
A matrix of a stack that saw no token has zeros in the GGUF file, and ones in the `.dat`.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.apart import check_apart
from ggufsmith.container.errors import Failure, OutputConflict
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.replace import replace_bytes
from ggufsmith.container.values import Metadata, string, strings, u32
from ggufsmith.container.writer import Writer
from ggufsmith.quantize.imatrix.read import CHUNK_SIZE, CHUNKS, COUNTS, DATASETS, F32, SUMS, open_imatrix
from ggufsmith.quantize.imatrix.record import CHUNK, Entry, Imatrix

ImatrixFormat = Literal["gguf", "dat"]
FORMATS: tuple[ImatrixFormat, ...] = ("gguf", "dat")
I32 = struct.Struct("<i")


def write_imatrix(
    imatrix: Imatrix,
    path: Path,
    format: ImatrixFormat = "gguf",
    *,
    overwrite: bool = True,
    inputs: Sequence[Path] = (),
    sync: bool = True,
) -> None:
    """Put an importance matrix at `path`, complete and read back, or leave what is there.

    inputs: files that it was made from; none of them may be the output.

    OutputConflict for an output that exists and may not be replaced, or is an input; NoSpace for a full disk; Failure
    if what can be read back is not what was written.
    """
    if format == "gguf":
        _write_gguf(imatrix, path, overwrite=overwrite, inputs=inputs, sync=sync)
        return
    check_apart(path, inputs)
    if not overwrite and path.exists():
        raise OutputConflict("the output already exists", where=path, fix="Choose another with -o.")
    replace_bytes(path, legacy_bytes(imatrix), check=lambda written: _check_legacy(imatrix, written))


def metadata_of(imatrix: Imatrix) -> Metadata:
    """The keys of the GGUF file, in llama-imatrix's order. Texts are named without their folders."""
    return {
        "general.type": string("imatrix"),
        DATASETS: strings(imatrix.datasets),
        CHUNKS: u32(imatrix.chunks),
        CHUNK_SIZE: u32(imatrix.chunk_size),
    }


def size_of(imatrix: Imatrix, format: ImatrixFormat) -> int:
    """Bytes of the file."""
    return _layout(imatrix).size if format == "gguf" else len(legacy_bytes(imatrix))


def _layout(imatrix: Imatrix) -> Layout:
    specs = [TensorSpec(name, values.shape, F32) for name, values in _tensors(imatrix)]
    return lay_out(metadata_of(imatrix), specs)


def _write_gguf(imatrix: Imatrix, path: Path, *, overwrite: bool, inputs: Sequence[Path], sync: bool) -> None:
    layout = _layout(imatrix)
    with Writer(path, layout, overwrite=overwrite, inputs=inputs, sync=sync) as writer:
        for offset, (_, values) in zip(layout.offsets, _tensors(imatrix), strict=True):
            writer.write(offset, np.ascontiguousarray(values, "<f4").view(np.uint8))
        writer.commit()


def _tensors(imatrix: Imatrix) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every entry's sums, (counts, values), and counts, (counts, 1)."""
    for name, entry in sorted(imatrix.entries.items()):
        yield name + SUMS, entry.sums
        yield name + COUNTS, entry.counts.astype(np.float32)[:, None]


def legacy_bytes(imatrix: Imatrix) -> bytes:
    """The whole `.dat`. The calls of an entry are its chunks, rounded up so that few tokens do not become none."""
    parts = [I32.pack(len(imatrix.entries))]
    for name, entry in sorted(imatrix.entries.items()):
        key, calls = name.encode(), _calls(entry, imatrix.chunk_size or CHUNK)
        values = entry.weights * np.float32(calls)
        parts += [I32.pack(len(key)), key, I32.pack(calls), I32.pack(values.size), values.astype("<f4").tobytes()]
    dataset = (imatrix.datasets[-1] if imatrix.datasets else "").encode("utf-8", "surrogateescape")
    return b"".join([*parts, I32.pack(imatrix.chunks), I32.pack(len(dataset)), dataset])


def _calls(entry: Entry, chunk_size: int) -> int:
    return -(-int(entry.counts.max()) // chunk_size)


def _check_legacy(imatrix: Imatrix, path: Path) -> None:
    """Failure if the file, opened as everybody else will, does not hold what was meant."""
    found = open_imatrix(path)
    wanted = {name: entry.weights for name, entry in imatrix.entries.items()}
    same = found.entries.keys() == wanted.keys() and all(
        np.allclose(entry.weights, wanted[name], rtol=1e-6, atol=0) for name, entry in found.entries.items()
    )
    if not same or found.chunks != imatrix.chunks:
        what = "the written file does not verify: it differs from what was to be written"
        raise Failure(what, where=path, fix="Write it again, or to another disk.")
