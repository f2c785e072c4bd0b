"""From metadata and tensor shapes to the exact bytes of a GGUF header and the place of every tensor; touches no file.

GGUF specification (ggml, docs/gguf.md), version 3, little-endian: magic, version, counts; key-value pairs; tensor
records; zeros up to the alignment; then the tensors in the order of their records, each padded with zeros to the
alignment. llama.cpp (ggml/src/gguf.cpp) reads the final padding too, so it belongs to the file.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUF_VERSION, Keys
from gguf.constants import GGUFValueType as ValueType

from ggufsmith.container.errors import Malformed
from ggufsmith.container.formats import Format
from ggufsmith.container.values import DTYPES, Metadata, Value, u32

MAGIC = b"GGUF"
HEAD = struct.Struct("<4sIQQ")  # magic, version, tensor count, key-value count
MAX_NAME = 63  # bytes; GGML_MAX_NAME holds 64 with the terminating zero
MAX_KEY = 2**16 - 1  # bytes; GGUF specification
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_WEIGHTS = 2**63 - 1  # ggml counts in int64
ALIGNMENT = Keys.General.ALIGNMENT
DEFAULT_ALIGNMENT: int = GGUF_DEFAULT_ALIGNMENT

# Scalar type -> struct code, little-endian.
SCALARS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_U32, _U64 = SCALARS[ValueType.UINT32], SCALARS[ValueType.UINT64]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file to be written.

    shape: slowest axis first, as NumPy prints it; the file stores it reversed.
    """

    name: str
    shape: tuple[int, ...]
    format: Format

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without padding."""
        return self.format.nbytes(self.shape)


@dataclass(frozen=True)
class Layout:
    """A GGUF file whose every byte position is known.

    header:  all bytes before the first tensor, padding included.
    offsets: where each tensor starts, in bytes from the start of the file; same order as `tensors`.
    size:    bytes of the whole file, final padding included.
    """

    metadata: Metadata
    tensors: tuple[TensorSpec, ...]
    alignment: int
    header: bytes
    offsets: tuple[int, ...]
    size: int


def padded(size: int, alignment: int) -> int:
    """The next multiple of `alignment`, a power of two."""
    return -(-size // alignment) * alignment


def lay_out(metadata: Metadata, tensors: Sequence[TensorSpec], *, alignment: int = DEFAULT_ALIGNMENT) -> Layout:
    """The layout of a file with this metadata and these tensors, in this order.

    `general.alignment` is added only where `alignment` is not the default of 32. Strings may carry bytes that are no
    UTF-8 as surrogate escapes (PEP 383), as the reader returns them. Malformed, with every problem found, if the file
    would break a rule of the format: a name empty, too long or twice, dimensions not 1 to 4 or below 1, rows that are
    no whole number of blocks, a value out of the range of its type, an alignment that is no power of two.
    """
    if alignment < 1 or alignment & (alignment - 1):
        raise Malformed(f"alignment {alignment} is not a power of two", where=ALIGNMENT)
    if alignment != DEFAULT_ALIGNMENT and ALIGNMENT not in metadata:
        metadata = {**metadata, ALIGNMENT: u32(alignment)}
    problems = [*_metadata_problems(metadata, alignment), *_tensor_problems(tensors)]
    if problems:
        (where, what), *rest = problems
        raise Malformed(what, where=where, also=[f"{name}: {text}" for name, text in rest])

    start = 0
    relative = []
    for tensor in tensors:
        relative.append(start)
        start += padded(tensor.nbytes, alignment)
    parts = [HEAD.pack(MAGIC, GGUF_VERSION, len(tensors), len(metadata))]
    parts += [_text(key) + _typed(key, value) for key, value in metadata.items()]
    parts += [_record(tensor, offset) for tensor, offset in zip(tensors, relative, strict=True)]
    header = b"".join(parts)
    header += bytes(padded(len(header), alignment) - len(header))
    offsets = tuple(len(header) + offset for offset in relative)
    return Layout(dict(metadata), tuple(tensors), alignment, header, offsets, len(header) + start)


def _metadata_problems(metadata: Metadata, alignment: int) -> Iterator[tuple[str, str]]:
    for key, value in metadata.items():
        if problem := _name_problem(key, MAX_KEY):
            yield repr(key), problem
        if key == ALIGNMENT and value != u32(alignment):
            yield key, f"is {value.data} ({value.type.name}), but the file is laid out for {alignment} (UINT32)"


def _tensor_problems(tensors: Sequence[TensorSpec]) -> Iterator[tuple[str, str]]:
    seen = set()
    for tensor in tensors:
        name, shape = tensor.name, tensor.shape
        if problem := _name_problem(name, MAX_NAME):
            yield repr(name), problem
        if name in seen:
            yield name, "two tensors have this name"
        seen.add(name)
        if not 1 <= len(shape) <= MAX_DIMS:
            yield name, f"{len(shape)} dimensions; a tensor has 1 to {MAX_DIMS}"
        elif min(shape) < 1:
            yield name, f"shape {shape} has a dimension below 1"
        elif shape[-1] % tensor.format.weights:
            block = tensor.format.weights
            yield name, f"rows of {shape[-1]} are not a multiple of {block}, the block of {tensor.format.name}"


def _name_problem(name: str, limit: int) -> str | None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "a name must be valid Unicode"
    if size == 0:
        return "a name must not be empty"
    if size > limit:
        return f"{size} bytes; a name may have at most {limit}"
    return "a name must not contain a zero byte" if "\0" in name else None


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return _U64.pack(len(raw)) + raw


def _typed(key: str, value: Value) -> bytes:
    try:
        if value.type is not ValueType.ARRAY:
            return _U32.pack(value.type) + _plain(value)
        if value.element is None or value.element is ValueType.ARRAY:
            raise Malformed("an array needs an element type, which must not be an array itself", where=key)
        count = len(value.data)  # type: ignore[arg-type]
        head = _U32.pack(value.type) + _U32.pack(value.element) + _U64.pack(count)
        return head + _elements(value, value.element)
    except (struct.error, OverflowError, TypeError, AttributeError) as error:
        raise Malformed(f"{value.data!r:.80} does not fit its type {value.type.name}: {error}", where=key) from error
    except UnicodeEncodeError as error:
        raise Malformed(f"the text holds a lone surrogate at position {error.start}", where=key) from error


def _plain(value: Value) -> bytes:
    if value.type is ValueType.STRING:
        return _text(value.data)  # type: ignore[arg-type]
    return SCALARS[value.type].pack(value.data)


def _elements(value: Value, element: ValueType) -> bytes:
    if element is ValueType.STRING:
        return b"".join(map(_text, value.data))  # type: ignore[arg-type]
    data, wanted = np.asarray(value.data), DTYPES[element]
    if data.dtype != wanted or data.ndim != 1:
        raise TypeError(f"elements are {data.ndim}-D {data.dtype}, not 1-D {wanted}")
    return data.tobytes()


def _record(tensor: TensorSpec, offset: int) -> bytes:
    shape = tensor.shape[::-1]
    return _text(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.format.id, offset)


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, width) of a tensor of this shape."""
    if len(shape) < 2:
        return math.prod(shape), 1
    return math.prod(shape[:-1]), shape[-1]
