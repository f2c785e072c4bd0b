"""Files that others wrote, read as what they are: untrusted.

Every failure is one error that names the file, and the key where there is one. Nothing here follows a link out of the
model's folder: a template that points at a private file would otherwise end up in the converted model.

Source: RFC 8259 (JSON) leaves open what a key that occurs twice means; huggingface_hub's cache layout
(snapshots/REVISION/x -> blobs/HASH).
"""

import gc
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.positional import regular_file, unreadable

MAX_BYTES = 256 * 2**20  # the largest tokenizer.json known (Gemma 3) has 33 MiB
LFS_POINTER = b"version https://git-lfs"  # what a clone without Git LFS has in place of a large file
HEAD = 4 * 2**20  # bytes in which a text of ours says whose it is
# How transformers 5 writes numbers that JSON does not have, such as the upper limit of a time step.
FLOAT, SPECIAL_FLOATS = "__float__", ("Infinity", "-Infinity", "NaN")

AGAIN = "If it was downloaded, download it again."

Json = dict[str, Any]


def is_inside(folder: Path, path: Path) -> bool:
    """Whether `path`, links resolved, lies in `folder` or among the blobs of its entry in the Hugging Face cache."""
    home = folder.resolve()
    model = home.parent.parent
    blobs = (model / "blobs", model.parent / "blobs")  # of this model; shared by all, since huggingface_hub 2
    homes = [home, *(place.resolve() for place in blobs if home.parent.name == "snapshots")]
    target = path.resolve()
    return any(target.is_relative_to(place) for place in homes)


def contained(folder: Path, path: Path) -> Path:
    """`path` itself. Malformed unless `is_inside`."""
    if not is_inside(folder, path):
        raise Malformed(
            f"it leaves the model folder: it leads to {path.resolve()}, outside the model folder",
            where=path,
            fix="Pass the folder that holds the files themselves, or copy them into it.",
        )
    return path


def read_bytes(path: Path, *, inside: Path | None = None, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file.

    inside: the folder that it must not leave by links; None for files that the user named.
    Malformed: a link out of that folder, more than `limit` bytes. Failure: it cannot be read, or is a pipe or device,
    which may have no end.
    """
    if inside is not None:
        contained(inside, path)
    raw, size = _start(path, limit + 1)
    if len(raw) > limit:
        what = f"{max(size, len(raw))} bytes, more than the {limit} read at most"
        raise Malformed(what, where=path, fix="Pass another file, or a part of it.")
    return raw


def begins(path: Path, limit: int = HEAD) -> str:
    """The beginning of the text at a place where a file will be written; empty if nothing is there.

    Usage for anything but a regular file, which would be read without end. Failure: it cannot be read.
    """
    if not path.exists():
        return ""
    if not path.is_file():
        raise Usage("the output exists and is not a regular file", where=path, fix="Choose another output.")
    return _start(path, limit)[0].decode("utf-8", "replace")


def _start(path: Path, size: int) -> tuple[bytes, int]:
    """The first bytes of a regular file, and how many it has."""
    try:
        with regular_file(path) as (fd, total):
            file = os.fdopen(fd, "rb")
        with file:
            return file.read(size), total
    except OSError as error:
        raise unreadable(path, error) from error


def read_text(path: Path, *, inside: Path | None = None, limit: int = MAX_BYTES) -> str:
    """The text of a file in UTF-8, without a byte order mark, line ends as they are. Malformed: see `read_bytes`."""
    return _decoded(read_bytes(path, inside=inside, limit=limit), path)


def with_newlines(text: str) -> str:
    """The same with every line end as Python's text files give it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def load_json(path: Path, *, inside: Path | None = None, limit: int = MAX_BYTES) -> Any:
    """What a JSON file holds. Malformed: see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, inside=inside, limit=limit), path)


def read_object(path: Path, *, inside: Path | None = None, limit: int = MAX_BYTES) -> Json:
    """The object that a JSON file holds. Malformed: see `load_json`, and anything but an object."""
    whole: Json = expect(load_json(path, inside=inside, limit=limit), dict, where=path, key="the whole file")
    return whole


def parse_json(raw: bytes, where: object) -> Any:
    """What JSON in UTF-8 says.

    Malformed: not UTF-8, not JSON, a key that occurs twice in one object, a number with thousands of digits, and lists
    in lists beyond what can be read.
    """
    text = _decoded(raw, where)
    try:
        with _uncollected():
            return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise Malformed("JSON nested too deeply", where=where, fix=AGAIN) from None
    except ValueError as error:  # of JSONDecodeError, of `_unique`, and of numbers with too many digits
        what = f"this is not valid JSON: {error}"
        raise Malformed(what, where=where, fix=AGAIN) from None


def _decoded(raw: bytes, where: object) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 at byte {error.start}", where=where, fix="Save it as UTF-8.") from None


def _unique(pairs: list[tuple[str, Any]]) -> Any:
    whole = dict(pairs)
    if len(whole) == 1 and whole.get(FLOAT) in SPECIAL_FLOATS:
        return float(whole[FLOAT])
    if len(whole) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} occurs twice in one object")
            seen.add(key)
    return whole


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: it would visit the 280 000 small lists of a Llama 3 tokenizer again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: Any) -> str:
    """`value` for a message, cut short: a token can have megabytes, an array a thousand levels."""
    return _short.repr(value)


def expect(value: Any, kind: type | tuple[type, ...], *, where: object, key: str) -> Any:
    """`value` if it is of `kind`; JSON's true and false are not integers. Malformed otherwise."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return value
    wanted = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
    raise Malformed(f"{key} is {_NAMES.get(type(value), type(value).__name__)}, expected {wanted}", where=where)


_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def child(parent: Mapping[str, Any], key: str, kind: type, *, where: object, path: str = "") -> Any:
    """parent[key] if present and not null, checked as by `expect`; None otherwise."""
    value = parent.get(key)
    return None if value is None else expect(value, kind, where=where, key=f"{path}{key}")
