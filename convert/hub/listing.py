"""What a model on a hub consists of, and which of its files a conversion needs."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.convert.hub.names import HubModel, stays_inside
from ggufsmith.convert.inputs import is_companion

PIECE = 1 << 22  # bytes read at a time
MAX_SIZE = 2**63  # bytes of a file
SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
WRONG_ANSWER = "Try again later. If the error persists, a proxy or firewall may be answering instead of the hub."
Advance = Callable[[int], None]


@dataclass(frozen=True)
class HubFile:
    """One file of a model.

    size:   bytes. sha256: of the bytes, in hex, for what the hub keeps in large-file storage.
    git_id: else the id that git gives to these bytes.
    """

    name: str
    size: int
    sha256: str | None = None
    git_id: str | None = None

    def matches(self, path: Path) -> bool:
        """Whether the bytes at `path` are those the hub has. A hub that tells no hash is asked for the size only."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return _digest(path, hashlib.sha256()) == self.sha256
        if self.git_id is not None and len(self.git_id) == 40:
            start = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            return _digest(path, start) == self.git_id
        return True


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb", buffering=0) as file:
        for piece in iter(partial(file.read, PIECE), b""):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit.

    commit: what to ask the hub for, so that all files are of one state.
    unreachable: why these are the files in the cache, and not those on the hub.
    """

    model: HubModel
    commit: str
    files: Mapping[str, HubFile]
    unreachable: Failure | None = None

    def __post_init__(self) -> None:
        """Malformed for anything in it that is not what it should be: it comes from far away."""
        if not stays_inside(self.commit):
            raise self._wrong(f"{self.commit!r:.80} is not the name of a commit")
        for name, file in self.files.items():
            if not stays_inside(name):
                raise self._wrong(f"the hub lists a file {name!r:.80}, which points outside the model's folder")
            if type(file.size) is not int or not 0 <= file.size < MAX_SIZE:
                raise self._wrong(f"the hub does not give a valid size for {name}")
            if file.sha256 is not None and not (isinstance(file.sha256, str) and SHA256.fullmatch(file.sha256)):
                raise self._wrong(f"what the hub calls the SHA-256 of {name} is none")

    def _wrong(self, what: str) -> Malformed:
        return Malformed(what, where=self.model, fix=WRONG_ANSWER)

    def companions(self) -> list[HubFile]:
        """The small files that a conversion reads."""
        return [file for file in self.files.values() if is_companion(file.name)]

    def pick(self, names: Iterable[str]) -> list[HubFile]:
        """The files of these names, those that the hub does not have left out."""
        return [self.files[name] for name in names if name in self.files]


class Hub(Protocol):
    """One hub: what its client library is asked for. Every method raises errors of the family only."""

    def listing(self, model: HubModel) -> Listing:
        """The files of a model at its newest commit, or at the revision that was asked for."""

    def folder(self, listing: Listing) -> Path:
        """Where the cache keeps the files of this commit."""

    def fetch(self, listing: Listing, file: HubFile, advance: Advance) -> None:
        """Put a file into the cache, if it is not there. advance: told of bytes as they arrive."""

    def discard(self, listing: Listing, file: HubFile) -> None:
        """Take a damaged file out of the cache."""

    def address(self, listing: Listing, file: HubFile) -> tuple[str, Mapping[str, str]]:
        """The URL of a file, and the headers that its own host, and no other, may see."""
