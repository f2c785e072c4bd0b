"""A model folder: which files hold its tensors, and where each tensor's bytes lie.

safetensors come first; without any, pickled files are read as `sources.pickles` says. Opening reads headers only. The
safetensors library validates every header (overlaps, holes, shapes against sizes); the offsets, which it does not
expose, are then taken from the same header. Bytes are read into the caller's buffers, not mapped, so that no
file-backed page counts against the process.

Source: the safetensors format description; huggingface_hub's cache layout (snapshots/<revision>/x -> blobs/<hash>).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Self

from safetensors import SafetensorError, safe_open

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.positional import read_at
from ggufsmith.convert.config import read_json

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Source:
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
    def stored(self) -> "tuple[Source, ...]":
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


@dataclass
class Checkpoint:
    """The tensors of a model folder by name, in file order, and sentences for the report.

    Entering opens the files for reading; leaving closes them.
    """

    folder: Path
    tensors: Mapping[str, Source]
    notes: tuple[str, ...] = ()
    _files: dict[Path, IO[bytes]] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Self:
        for path in self.files:
            self._files[path] = path.open("rb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._files:
            self._files.popitem()[1].close()

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(part.path for source in self.tensors.values() for part in source.stored))

    def read_into(self, source: Source, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `start` on. Thread-safe. Malformed if the file ends."""
        if read_at(self._files[source.path].fileno(), buffer, source.offset + start) < len(buffer):
            raise Malformed(
                f"the file ends inside tensor {source.name!r}: it was cut after its header was read",
                where=source.path,
            )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read every header of the model folder.

    Malformed: a missing, truncated or damaged shard, a path that leaves the folder, a tensor found twice.
    Unsupported: a folder without weights that can be read, or torch is missing for pickled ones.
    """
    index = _index_file(folder)
    if index is None:
        listed, paths = None, _loose_files(folder)
        if paths[0].suffix == ".pth":
            return _open_original(folder, paths)
    else:
        listed = _weight_map(index)
        paths = sorted({_inside(folder, name, index) for name in listed.values()})
    tensors: dict[str, Source] = {}
    extra: list[str] = []
    for path in paths:
        for source in _read_header(path) if path.suffix == ".safetensors" else _read_pickle(path):
            if listed is not None and listed.get(source.name) != path.name:
                extra.append(source.name)
                continue
            if source.name in tensors:
                raise Malformed(
                    f"tensor {source.name!r} is in {tensors[source.name].path.name} and again in {path.name}",
                    where=folder,
                    fix="Keep one of the two files, or add the model.safetensors.index.json that says which counts.",
                )
            tensors[source.name] = source
    if listed is not None:
        missing = sorted(set(listed) - set(tensors))
        if missing:
            raise Malformed(
                f"{len(missing)} tensors are listed but not in their files",
                where=index,
                also=[f"{name} (in {listed[name]})" for name in missing[:10]],
                fix="Download the shards again.",
            )
    notes = [f"{len(extra)} tensors that the index does not list are left out, such as {extra[0]}"] if extra else []
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head and embedding and (head.path, head.offset) == (embedding.path, embedding.offset):  # only pickles can
        del tensors[head.name]
        notes.append("lm_head.weight is the embedding itself, stored once")
    return Checkpoint(folder, tensors, tuple(notes))


def _read_pickle(path: Path) -> "Iterator[Source]":
    from ggufsmith.convert.sources.pickles import read_pickle  # it needs `Source`

    return read_pickle(path)


def _open_original(folder: Path, paths: list[Path]) -> Checkpoint:
    """The files of the original Llama release, each with a part of every matrix."""
    from ggufsmith.convert.sources.original import join, original_config

    return Checkpoint(folder, join([_read_pickle(path) for path in paths], original_config(folder / "params.json")))


def _index_file(folder: Path) -> Path | None:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    usual = folder / "model.safetensors.index.json"
    if usual in indexes:
        return usual
    if not any(folder.glob("*.safetensors")):
        indexes = sorted(folder.glob("pytorch_model*.bin.index.json"))
    indexes = [path for path in indexes if not path.name.startswith("consolidated")]
    if len(indexes) > 1:
        raise Malformed(
            f"{len(indexes)} index files: {', '.join(path.name for path in indexes)}",
            where=folder,
            fix="Keep the one that belongs to the weights you want.",
        )
    return indexes[0] if indexes else None


def _weight_map(index: Path) -> dict[str, str]:
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
    return _contained(folder, path)


def _contained(folder: Path, path: Path) -> Path:
    """`path` itself, once its symbolic links are known to stay in the folder or in the hub cache's blobs."""
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return path
    cache = home.parent.parent / "blobs"
    if home.parent.name == "snapshots" and real.is_relative_to(cache.resolve()):
        return path
    raise Malformed(f"{path.name} is a link to {real}, outside the model folder", where=folder)


def _loose_files(folder: Path) -> list[Path]:
    """The files with weights of a folder without an index: safetensors, else pickled ones.

    consolidated*.safetensors holds the same weights under the names of Mistral's own format, adapters are no model.
    """
    found = sorted(folder.glob("*.safetensors"))
    paths = [path for path in found if not path.name.startswith(("consolidated", "adapter_"))]
    if paths:
        return [_contained(folder, path) for path in paths]
    if not folder.is_dir():
        raise Malformed("there is no such folder", where=folder)
    parts = sorted(folder.glob("consolidated.*.pth")) if (folder / "params.json").is_file() else []
    pickled = sorted(folder.glob("pytorch_model*.bin")) or parts or sorted(folder.glob("*.pt"))
    if pickled:
        return [_contained(folder, path) for path in pickled]
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
            raise Unsupported(f"no model.safetensors here, and {other.name} is {what}", where=folder)
    raise Malformed(
        "there are no *.safetensors files here", where=folder, fix="Pass the folder that holds config.json and weights."
    )


def _read_header(path: Path) -> Iterator[Source]:
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
        yield Source(name, tuple(entry["shape"]), entry["dtype"], path, 8 + length + begin, end - begin)


def _expected_size(header: bytes) -> int | None:
    """The file size a header asks for, if the header can be read at all."""
    try:
        entries: dict[str, Any] = json.loads(header)
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        return None
    return 8 + len(header) + max(ends, default=0)
