"""The stored tensors of a checkpoint: where each one's bytes lie, and how they are read.

Bytes are read into the caller's buffers, not mapped, so that no file-backed page counts against the process.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from ggufsmith.container.errors import Malformed
from ggufsmith.container.positional import read_at


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    dtype: as safetensors spells it ("BF16"). offset: bytes from the start of the file. nbytes: exact size.
    A tensor that is made of several others is a `dequantize.scheme.DequantizedTensor`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int
    nbytes: int

    @property
    def stored(self) -> "tuple[StoredTensor, ...]":
        """The tensors in files that it consists of."""
        return (self,)

    @property
    def granule(self) -> int:
        """Rows are best read from a multiple of this many on."""
        return 1

    @property
    def nominal(self) -> str:
        """The plain dtype that its values have, or had before they were quantized."""
        return self.dtype


class Reader(Protocol):
    """Where the bytes of open files come from: the disk, or a server (`hub.ahead.ReadAhead`). Thread-safe."""

    def expect(self, extents: Iterable[tuple[Path, int, int]]) -> None:
        """(file, start, stop) of what will be read, in about that order."""

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from byte `offset` of the file on. Returns the bytes read, fewer only at its end."""

    def close(self) -> None:
        """Close all files."""


class Opener(Protocol):
    """Opens files to read. It can be pickled, to open them in another process.

    remote: those that are not on the disk, where something else may stand in for them.
    """

    @property
    def remote(self) -> Collection[Path]:
        """The files that are not on the disk."""

    def __call__(self, paths: Sequence[Path], /) -> Reader: ...


class LocalFiles:
    """A `Reader` of files on the disk, and its own `Opener`."""

    remote: ClassVar[Collection[Path]] = ()

    def __init__(self, paths: Sequence[Path]) -> None:
        with ExitStack() as stack:
            self._files = {path: stack.enter_context(path.open("rb", buffering=0)) for path in paths}
            self._open = stack.pop_all()

    def expect(self, extents: Iterable[tuple[Path, int, int]]) -> None:
        """The system reads ahead by itself."""

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        """See `Reader.read_into`."""
        return read_at(self._files[path].fileno(), buffer, offset)

    def close(self) -> None:
        """See `Reader.close`."""
        self._open.close()


@dataclass
class Checkpoint:
    """The tensors of a model folder by name, in file order, and sentences for the report.

    Entering opens the files for reading, by `open_files`; leaving closes them.
    """

    folder: Path
    tensors: Mapping[str, StoredTensor]
    notes: tuple[str, ...] = ()
    open_files: Opener = LocalFiles
    _reader: Reader = field(default_factory=lambda: LocalFiles(()), repr=False)

    def __enter__(self) -> Self:
        self._reader = self.open_files(self.files)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickled as closed: another process opens the files by itself."""
        return {**self.__dict__, "_reader": LocalFiles(())}

    def expect(self, sources: Iterable[StoredTensor]) -> None:
        """Say what will be read, in the order of reading: far files are then read ahead."""
        parts = (part for source in sources for part in source.stored)
        self._reader.expect((part.path, part.offset, part.offset + part.nbytes) for part in parts)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold its tensors, each once, in the order of the tensors."""
        return tuple(dict.fromkeys(part.path for source in self.tensors.values() for part in source.stored))

    def read_into(self, source: StoredTensor, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `start` on. Thread-safe. Malformed if the file ends."""
        if self._reader.read_into(source.path, source.offset + start, buffer) < len(buffer):
            raise Malformed(
                f"the file ends inside tensor {source.name!r}: it was cut after its header was read",
                where=source.path,
            )
