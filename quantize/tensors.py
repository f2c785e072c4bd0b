"""The tensors of an opened model file, as rows to stream."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.formats import Format
from ggufsmith.container.layout import rows_of
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import GgufSet
from ggufsmith.pipeline.stream import Array, Scratch
from ggufsmith.quantize.checks import nonfinite
from ggufsmith.quantize.recipes.assign import Stored
from ggufsmith.quantize.source import open_model


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of an opened model (see `stream.RowSource`). name: what the output calls it."""

    source: GgufSet
    info: TensorInfo
    name: str

    granule = 1
    op = "Copy"

    @property
    def shape(self) -> tuple[int, ...]:
        """A vector in blocks is one row."""
        vector = len(self.info.shape) == 1 and not self.info.format.plain
        return (1, *self.info.shape) if vector else self.info.shape

    @property
    def held(self) -> Format:
        """The format in the file."""
        return self.info.format

    @property
    def origin(self) -> str:
        """The file and the name in it, for messages."""
        return f"{self.source.file_of(self.info).path}: {self.info.name}"

    @property
    def fingerprint(self) -> bytes:
        """Of its place in the file, its shape and format, and its new name."""
        return fingerprint(self.source.file_of(self.info).path, self.info, self.name)

    @property
    def sources(self) -> tuple[str, ...]:
        """The name in the file."""
        return (self.info.name,)

    @property
    def stored(self) -> Stored:
        """What recipes know of it."""
        return Stored(self.name, self.info.shape, self.info.format)

    def rows(self, start: int, stop: int, scratch: Scratch) -> Array:
        """Rows start..stop as they are stored (see `RowSource.rows`). Malformed for a scale that is not a number."""
        count, width = rows_of(self.shape)
        size = self.info.nbytes // count
        buffer = scratch.take((stop - start) * size)
        self.source.read_into(self.info, start * size, buffer)
        if self.held.plain:
            return buffer.view(self.held.dtype["x"]).reshape(stop - start, width)
        _check_scales(self.held, buffer, self.origin)
        return buffer.reshape(stop - start, size)


def _check_scales(format: Format, blocks: NDArray[np.uint8], origin: str) -> None:
    """Malformed if the scale of a block is NaN or infinite, as ggml_validate_row_data has it."""
    if bad := nonfinite(format, blocks):
        raise Malformed(
            f"{bad} blocks have a scale that is NaN or infinite",
            where=origin,
            fix="The model is damaged. Download it again.",
        )


@dataclass(frozen=True)
class FileOpening:
    """Tensors of a file, with their new names, to be opened in another process (see `stream.Opening`)."""

    inputs: tuple[Path, ...]
    tensors: tuple[tuple[TensorInfo, str], ...]

    @classmethod
    def of(cls, source: GgufSet, tensors: Sequence[GgufTensor]) -> "FileOpening":
        """The opening of these tensors of an opened model."""
        return cls(tuple(map(Path.absolute, source.paths)), tuple((each.info, each.name) for each in tensors))

    @contextmanager
    def __call__(self) -> Iterator[Sequence[GgufTensor]]:
        with open_model(self.inputs[0]).files as source:
            yield [GgufTensor(source, info, name) for info, name in self.tensors]
