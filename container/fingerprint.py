"""Fingerprints of what decides an output's bytes: equal for equal values, in every process and on every system.

Resuming, provenance records and batch jobs all ask whether something is still what it was. Values are told apart by
what they are, not by how they print; files by their content if they are small, else by their size and time.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray

WHOLE = 2**20  # bytes; files up to this size are known by their content
PIECE = 2**20  # bytes read at a time


def fingerprint(*values: object) -> bytes:
    """SHA-256, 32 bytes, of values of any of these kinds, nested at will:

    None, numbers, texts, bytes, enumerations, NumPy arrays and scalars; sequences; sets and mappings, whatever their
    order; dataclasses, by their class and all fields that take part in comparison; classes, functions of a module, and
    methods with the object that they are bound to. Of a path, only its name and that of its folder count.

    TypeError for anything else: what has no fingerprint must not be taken for unchanged.
    """
    return hashlib.sha256(b"".join(map(_token, values))).digest()


def _token(value: object) -> bytes:
    """A value as bytes that no other value has: its kind, and the parts of it with their lengths."""
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return _joined("array", value.dtype.str.encode(), repr(value.shape).encode(), _sha256(value))
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return _joined("scalar", value.dtype.str.encode(), value.tobytes())
    if isinstance(value, Enum):
        return _joined("enum", _name(type(value)), value.name.encode())
    if value is None or isinstance(value, bool | int | float | complex):
        return _joined(type(value).__name__, repr(value).encode())
    if isinstance(value, str):
        return _joined("text", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes | bytearray | memoryview):
        return _joined("bytes", bytes(value))
    if isinstance(value, PurePath):
        return _joined("path", *map(_token, value.parts[-2:]))
    if isinstance(value, list | tuple):
        return _joined("sequence", *map(_token, value))
    if isinstance(value, Set):
        return _joined("set", *sorted(map(_token, value)))
    if isinstance(value, Mapping):
        return _joined("mapping", *sorted(_token(pair) for pair in value.items()))
    if isinstance(value, MethodType):
        return _joined("method", _name(value.__func__), _token(value.__self__))
    if isinstance(value, type | FunctionType | BuiltinFunctionType) and "<" not in value.__qualname__:
        return _joined("name", _name(value))
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((each.name, getattr(value, each.name)) for each in fields(value) if each.compare)
        return _joined("record", _name(type(value)), *map(_token, pairs))
    raise TypeError(f"{type(value).__qualname__} has no fingerprint")


def _joined(kind: str, *parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in (kind.encode(), *parts))


def _sha256(array: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()


def _name(value: Any) -> bytes:
    return f"{value.__module__}.{value.__qualname__}".encode()


def file_mark(path: Path, *, by_content: bool = False) -> tuple[int, str]:
    """What tells whether a file is still the same: its size in bytes, and the SHA-256 of its content, in hex, or, for
    a file of more than `WHOLE` bytes, the time of its last change, in ns.

    by_content: hash large files as well. (0, "") for a file that cannot be read: who reads it will say so.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or (found.st_size > WHOLE and not by_content):
            return found.st_size, str(found.st_mtime_ns)
        with path.open("rb", buffering=0) as file:
            digest = hashlib.sha256()
            while piece := file.read(PIECE):
                digest.update(piece)
        return found.st_size, digest.hexdigest()
    except OSError:
        return 0, ""
