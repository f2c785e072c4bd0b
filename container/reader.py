"""Opens a GGUF file: every field is checked before it is believed.

Layout: see layout.py. The checks are those of llama.cpp's ggml/src/gguf.cpp and tests/test-gguf.cpp, and more:
overlapping extents, nested arrays, booleans that are neither 0 nor 1. What a field asks for is compared with the bytes
that remain, and with a named cap, before anything is allocated. The header is read, not mapped, so that a file which
shrinks meanwhile is an error and not a bus error; tensor data is only read through `Gguf.read_into`.

Text: keys and names must be valid UTF-8. Values need not be (real vocabularies hold tokens cut inside a character):
bytes that are no UTF-8 become surrogate escapes (PEP 383), and the writer turns them back into the same bytes. A tensor
name may hold anything else, also `../`: never use one as a path.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import cast

import numpy as np
from gguf.constants import GGUF_VERSION, Keys
from gguf.constants import GGUFValueType as ValueType

from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.formats import BY_ID, Format
from ggufsmith.container.layout import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    HEAD,
    MAGIC,
    MAX_DIMS,
    MAX_KEY,
    MAX_NAME,
    MAX_WEIGHTS,
    SCALARS,
    padded,
)
from ggufsmith.container.positional import Buffer, as_bytes, read_at, regular_file
from ggufsmith.container.text import shell_command
from ggufsmith.container.values import DTYPES, Metadata, Value

MAX_HEADER = 2**28  # bytes; headers with 262 144 tokens and their merges are below 32 MiB
MAX_STRINGS = 2**24  # in one file: a Python string costs 50 bytes where the file spends 8
AGAIN = "Copy, download or make the file again."
MAX_KEYS, MAX_TENSORS = 2**16, 2**20  # models with unstacked experts have about 100 000 tensors
MIN_PAIR, MIN_RECORD = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8  # the shortest key-value pair and tensor record, bytes
CHUNK = 2**20  # the first read; later ones double what is held
_U32, _U64 = SCALARS[ValueType.UINT32], SCALARS[ValueType.UINT64]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of an opened file.

    shape:  slowest axis first.
    offset: bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Gguf:
    """An opened GGUF file; close it, or use it in a `with`.

    tensors:    by name, in the order of the records.
    data_start: bytes before the first tensor.
    size:       bytes of the file.
    """

    path: Path
    version: int
    alignment: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    data_start: int
    size: int
    fd: int

    def read_into(self, tensor: TensorInfo, start: int, buffer: Buffer) -> None:
        """Fill `buffer`, C-contiguous and writable, with the tensor's bytes from its byte `start` on.

        Safe from many threads. Malformed if the file has become shorter; Failure if the disk fails or the range is not
        inside the tensor.
        """
        view = as_bytes(buffer)
        if start < 0 or start + len(view) > tensor.nbytes:
            raise Failure(
                f"asked for bytes {start}..{start + len(view)} of {tensor.nbytes}", where=f"{self.path}: {tensor.name}"
            )
        try:
            got = read_at(self.fd, view, tensor.offset + start)
        except OSError as error:
            raise Failure(f"the file cannot be read: {error.strerror}", where=f"{self.path}: {tensor.name}") from error
        if got < len(view):
            raise Malformed(
                f"the file ends after {tensor.offset + start + got} bytes, {len(view) - got} too early",
                where=f"{self.path}: {tensor.name}",
                fix="The file was changed while it was read; download or make it again.",
            )

    def close(self) -> None:
        """Close the file; reading from it is then an error."""
        os.close(self.fd)

    def __enter__(self) -> "Gguf":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gguf(path: Path | str) -> Gguf:
    """Open a GGUF file, version 2 or 3, little-endian. Reads and checks the header; no tensor byte is read.

    Malformed for a file that breaks a rule of the format, Unsupported for big-endian files and other versions, Failure
    if it cannot be read at all.
    """
    path = Path(path)
    with regular_file(path) as (fd, size):
        return _parse(path, fd, size)


class _Header:
    """The bytes of the header, read as far as needed, and a position in them."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self.fd, self.size = path, fd, size
        self.data = b""
        self.at = 0
        self.strings_left = MAX_STRINGS

    def refuse(self, what: str, where: str | None = None) -> Malformed:
        return Malformed(what, where=f"{self.path}: {where}" if where else self.path, fix=AGAIN)

    def need(self, count: int, what: str) -> None:
        """Hold `count` bytes from the position on."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self.size:
            raise self.refuse(f"{what} needs {count} bytes at byte {self.at}, but the file has {self.size}")
        if end > MAX_HEADER:
            raise self.refuse(f"{what} ends at byte {end}, past the limit of {MAX_HEADER} for a header")
        more = bytearray(min(self.size, max(end, 2 * len(self.data), CHUNK)) - len(self.data))
        try:
            got = read_at(self.fd, memoryview(more), len(self.data))
        except OSError as error:
            raise Failure(f"the file cannot be read: {error.strerror}", where=self.path) from error
        self.data += more[:got]
        if end > len(self.data):
            raise self.refuse(f"{what} needs bytes up to {end}, but the file shrank to {len(self.data)}")

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.data, self.at)
        self.at += 4
        return int(value)

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.data, self.at)
        self.at += 8
        return int(value)

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        self.at += count
        return self.data[self.at - count : self.at]

    def name(self, limit: int, what: str) -> str:
        """A key or a tensor name."""
        size = self.u64(what)
        if not 1 <= size <= limit:
            raise self.refuse(f"{what} is {size} bytes long; 1 to {limit} are allowed")
        raw = self.take(size, what)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise self.refuse(f"{what} {raw!r} is not valid UTF-8") from error
        if "\0" in text:
            raise self.refuse(f"{what} {text!r} contains a zero byte")
        return text

    def strings(self, count: int, what: str) -> tuple[str, ...]:
        """`count` strings. Vocabularies have hundreds of thousands, so the loop does nothing twice."""
        if count > self.strings_left:
            raise self.refuse(f"{count} more strings; a file may have {MAX_STRINGS}", what)
        self.strings_left -= count
        self.need(8 * count, what)
        out: list[str] = []
        append, unpack = out.append, _U64.unpack_from
        data, at, held = self.data, self.at, len(self.data)
        for _ in range(count):
            if at + 8 > held:
                self.at = at
                self.need(8, what)
                data, held = self.data, len(self.data)
            begin = at + 8
            (size,) = unpack(data, at)
            at = begin + size
            if at > held:
                self.at = begin
                self.need(size, what)
                data, held = self.data, len(self.data)
            append(data[begin:at].decode("utf-8", "surrogateescape"))
        self.at = at
        return tuple(out)


def _parse(path: Path, fd: int, size: int) -> Gguf:
    header = _Header(path, fd, size)
    magic, version, tensor_count, kv_count = HEAD.unpack(header.take(HEAD.size, "the file header"))
    if magic != MAGIC:
        raise header.refuse(f"starts with {magic!r}, not with {MAGIC!r}: this is not a GGUF file")
    _check_version(version, path)
    for what, count, limit, least in (
        ("key-value pairs", kv_count, MAX_KEYS, MIN_PAIR),
        ("tensors", tensor_count, MAX_TENSORS, MIN_RECORD),
    ):
        if count > limit:
            raise header.refuse(f"{count} {what}; the limit is {limit}")
        if count * least > size - header.at:
            raise header.refuse(f"{count} {what} cannot fit in the {size - header.at} bytes that remain")

    metadata: Metadata = {}
    for index in range(kv_count):
        key = header.name(MAX_KEY, f"key {index}")
        if key in metadata:
            raise header.refuse("the key occurs twice", key)
        metadata[key] = _value(header, key)
    alignment = _alignment(header, metadata)

    records: dict[str, tuple[tuple[int, ...], Format, int]] = {}
    for index in range(tensor_count):
        name = header.name(MAX_NAME, f"tensor name {index}")
        if name in records:
            raise header.refuse("two tensors have this name", name)
        records[name] = _record(header, name, alignment)
    data_start = padded(header.at, alignment)
    tensors = {}
    for name, (shape, form, offset) in records.items():
        tensors[name] = TensorInfo(name, shape, form, data_start + offset, form.nbytes(shape))
    _check_extents(header, tensors)
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=header.at)
    _check_single(header, {end, padded(end, alignment)}, metadata)
    return Gguf(path, version, alignment, metadata, MappingProxyType(tensors), data_start, size, fd)


def _check_single(header: _Header, ends: set[int], metadata: Metadata) -> None:
    """Malformed if another GGUF file begins where this one can end: `cat` does not make a model of its shards."""
    for end in sorted(ends):
        found = bytearray(len(MAGIC))
        if read_at(header.fd, memoryview(found), end) == len(MAGIC) and found == MAGIC:
            value = metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT)
            count = value.data if value is not None and isinstance(value.data, int) else 1
            raise Malformed(
                f"another GGUF file begins at byte {end}: several files were joined into one, which does not give a "
                f"usable model",
                where=header.path,
                fix=_way_to_merge(header.path, count)
                if count > 1
                else "Download the files again, each one separately.",
            )


def _way_to_merge(path: Path, count: int) -> str:
    """The command, with the first shard if it is beside this file."""
    end = f"-00001-of-{count:05d}.gguf"
    found = [other for other in path.parent.glob(f"*{end}") if other != path]
    first = found[0] if len(found) == 1 else f"NAME{end}"
    return f"Merge the {count} shards themselves, under their own names: {shell_command('ggufsmith', 'merge', first)}"


def _check_version(version: int, path: Path) -> None:
    if version in (2, GGUF_VERSION):
        return
    if version == 0:
        raise Malformed("GGUF version 0 does not exist", where=path)
    if version & 0xFFFF == 0:
        raise Unsupported(
            f"this is a big-endian GGUF file (version {int.from_bytes(version.to_bytes(4, 'little'), 'big')})",
            where=path,
            fix="Convert it with gguf-py's gguf-convert-endian first.",
        )
    raise Unsupported(
        f"GGUF version {version} is not supported; this program reads 2 and {GGUF_VERSION}",
        where=path,
        fix="Version 1 was only written in August 2023: convert the model again." if version == 1 else None,
    )


def _value(header: _Header, key: str) -> Value:
    kind = _kind(header, key)
    if kind is not ValueType.ARRAY:
        return Value(kind, _scalar(header, kind, key))
    element = _kind(header, key)
    if element is ValueType.ARRAY:
        raise header.refuse("an array of arrays, which llama.cpp cannot read", key)
    count = header.u64(key)
    if element is ValueType.STRING:
        return Value(kind, header.strings(count, key), element)
    dtype = DTYPES[element]
    raw = np.frombuffer(header.take(count * dtype.itemsize, key), np.uint8)
    if element is ValueType.BOOL and raw.size and raw.max() > 1:
        raise header.refuse(f"a boolean is stored as {raw.max()}; only 0 and 1 are valid", key)
    return Value(kind, raw.view(dtype), element)


def _kind(header: _Header, key: str) -> ValueType:
    number = header.u32(key)
    try:
        return ValueType(number)
    except ValueError:
        raise header.refuse(f"value type {number} does not exist", key) from None


def _scalar(header: _Header, kind: ValueType, key: str) -> bool | int | float | str:
    if kind is ValueType.STRING:
        return header.strings(1, key)[0]
    code = SCALARS[kind]
    raw = header.take(code.size, key)
    if kind is ValueType.BOOL and raw[0] > 1:
        raise header.refuse(f"a boolean is stored as {raw[0]}; only 0 and 1 are valid", key)
    (value,) = code.unpack(raw)
    return cast(bool | int | float, value)


def _alignment(header: _Header, metadata: Metadata) -> int:
    value = metadata.get(ALIGNMENT)
    if value is None:
        return DEFAULT_ALIGNMENT
    if value.type is not ValueType.UINT32:
        raise header.refuse(f"has type {value.type.name}, not UINT32", ALIGNMENT)
    alignment = cast(int, value.data)
    if alignment < 1 or alignment & (alignment - 1):
        raise header.refuse(f"{alignment} is not a power of two", ALIGNMENT)
    return alignment


def _record(header: _Header, name: str, alignment: int) -> tuple[tuple[int, ...], Format, int]:
    """Shape (slowest axis first), format and offset in the data section."""
    dims = header.u32(name)
    if not 1 <= dims <= MAX_DIMS:
        raise header.refuse(f"{dims} dimensions; a tensor has 1 to {MAX_DIMS}", name)
    shape = tuple(header.u64(name) for _ in range(dims))[::-1]
    weights = 1
    for length in shape:
        if not 1 <= length <= MAX_WEIGHTS:
            raise header.refuse(f"a dimension of {length}; 1 to 2^63 - 1 are allowed", name)
        weights *= length
    if weights > MAX_WEIGHTS:
        raise header.refuse(f"shape {shape} has {weights} weights, more than 2^63 - 1", name)
    number = header.u32(name)
    form = BY_ID.get(number)
    if form is None:
        raise header.refuse(f"ggml type {number} is not known", name)
    if shape[-1] % form.weights:
        raise header.refuse(f"rows of {shape[-1]} are not a multiple of {form.weights}, the block of {form.name}", name)
    offset = header.u64(name)
    if offset % alignment:
        raise header.refuse(f"offset {offset} is not a multiple of the alignment, {alignment}", name)
    return shape, form, offset


def _check_extents(header: _Header, tensors: Mapping[str, TensorInfo]) -> None:
    """Inside the file, and none over another. Gaps are allowed by the specification."""
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise header.refuse(f"starts at byte {tensor.offset}, inside tensor {before!r} (to {end})", tensor.name)
        end, before = tensor.offset + tensor.nbytes, tensor.name
        if end > header.size:
            raise header.refuse(
                f"ends at byte {end}, but the file has {header.size}: it is cut short or damaged", tensor.name
            )
