"""The header of one safetensors file: which tensors it has, and where.

The safetensors library validates it (overlaps, holes, shapes against sizes); the offsets, which it does not expose, are
then taken from the same bytes.

Source: the safetensors format description.
"""

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import LFS_POINTER, Json, parse_json
from ggufsmith.convert.stored import StoredTensor

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def read_header(path: Path) -> Iterator[StoredTensor]:
    """The tensors of one safetensors file, by offset."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise Malformed("this is a Git LFS pointer, not the weights", where=path, fix="Run `git lfs pull`.")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > size - 8:
            raise Malformed(
                f"the file is truncated: the header needs {8 + length} bytes, the file has {size}",
                where=path,
                fix="Download it again.",
            )
        if length > MAX_HEADER:
            raise Malformed(f"a header of {length} bytes is over the limit of {MAX_HEADER}", where=path)
        file.seek(8)
        header = file.read(length)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        expected = _expected_size(header)
        if expected is not None and expected != size:
            what = "truncated" if size < expected else "longer than its header says"
            raise Malformed(
                f"{what}: {expected} bytes expected, {size} found", where=path, fix="Download it again."
            ) from None
        raise Malformed(
            f"this is not a valid safetensors file: {error}", where=path, fix="Download it again."
        ) from None
    entries = parse_json(header, path)  # the library has just validated these bytes, but for keys that occur twice
    entries.pop("__metadata__", None)
    for name, entry in sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        begin, end = entry["data_offsets"]
        yield StoredTensor(name, tuple(entry["shape"]), entry["dtype"], path, 8 + length + begin, end - begin)


def _expected_size(header: bytes) -> int | None:
    """The file size a header asks for, if the header can be read at all."""
    try:
        entries: Json = parse_json(header, None)
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (Malformed, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        return None
    return 8 + len(header) + max(ends, default=0)
