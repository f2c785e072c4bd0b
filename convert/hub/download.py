"""Brings a model from a hub: its files into the cache, or, to stream, its small files and the addresses of the large.

Bytes are checked against the hub's hashes when they arrive. What is in the cache was checked then, by this or by
another program, and is taken by its size. A streamed file passes in pieces and out of order, and only what outputs
lack, while SHA-256 wants every byte in file order, which would be a second pass; what is checked instead is in
`http.Ranges`: every range is what was asked for, of a file of the size that the listing says, whose ETag never changes,
at one commit.
"""

import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from ggufsmith.container.errors import Malformed, NoSpace, Unsupported
from ggufsmith.container.parallel import TaskStopped, parallel_for
from ggufsmith.convert.checkpoint import weight_map
from ggufsmith.convert.hub.ahead import CONNECTIONS, ReadAhead
from ggufsmith.convert.hub.http import Ranges, Remote
from ggufsmith.convert.hub.listing import Advance, Hub, HubFile, Listing
from ggufsmith.convert.hub.names import HUGGING_FACE, MODELSCOPE, HubModel, Located
from ggufsmith.convert.safetensors_header import MAX_HEADER
from ggufsmith.convert.standin import stand_in
from ggufsmith.convert.weightfiles import WeightFiles, choose_weights

AT_ONCE = 4  # files that are downloaded side by side
HEADER = 1 << 16  # bytes read of a safetensors file to begin with; most headers fit
GET = {  # the hubs' own commands
    HUGGING_FACE: "hf download {id} --local-dir FOLDER",
    MODELSCOPE: "modelscope download --model {id} --local_dir FOLDER",
}
Progress = Callable[[int], AbstractContextManager[Advance]]  # of the bytes to come -> told of bytes as they come


def no_progress(size: int) -> AbstractContextManager[Advance]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda more: None)


def hub_of(model: HubModel, token: str | None = None) -> Hub:
    """The client of the model's hub. Unsupported if its library is not installed."""
    if model.hub == MODELSCOPE:
        from ggufsmith.convert.hub.modelscope import ModelScope

        return ModelScope(token)
    from ggufsmith.convert.hub.huggingface import HuggingFace

    return HuggingFace(token)


def download(model: HubModel, hub: Hub, *, weights: bool = True, progress: Progress = no_progress) -> Located:
    """The model in the cache, with all files that a conversion needs. weights: False leaves out the large ones."""
    listing = hub.listing(model)
    bring(hub, listing, listing.companions(), progress)
    folder = hub.folder(listing)
    if not weights:
        return Located(folder, model.id)
    chosen = _choose(listing, folder)
    bring(hub, listing, _weights(listing, chosen), progress)
    return Located(folder, model.id, notes=chosen.notes)


@contextmanager
def streamed(model: HubModel, hub: Hub, progress: Progress = no_progress) -> Iterator[Located]:
    """The model as a folder with its small files, and with the headers of its weights in files of the right size.

    Those are sparse: the disk holds only the headers. Reading goes to the hub. The folder is named as it would be in
    the cache, which says what the model is called. Unsupported for pickled weights.
    """
    listing = hub.listing(model)
    companions = listing.companions()
    bring(hub, listing, companions, progress)
    chosen = _choose(listing, hub.folder(listing))
    weights = _weights(listing, chosen)
    pickled = next((file for file in weights if not file.name.endswith(".safetensors")), None)
    if pickled:
        raise Unsupported(
            f"{pickled.name} is a pickled checkpoint, which must be downloaded",
            where=model,
            fix="Convert without --stream and --dry-run.",
        )
    with TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary, f"models--{model.id.replace('/', '--')}", "snapshots", listing.commit)
        for file in companions:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(hub.folder(listing) / file.name, folder / file.name)
        opener = Streamed.of(hub, listing, {folder / file.name: file for file in weights})
        _stand_in_for(opener.remotes)
        yield Located(folder, model.id, opener, chosen.notes)


@dataclass(frozen=True)
class Streamed:
    """Opens the weights of a model on a hub (see `stored.Opener`).

    Pickled without addresses and headers, which hold the token: another process has those of its own login. The ETags
    go along, so that all read the same files.
    """

    listing: Listing
    files: Mapping[Path, HubFile]
    remotes: Mapping[Path, Remote]

    @classmethod
    def of(cls, hub: Hub, listing: Listing, files: Mapping[Path, HubFile]) -> Self:
        """The opener of these files of a listing. remotes: the place of each file on the disk -> the file."""
        addresses = {path: hub.address(listing, file) for path, file in files.items()}
        return cls(listing, files, {path: Remote(*addresses[path], file.size) for path, file in files.items()})

    @property
    def remote(self) -> Collection[Path]:
        """The files that are not on the disk."""
        return self.remotes.keys()

    def __call__(self, paths: Sequence[Path]) -> ReadAhead:
        return ReadAhead(self.remotes, paths)

    def __reduce__(self) -> tuple[Any, ...]:
        etags = {path: remote.etag for path, remote in self.remotes.items()}
        return _streamed_elsewhere, (replace(self.listing, files={}, unreachable=None), self.files, etags)


def _streamed_elsewhere(listing: Listing, files: Mapping[Path, HubFile], etags: Mapping[Path, str | None]) -> Streamed:
    found = Streamed.of(hub_of(listing.model), listing, files)
    for path, etag in etags.items():
        found.remotes[path].etag = etag
    return found


def bring(hub: Hub, listing: Listing, files: Sequence[HubFile], progress: Progress) -> None:
    """Put files into the cache, and check those that were not there. NoSpace before the first byte.

    Malformed if a file has other bytes than the hub says, twice in a row.
    """
    folder = hub.folder(listing)
    missing = [file for file in files if not _there(folder / file.name, file)]
    if not missing:
        return
    size = sum(file.size for file in missing)
    _check_space(folder, size, listing.model)

    def worker(stop: threading.Event) -> Callable[[HubFile], None]:
        def told(more: int) -> None:
            if stop.is_set():
                raise TaskStopped
            advance(more)

        return lambda file: _bring(hub, listing, file, told)

    with progress(size) as advance:
        parallel_for(worker, missing, AT_ONCE)


def _bring(hub: Hub, listing: Listing, file: HubFile, advance: Advance) -> None:
    path = hub.folder(listing) / file.name
    for _ in range(2):
        hub.fetch(listing, file, advance)
        if file.matches(path):
            return
        hub.discard(listing, file)
    raise Malformed(
        "the downloaded file did not match the hub's size and hash, twice in a row",
        where=f"{listing.model}: {file.name}",
        fix="A proxy or a mirror may have damaged it; try again later or elsewhere.",
    )


def _there(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _check_space(folder: Path, size: int, model: HubModel) -> None:
    place = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        raise NoSpace(
            f"the download needs {size} bytes, but only {free} are free in {place}",
            where=model,
            fix="Free some space, point HF_HOME to another disk, or convert with --stream.",
        )


def _choose(listing: Listing, folder: Path) -> WeightFiles:
    """The files with the weights, as `checkpoint.open_checkpoint` will choose them. folder: with the indexes."""
    names, model = [name for name in listing.files if "/" not in name], listing.model
    get = GET[model.hub].format(id=model.id)
    way_out = f"Download one of the two, and convert FOLDER: {get} --exclude {{single}} (or {{index}})."
    return choose_weights(names, lambda name: weight_map(folder / name), where=model, way_out=way_out)


def _weights(listing: Listing, chosen: WeightFiles) -> list[HubFile]:
    """The files to fetch: those with the weights, or else those of an adapter."""
    wanted = chosen.names or [name for name in listing.files if name.startswith("adapter_model.")]
    found = listing.pick(wanted)
    if listing.unreachable and (not found or len(found) < len(wanted)):
        raise listing.unreachable
    return found


def _stand_in_for(remotes: Mapping[Path, Remote]) -> None:
    """Make a sparse file of the remote's size, with its header, at each path."""
    opened: list[Ranges] = []

    def worker(stop: threading.Event) -> Callable[[tuple[Path, Remote]], None]:
        ranges = Ranges(stop)
        opened.append(ranges)
        return lambda pair: _stand_in(*pair, ranges)

    try:
        parallel_for(worker, remotes.items(), min(CONNECTIONS, max(len(remotes), 1)))
    finally:
        for ranges in opened:
            ranges.close()


def _stand_in(path: Path, remote: Remote, ranges: Ranges) -> None:
    """safetensors begin with 8 bytes of the header's length, then the header."""
    first = bytearray(min(HEADER, remote.size))
    ranges.read(remote, 0, memoryview(first))
    length = 8 + int.from_bytes(first[:8], "little")
    more = bytearray(max(min(length, MAX_HEADER, remote.size) - len(first), 0))
    ranges.read(remote, len(first), memoryview(more))
    stand_in(path, first[:length] + more, remote.size)
    os.utime(path, (0, 0))  # its folder is named after the commit: the same commit is the same input for --resume
