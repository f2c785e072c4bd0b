"""GGUF file names: `[<Sidecar>-]<BaseName>-<SizeLabel>-<FineTune>-<Version>-<Encoding>-<Type>-<Shard>.gguf`.

GGUF specification (ggml, docs/gguf.md), "GGUF Naming Convention". Every component but the base name may be missing, and
names in the wild omit the version most, so a component is recognised by its own look, from both ends inwards.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from ggufsmith.container.errors import Usage
from ggufsmith.container.shards import SHARD, SUFFIX, shard_name

SIDECARS = ("mmproj", "mtp")
TYPES = ("LoRA", "vocab")

_SIZE = re.compile(r"(\d+x)?(\d+\.)?\d+[QTBMK]", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"[A-Za-z]+(\d+\.)?\d+[A-Za-z]+")  # what may follow a size, as in 3.8B-ContextLength4k
_LABEL = re.compile(f"{_SIZE.pattern}(-{_ATTRIBUTE.pattern})?", re.IGNORECASE)
_VERSION = re.compile(r"v\d+(\.\d+)*")
_ENCODING = re.compile(r"(B?F(16|32|64)|(K|I|T)?Q\d\w*|(MX|NV)FP4\w*)", re.IGNORECASE)
_WORDS = re.compile(r"[\w.\s-]+")


@dataclass(frozen=True)
class FileName:
    """The components of one name.

    base:  model family, with dashes as they stand.
    shard: (number from 1 on, how many).
    """

    base: str
    size_label: str | None = None
    fine_tune: str | None = None
    version: str | None = None
    encoding: str | None = None
    type: str | None = None
    shard: tuple[int, int] | None = None
    sidecar: str | None = None

    def format(self) -> str:
        """The file name."""
        parts = (self.sidecar, self.base, self.size_label, self.fine_tune, self.version, self.encoding, self.type)
        stem = "-".join(part for part in parts if part is not None)
        return shard_name(stem, *self.shard) if self.shard else stem + SUFFIX

    def problems(self) -> Iterator[str]:
        """What the convention asks for and this name lacks; nothing for a conforming name."""
        if not self.size_label:
            yield "no size label, such as 7B or 8x7B"
        elif not _LABEL.fullmatch(self.size_label):
            yield f"size label {self.size_label!r} is not <count><Q, T, B, M or K>"
        if not self.version:
            yield "no version, such as v1.0"
        elif not _VERSION.fullmatch(self.version):
            yield f"version {self.version!r} is not v<major>.<minor>"
        if not _WORDS.fullmatch(self.format()):
            yield "a name may contain only letters, digits, points, dashes and underscores"


def parse(name: str) -> FileName:
    """The components of a file name, of its last part if it is a path. Usage if it has no base name or no `.gguf`."""
    file = PurePath(name).name
    stem = file.removesuffix(SUFFIX)
    if stem == file or not stem:
        raise Usage(f"{file!r} is not a name ending in {SUFFIX}", fix="Name a GGUF file: NAME.gguf.")
    found: dict[str, str] = {}
    shard = None
    if match := SHARD.search(stem):
        shard = (int(match[1]), int(match[2]))
        stem = stem[: match.start()]
    parts = stem.split("-")
    if any(parts[1:]) and parts[0] in SIDECARS:
        found["sidecar"] = parts.pop(0)
    if any(parts[:-1]) and parts[-1] in TYPES:
        found["type"] = parts.pop()
    if any(parts[:-1]) and (_ENCODING.fullmatch(parts[-1]) or (any(parts[:-2]) and _VERSION.fullmatch(parts[-2]))):
        found["encoding"] = parts.pop()
    if any(parts[:-1]) and _VERSION.fullmatch(parts[-1]):
        found["version"] = parts.pop()
    size = next((i for i, part in enumerate(parts) if any(parts[:i]) and _SIZE.fullmatch(part)), len(parts))
    tail = parts[size:]
    labels = 2 if len(tail) > 1 and _ATTRIBUTE.fullmatch(tail[1]) else 1
    if tail:
        found["size_label"] = "-".join(tail[:labels])
    if tail[labels:]:
        found["fine_tune"] = "-".join(tail[labels:])
    return FileName("-".join(parts[:size]), shard=shard, **found)


def output_name(model: str, encoding: str, sidecar: str | None = None) -> str:
    """The default output: the name of a folder, or of a model id without its owner, and the encoding in capitals.

    sidecar: what it begins with, if it goes with another file.
    """
    stem = model.rstrip("/").rpartition("/")[2].strip().replace(" ", "-")
    return f"{sidecar}-{stem}-{encoding.upper()}{SUFFIX}" if sidecar else f"{stem}-{encoding.upper()}{SUFFIX}"
