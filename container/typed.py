"""Typed reads of metadata that a file holds: what has another type than it should is an error that names the key."""

import math
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType as ValueType
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.values import Metadata


class TypedKeys:
    """The keys of one file. where: what errors call the file."""

    def __init__(self, metadata: Metadata, where: object) -> None:
        self.metadata, self.where = metadata, where

    def optional(self, key: str, kind: type) -> Any:
        """A scalar of this Python type; None if there is no such key. Unsupported: a text that is no UTF-8."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if type(value.data) is not kind:
            raise Malformed(f"holds {value.type.name}, not a {kind.__name__}", where=f"{self.where}: {key}")
        if kind is str:
            self._unicode(key, str(value.data))
        return value.data

    def text(self, key: str) -> str:
        """A string. None if the key is not there; Malformed if it holds something else."""
        value = self.optional(key, str)
        if value is None:
            raise Malformed("the key is missing", where=f"{self.where}: {key}")
        return str(value)

    def number(self, key: str) -> int | float | None:
        """A finite number, a float32 as the shortest decimal that is rounded to it; None if there is no such key."""
        value = self.metadata.get(key)
        if value is None:
            return None
        data = value.data
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise Unsupported(f"holds {value.type.name}; one number is expected", where=f"{self.where}: {key}")
        if not math.isfinite(data):
            raise Malformed(f"is {data}", where=f"{self.where}: {key}")
        return float(str(np.float32(data))) if isinstance(data, float) else data

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings. None if the key is not there; Malformed if it holds something else."""
        value = self.metadata.get(key)
        if value is None or value.element is not ValueType.STRING or not isinstance(value.data, tuple):
            raise Malformed("must be an array of strings", where=f"{self.where}: {key}")
        self._unicode(key, "".join(value.data))
        return value.data

    def numbers(self, key: str, kind: type[np.number[Any]], count: int) -> NDArray[Any] | None:
        """Exactly `count` finite numbers; None if there is no such key."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value.data, np.ndarray) or len(value.data) != count:
            raise Malformed(f"must be an array of {count} numbers", where=f"{self.where}: {key}")
        if not np.isfinite(value.data).all():
            raise Malformed("holds a number that is not finite", where=f"{self.where}: {key}")
        return value.data.astype(kind)

    def _unicode(self, key: str, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Unsupported("holds bytes that are not UTF-8", where=f"{self.where}: {key}") from None
