"""Typed metadata values, as a GGUF header holds them.

GGUF specification, "File structure": every key has a value of one of thirteen types; an array has one element type.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType as ValueType
from numpy.typing import NDArray

# Element type of an array -> NumPy dtype on disk (GGUF is little-endian); strings have none.
DTYPES: Mapping[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

type_of_dtype = {dtype: kind for kind, dtype in DTYPES.items()}

FLOAT32_MAX = float(np.finfo(np.float32).max)

Data = bool | int | float | str | NDArray[Any] | tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """One metadata value: a scalar, a string, or an array (`element` is then its element type).

    data: bool, int, float or str for scalars; a 1-D little-endian NumPy array, or a tuple of str, for arrays.
    """

    type: ValueType
    data: Data
    element: ValueType | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        same = (self.type, self.element) == (other.type, other.element)
        return same and bool(np.array_equal(self.data, other.data))

    __hash__ = None  # type: ignore[assignment]


Metadata = dict[str, Value]


def u32(value: int) -> Value:
    """An unsigned 32-bit integer."""
    return Value(ValueType.UINT32, value)


def i32(value: int) -> Value:
    """A signed 32-bit integer."""
    return Value(ValueType.INT32, value)


def u64(value: int) -> Value:
    """An unsigned 64-bit integer."""
    return Value(ValueType.UINT64, value)


def f32(value: float) -> Value:
    """A float32; the value is rounded here, so that what is compared is what is stored."""
    return Value(ValueType.FLOAT32, float(np.float32(value)))


def boolean(value: bool) -> Value:
    """A boolean."""
    return Value(ValueType.BOOL, value)


def string(value: str) -> Value:
    """A UTF-8 string."""
    return Value(ValueType.STRING, value)


def strings(values: Iterable[str]) -> Value:
    """An array of strings."""
    return Value(ValueType.ARRAY, tuple(values), ValueType.STRING)


def array(values: NDArray[Any]) -> Value:
    """A 1-D array of one of the dtypes in DTYPES, in either byte order."""
    stored = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return Value(ValueType.ARRAY, stored, type_of_dtype[stored.dtype])


def booleans(values: Iterable[bool]) -> Value:
    """An array of booleans."""
    return array(np.array(list(values), np.bool_))


def _integers(values: Iterable[int], dtype: type[np.integer[Any]]) -> Value:
    listed, limits = list(values), np.iinfo(dtype)
    if wrong := [each for each in listed if not limits.min <= each <= limits.max]:  # older NumPy wraps them around
        raise OverflowError(f"{wrong[0]} does not fit into {limits.dtype}")
    return array(np.array(listed, dtype))


def u32s(values: Iterable[int]) -> Value:
    """An array of unsigned 32-bit integers. OverflowError if one does not fit."""
    return _integers(values, np.uint32)


def i32s(values: Iterable[int]) -> Value:
    """An array of signed 32-bit integers. OverflowError if one does not fit."""
    return _integers(values, np.int32)


def f32s(values: Iterable[float]) -> Value:
    """An array of float32."""
    return array(np.array(list(values), np.float32))
