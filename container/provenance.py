"""Hashes of files, and the record that says what a file was made from.

The record is a small JSON file beside the output. It holds no times, no host and no folder names, so that the same work
gives the same record anywhere.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.positional import unreadable
from ggufsmith.container.replace import replace_text
from ggufsmith.container.untrusted import load_json

PIECE = 2**22  # bytes read at a time
MAX_RECORD = 2**26  # bytes; 100 000 hashes are 15 MiB
Advance = Callable[[int], None]


def file_sha256(path: Path, advance: Advance = lambda size: None) -> str:
    """SHA-256 of a file, in hex. `advance` is told of bytes. Failure if it cannot be read."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE))
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(buffer[:size])
                advance(size)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def sum_line(digest: str, name: str) -> str:
    """A line as sha256sum writes it, and reads it with --check: what would end it is escaped, after a backslash."""
    told = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    return f"{'' if told == name else chr(92)}{digest}  {told}"


def described(path: Path, advance: Advance = lambda size: None, *, name: str | None = None) -> dict[str, Any]:
    """The entry of a file in a record. name: what the record calls it; None takes its own.

    advance: told of bytes. Failure if it cannot be read.
    """
    return {"name": name or path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path, advance)}


def record(
    outputs: Sequence[Mapping[str, Any]],
    inputs: Sequence[Mapping[str, Any]],
    *,
    recipe: Mapping[str, Any],
    version: str,
) -> dict[str, Any]:
    """What was made, from what, how; files as `described` has them. recipe: what decides the bytes, as JSON values."""
    return {"made_by": f"ggufsmith {version}", "recipe": recipe, "inputs": inputs, "outputs": outputs}


def record_path(output: Path) -> Path:
    """Where the record of an output stands."""
    return output.with_name(f"{output.name}.provenance.json")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the record at `path` (see `replace_text`)."""
    replace_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record that was written here. Malformed if it is none."""
    try:
        content = load_json(path, limit=MAX_RECORD)
    except Malformed as error:
        raise Malformed(f"the file is not a provenance record: {error.what}", where=path) from None
    listed = content.get("outputs") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(map(_entry, listed)):
        raise Malformed("the file is not a provenance record: its outputs have no names and hashes", where=path)
    return dict(content)


def _entry(each: Any) -> bool:
    return isinstance(each, dict) and all(isinstance(each.get(key), str) for key in ("name", "sha256"))


def record_problems(path: Path, outputs: Sequence[Path], advance: Advance = lambda size: None) -> Iterator[str]:
    """How files differ from what their record says."""
    expected = {each["name"]: each["sha256"] for each in read_record(path)["outputs"]}
    for output in outputs:
        if output.name not in expected:
            yield f"{output.name}: it is not listed in {path.name}"
        elif (found := file_sha256(output, advance)) != expected[output.name]:
            yield f"{output.name}: SHA-256 is {found}, the record says {expected[output.name]}"
