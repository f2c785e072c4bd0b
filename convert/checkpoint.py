"""A model folder: which files hold its tensors, and where each tensor's bytes lie.

safetensors come first; without any, pickled files are read as `sources.pickles` says. Opening reads headers only. The
safetensors library validates every header (overlaps, holes, shapes against sizes); the offsets, which it does not
expose, are then taken from the same header. Bytes are read into the caller's buffers, not mapped, so that no
file-backed page counts against the process.

Source: the safetensors format description; huggingface_hub's cache layout (snapshots/<revision>/x -> blobs/<hash>).
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from safetensors import SafetensorError, safe_open

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.positional import read_at
from ggufsmith.convert.config import read_json
from ggufsmith.convert.weightfiles import choose_weights

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    dtype: as safetensors spells it ("BF16"). offset: bytes from the start of the file. nbytes: exact size.
    A tensor that is made of several others is a `sources.scheme.Made`.
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

    def close(self) -> None: ...


class Opener(Protocol):
    """Opens files to read. It can be pickled, to open them in another process.

    remote: those that are not on the disk, where something else may stand in for them.
    """

    @property
    def remote(self) -> Collection[Path]: ...
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
        return read_at(self._files[path].fileno(), buffer, offset)

    def close(self) -> None:
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
        return tuple(dict.fromkeys(part.path for source in self.tensors.values() for part in source.stored))

    def read_into(self, source: StoredTensor, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `start` on. Thread-safe. Malformed if the file ends."""
        if self._reader.read_into(source.path, source.offset + start, buffer) < len(buffer):
            raise Malformed(
                f"the file ends inside tensor {source.name!r}: it was cut after its header was read",
                where=source.path,
            )


def open_checkpoint(folder: Path, open_files: Opener = LocalFiles) -> Checkpoint:
    """Read every header of the model folder. open_files: how the tensors' bytes will be read.

    Malformed: a missing, truncated or damaged shard, a path that leaves the folder, a tensor found twice.
    Unsupported: a folder without weights that can be read, or torch is missing for pickled ones.
    """
    if not folder.is_dir():
        raise Malformed("there is no such folder", where=folder)
    chosen = choose_weights(_names(folder), lambda name: weight_map(folder / name), where=folder)
    listed = chosen.listed
    if chosen.index is not None:
        paths = [_inside(folder, name, folder / chosen.index) for name in chosen.names]
    elif chosen.names:
        paths = [contained(folder, folder / name) for name in chosen.names]
        if paths[0].suffix == ".pth":
            return _open_original(folder, paths, chosen.notes)
    else:
        raise _no_weights(folder)
    tensors: dict[str, StoredTensor] = {}
    extra: list[str] = []
    for path in paths:
        for source in read_tensors(path):
            if listed is not None and listed.get(source.name) != path.name:
                extra.append(source.name)
                continue
            if source.name in tensors:
                raise Malformed(
                    f"tensor {source.name!r} is in {tensors[source.name].path.name} and again in {path.name}",
                    where=folder,
                    fix="Move the file that is not of this model out of the folder.",
                )
            tensors[source.name] = source
    if listed is not None:
        missing = sorted(set(listed) - set(tensors))
        if missing:
            raise Malformed(
                f"{len(missing)} tensors are listed but not in their files",
                where=folder / str(chosen.index),
                also=[f"{name} (in {listed[name]})" for name in missing[:10]],
                fix="Download the shards again.",
            )
    notes = list(chosen.notes)
    if extra:
        notes.append(f"{len(extra)} tensors that the index does not list are left out, such as {extra[0]}")
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head and embedding and (head.path, head.offset) == (embedding.path, embedding.offset):  # only pickles can
        del tensors[head.name]
        notes.append("lm_head.weight is the embedding itself, stored once")
    return Checkpoint(folder, tensors, tuple(notes), open_files)


def read_tensors(path: Path) -> Iterator[StoredTensor]:
    """The tensors of one file, safetensors or pickled, in its order. Malformed or Unsupported as `open_checkpoint`."""
    return read_header(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_pickle(path: Path) -> "Iterator[StoredTensor]":
    from ggufsmith.convert.pickles import read_pickle  # it needs `Source`

    return read_pickle(path)


def _open_original(folder: Path, paths: list[Path], notes: tuple[str, ...]) -> Checkpoint:
    """The files of the original Llama release, each with a part of every matrix."""
    from ggufsmith.convert.original import join, original_config

    tensors = join([_read_pickle(path) for path in paths], original_config(folder / "params.json"))
    return Checkpoint(folder, tensors, notes)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index has it. Malformed if it is none."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise Malformed('"weight_map" must map tensor names to file names', where=index)
    return listed


def _inside(folder: Path, name: str, index: Path) -> Path:
    """The shard `name`, which must be an existing file of the folder (or a link into the hub cache's blobs)."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if len(parts.parts) != 1 or name in ("", ".", "..") or ":" in name or "\0" in name:
        raise Malformed(
            f"shard name {name!r} leaves the model folder", where=index, fix="Shards stand beside the index."
        )
    path = folder / name
    if not path.is_file():
        raise Malformed(f"shard {name!r} is missing", where=folder, fix="Download the missing file.")
    return contained(folder, path)


def contained(folder: Path, path: Path) -> Path:
    """`path` itself, once its symbolic links are known to stay in the folder or in the hub cache's blobs."""
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return path
    model = home.parent.parent
    blobs = (model / "blobs", model.parent / "blobs")  # of this model; shared by all, since huggingface_hub 2
    if home.parent.name == "snapshots" and any(real.is_relative_to(place.resolve()) for place in blobs):
        return path
    raise Malformed(
        f"{path.name} is a link to {real}, outside the model folder",
        where=folder,
        fix="Pass the folder that holds the files themselves, or copy them here.",
    )


def _no_weights(folder: Path) -> Malformed | Unsupported:
    """Why there is nothing to read."""
    kinds = {
        "consolidated*.safetensors": "Mistral's own format; take the model.safetensors of the same repository",
        "adapter_*.safetensors": "a LoRA adapter, not a model; merge it into its base model first",
        "*.bin": "no pytorch_model*.bin",
        "*.pth": "no consolidated.*.pth beside a params.json",
        "*.gguf": "already a GGUF file",
    }
    for pattern, what in kinds.items():
        other = next(iter(sorted(folder.glob(pattern))), None)
        if other is not None:
            return Unsupported(f"no model.safetensors here, and {other.name} is {what}", where=folder)
    return Malformed(
        "there are no *.safetensors files here", where=folder, fix="Pass the folder that holds config.json and weights."
    )


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
                f"truncated: the header needs {8 + length} bytes, the file has {size}",
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
        raise Malformed(f"not a valid safetensors file: {error}", where=path, fix="Download it again.") from None
    entries = json.loads(header)  # the library has just validated these bytes
    entries.pop("__metadata__", None)
    for name, entry in sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        begin, end = entry["data_offsets"]
        yield StoredTensor(name, tuple(entry["shape"]), entry["dtype"], path, 8 + length + begin, end - begin)


def _expected_size(header: bytes) -> int | None:
    """The file size a header asks for, if the header can be read at all."""
    try:
        entries: dict[str, Any] = json.loads(header)
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        return None
    return 8 + len(header) + max(ends, default=0)
