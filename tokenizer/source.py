"""The files of a model folder, read as what they are: untrusted.

Every failure is one `Malformed` that names the file and the key. Nothing here follows a link out of the folder: a
template that points at a private file would otherwise end up in the converted model.
"""

import gc
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed

MAX_BYTES = 256 * 2**20  # the largest tokenizer.json known (Gemma 3) has 33 MiB
MAX_TOKENS = 2**21  # the largest vocabulary known has 2**18 tokens

Json = dict[str, Any]


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    whole = dict(pairs)
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


def inside(folder: Path, path: Path) -> bool:
    """Whether `path`, links resolved, lies in `folder` or among the blobs of its Hugging Face cache entry."""
    home = folder.resolve()
    model = home.parent.parent
    blobs = [model / "blobs", model.parent / "blobs"]  # of this model; shared by all, since huggingface_hub 2
    homes = [home, *(blobs if home.parent.name == "snapshots" else [])]
    target = path.resolve()
    return any(target.is_relative_to(place) for place in homes)


def read_bytes(folder: Path, name: str, limit: int = MAX_BYTES) -> bytes | None:
    """The bytes of folder/name, None if there is no such file. Malformed: a link out of the folder, too large."""
    path = folder / name
    if not path.is_file():
        return None
    if not inside(folder, path):
        raise Malformed(
            f"this is a link that points outside the model folder, to {path.resolve()}",
            where=path,
            fix="Copy the file into the folder if it belongs to the model.",
        )
    found = path.stat().st_size
    if found > limit:
        raise Malformed(f"{found} bytes exceed the limit of {limit}", where=path)
    return path.read_bytes()


def read_text(folder: Path, name: str) -> str | None:
    """The text of folder/name in UTF-8, None if there is no such file, line ends as they are."""
    raw = read_bytes(folder, name)
    if raw is None:
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"the file is not UTF-8 at byte {error.start}", where=folder / name) from None


def read_object(folder: Path, name: str) -> Json | None:
    """The JSON object in folder/name, None if there is no such file."""
    text = read_text(folder, name)
    if text is None:
        return None
    try:
        with _uncollected():
            whole = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise Malformed("the JSON is nested too deeply", where=folder / name) from None
    except ValueError as error:
        raise Malformed(f"the file is not valid JSON: {error}", where=folder / name) from None
    result: Json = expect(whole, dict, where=folder / name, key="the whole file")
    return result


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
    """parent[key] if present and not null, checked; None otherwise."""
    value = parent.get(key)
    return None if value is None else expect(value, kind, where=where, key=f"{path}{key}")


def token_ids(value: Any, *, where: object, key: str) -> tuple[int, ...]:
    """The ids a key states: an integer, an array of them, or null. Negative ids mean "none" (`pad_token_id: -1`)."""
    if value is None:
        return ()
    stated: Sequence[Any] = value if isinstance(value, list) else (value,)
    return tuple(i for i in (expect(v, int, where=where, key=key) for v in stated) if i >= 0)


def token_text(value: Any, *, where: object, key: str) -> str | None:
    """The text of a token as tokenizer_config.json gives it: a string, an object with `content`, or null."""
    if value is None or isinstance(value, str):
        return value
    content = expect(value, (str, dict), where=where, key=key).get("content")
    return None if content is None else str(expect(content, str, where=where, key=f"{key}.content"))
