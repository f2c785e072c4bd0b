"""Reads parts of stored tensors: rows as they lie in the file, columns through a small cache.

Layouts packed along the input dimension keep the weights of one output row in one column. A column is scattered
over the whole tensor, so columns are read in blocks of a few MiB that later chunks, in any thread, find in the cache.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.layout import rows_of
from ggufsmith.convert.stored import Checkpoint, StoredTensor

Array = NDArray[Any]

BLOCK = 8 << 20  # bytes of a block of columns: a whole matrix of a small model, in one read
KEPT = 48 << 20  # bytes that stay cached; what a thread still uses lives on beside them
NARROWEST = 64  # columns; a read of fewer costs as much

# What safetensors calls a dtype -> how its bytes are handled. Halves and eight-bit floats are handled as their bits.
DTYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "F8_E8M0": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "U32": "<u4",
    "I8": "i1",
    "U8": "u1",
}


class Store:
    """The stored tensors of an open checkpoint. Thread-safe."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, object], tuple[int, Future[Array]]] = OrderedDict()
        self._size = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled empty."""
        return Store, (self._checkpoint,)

    def rows(self, source: StoredTensor, first: int, last: int) -> Array:
        """Rows first..last (exclusive) of a tensor as `rows_of` counts them: (last - first, width), as stored."""
        width = rows_of(source.shape)[1]
        out = np.empty((last - first, width), DTYPES[source.dtype])
        self._checkpoint.read_into(source, first * width * out.itemsize, out.reshape(-1).view(np.uint8).data)
        return out

    def flat(self, source: StoredTensor, first: int, last: int) -> Array:
        """Elements first..last (exclusive) of a tensor in the order of the file."""
        out = np.empty(last - first, DTYPES[source.dtype])
        self._checkpoint.read_into(source, first * out.itemsize, out.view(np.uint8).data)
        return out

    def whole(self, source: StoredTensor) -> Array:
        """A small tensor, in its shape. Do not write to it."""
        return self.kept(
            (source.name, None),
            source.nbytes,
            lambda: self.flat(source, 0, math.prod(source.shape)).reshape(source.shape),
        )

    def columns(self, source: StoredTensor, first: int, last: int) -> Array:
        """Columns first..last (exclusive) of a matrix: (rows, last - first), as stored. Do not write to it."""
        rows, width = source.shape
        each = max(BLOCK // max(rows * np.dtype(DTYPES[source.dtype]).itemsize, 1), 1)
        each = -(-each // NARROWEST) * NARROWEST
        parts = []
        for block in range(first // each, -(-last // each)):
            begin, end = block * each, min((block + 1) * each, width)
            columns = self._block(source, begin, end)
            parts.append(columns[:, max(first - begin, 0) : last - begin])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def kept(self, key: tuple[str, object], nbytes: int, make: Callable[[], Array]) -> Array:
        """The array under `key`, made by the first thread that asks for it."""
        with self._lock:
            found = self._cache.get(key)
            future = found[1] if found else Future[Array]()
            if found:
                self._cache.move_to_end(key)
            else:
                self._cache[key] = nbytes, future
                self._size += nbytes
                while self._size > KEPT and len(self._cache) > 1:
                    self._size -= self._cache.popitem(last=False)[1][0]
        if not found:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _block(self, source: StoredTensor, begin: int, end: int) -> Array:
        rows, width = source.shape
        size = np.dtype(DTYPES[source.dtype]).itemsize

        def read() -> Array:
            if end - begin == width:
                return self.rows(source, 0, rows)
            out = np.empty((rows, end - begin), DTYPES[source.dtype])
            places = out.view(np.uint8).reshape(rows, -1)
            for row in range(rows):
                self._checkpoint.read_into(source, (row * width + begin) * size, places[row].data)
            return out

        return self.kept((source.name, begin), rows * (end - begin) * size, read)


def to_f32(array: Array, dtype: str) -> NDArray[np.float32]:
    """Stored floats as float32: exactly, but for F64, which is rounded.

    dtype: as safetensors spells it; F8_E8M0 and F8 types go through a table.
    """
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("F8_"):
        table: NDArray[np.float32] = EIGHT_BITS[dtype][array]
        return table
    return array.astype(np.float32)


def _eight_bits(exponent: int, mantissa: int, bias: int, infinity: bool) -> NDArray[np.float32]:
    """All 256 values of a float of one sign bit (OCP 8-bit floating point specification, tables 1 and 2).

    E4M3 has no infinity and one NaN for each sign; E5M2 is as IEEE 754.
    """
    code = np.arange(256)
    power, fraction = code >> mantissa & (1 << exponent) - 1, code & (1 << mantissa) - 1
    normal = np.ldexp(1 + fraction / (1 << mantissa), power - bias)
    subnormal = np.ldexp(fraction / (1 << mantissa), 1 - bias)
    value = np.where(power > 0, normal, subnormal)
    top = power == (1 << exponent) - 1
    if infinity:
        value = np.where(top, np.where(fraction == 0, np.inf, np.nan), value)
    else:
        value = np.where(top & (fraction == (1 << mantissa) - 1), np.nan, value)
    return np.where(code >> 7, -value, value).astype(np.float32)


def _powers() -> NDArray[np.float32]:
    """E8M0: 2^(code - 127), and NaN (OCP microscaling formats specification, 5.4.1)."""
    return np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.nan).astype(np.float32)


EIGHT_BITS: Mapping[str, NDArray[np.float32]] = {
    "F8_E4M3": _eight_bits(4, 3, 7, infinity=False),
    "F8_E5M2": _eight_bits(5, 2, 15, infinity=True),
    "F8_E8M0": _powers(),
}
