"""What kernels take: the types of their arguments, and the row of 64-bit words in which machine code gets them.

An array is its address and its shape, a record its fields one after the other, a float32 its bits, anything else an
integer. The word after the last argument is the result.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

INT = np.dtype(np.int64)


@dataclass(frozen=True)
class Array:
    """A C-contiguous array at any address. write: None leaves open whether the kernel changes it."""

    dtype: np.dtype[Any]
    ndim: int = 1
    write: bool | None = False


@dataclass(frozen=True)
class FieldTypes:
    """Those of a NamedTuple of this class, one after the other."""

    kind: type[Any]
    fields: tuple["Type", ...]


Type = Array | FieldTypes | np.dtype[Any]


def read(scalar: Any, ndim: int = 1) -> Array:
    """A C-contiguous array at any address that the kernel does not change; it may be read-only."""
    return Array(np.dtype(scalar), ndim)


def write(scalar: Any) -> Array:
    """A C-contiguous 1-D array at any address that the kernel may change."""
    return Array(np.dtype(scalar), write=True)


READ_F32, READ_U8, READ_U16 = read(np.float32), read(np.uint8), read(np.uint16)
WRITE_F32, WRITE_U8, WRITE_U16 = write(np.float32), write(np.uint8), write(np.uint16)


def typeof(example: Any) -> Type:
    """The type of records like this one, and of what they are made of."""
    if isinstance(example, tuple):
        return FieldTypes(type(example), tuple(typeof(value) for value in example))
    if isinstance(example, np.ndarray):
        return Array(example.dtype, example.ndim, write=None)
    return INT if type(example) is int else np.dtype(type(example))


def packer(signature: Sequence[Type]) -> Callable[[Sequence[Any]], Any]:
    """What makes of arguments the words that machine code takes: a ctypes array of int64, with room for the result.

    The arrays must outlive it. It raises TypeError for an argument of another type, ValueError for too few or many.
    """
    adders = [_adder(kind) for kind in signature]
    room = ctypes.c_int64 * (sum(map(_size, signature)) + 1)

    def pack(arguments: Sequence[Any]) -> Any:
        found: list[int] = []
        for add, value in zip(adders, arguments, strict=True):
            add(found, value)
        return room(*found)

    return pack


def _size(kind: Type) -> int:
    """How many words an argument takes."""
    if isinstance(kind, FieldTypes):
        return sum(map(_size, kind.fields))
    return 1 + kind.ndim if isinstance(kind, Array) else 1


def _adder(kind: Type) -> Callable[[list[int], Any], None]:
    """What adds the words of an argument of this type to a list."""
    if isinstance(kind, Array):
        return _array_adder(kind.dtype, kind.ndim, kind.write is True)
    if isinstance(kind, FieldTypes):
        adders = [_adder(field) for field in kind.fields]

        def add_record(found: list[int], value: Any) -> None:
            for add, each in zip(adders, value, strict=True):
                add(found, each)

        return add_record
    if kind == np.float32:
        return lambda found, value: found.append(int.from_bytes(struct.pack("<f", value), "little"))
    return lambda found, value: found.append(int(value))


def _array_adder(dtype: np.dtype[Any], ndim: int, write: bool) -> Callable[[list[int], Any], None]:
    def add(found: list[int], value: Any) -> None:
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != ndim:
            raise TypeError(f"{dtype} in {ndim} dimensions wanted, not {value!r}")
        flags = value.flags
        if not flags.c_contiguous or (write and not flags.writeable):
            raise TypeError("a C-contiguous array wanted, writable if the kernel writes to it")
        found.append(value.__array_interface__["data"][0])
        found.extend(value.shape)

    return add
