"""Texts to calibrate with and to measure on: files and folders of users, and those that ship with the package."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.positional import unreadable
from ggufsmith.container.text import told_apart
from ggufsmith.container.untrusted import parse_json, read_bytes, shown

ROLES = ("system", "user", "assistant")
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")  # what is read of a folder; a file that is named may have any other
PAGE = "\n\f\n"  # between the documents of a file that ships with the package
MAX_SIZE = 4 << 30  # bytes of a file; all of it is held in memory
FIX = 'Each row needs a "text", or "messages" with a "role" and a "content" each.'


@dataclass(frozen=True)
class TextDocument:
    """One text, or one chat.

    domain:   what it is an example of; results are reported for each domain.
    text:     the text, if it is one.
    messages: the chat, if it is one: of each message its "role" (one of ROLES) and its "content".
    name:     the name of the file, with as much of its folder as tells it from others that were named.
    """

    domain: str
    text: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    name: str = ""


def read_texts(paths: Sequence[Path]) -> list[TextDocument]:
    """The texts of files and folders, in this order.

    .jsonl files have one object on each line, with `text` or `messages`; .parquet files have such columns, and need
    pyarrow. All other files are one text in UTF-8, from which one line end at the end is left out, as llama.cpp does
    with `--file`. Of a folder, the files with the suffixes above are read, in the order of their paths, those of
    subfolders too, but nothing whose name begins with a dot.

    The domain of a file is its name without the suffix; of a file in a given folder it is the folder's name, or that of
    the subfolder of it in which the file is. Of equal names that were given, folders or suffixes tell the domains
    apart.

    Usage for what is not there, and for a file that would be read twice. Malformed, with file and line, for what is not
    such a text, an empty file or folder, bytes that are not UTF-8; Unsupported for a .parquet file without pyarrow;
    Failure if a file cannot be read.
    """
    documents = []
    for file, domain, name in _all_files(paths):
        documents += _read(file, domain, name)
    return documents


def text_files(paths: Sequence[Path]) -> list[Path]:
    """The files that `read_texts` reads. Raises as it does for folders and files that are not there."""
    return [file for file, *_ in _all_files(paths)]


def shipped(which: Literal["calibration", "test"]) -> list[TextDocument]:
    """The texts that ship with the package. evaluate/text/SOURCES.md says what they are, and where they come from.

    The domains take turns, so that any first part of the documents is a mixture of all.
    """
    folder = files("ggufsmith.evaluate").joinpath("text", which)
    name = f"ggufsmith {which} text"
    domains: dict[str, list[TextDocument]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        domain = file.name.partition(".")[0]
        text = file.read_text(encoding="utf-8").removesuffix("\n")
        domains.setdefault(domain, []).extend(
            TextDocument(domain, messages=tuple(json.loads(part)["messages"]), name=name)
            if file.name.endswith(".jsonl")
            else TextDocument(domain, part, name=name)
            for part in text.split("\n" if file.name.endswith(".jsonl") else PAGE)
        )
    return [document for turn in zip_longest(*domains.values()) for document in turn if document is not None]


def _all_files(paths: Sequence[Path]) -> list[tuple[Path, str, str]]:
    """The files to read, their domains and names. Usage for one that would be read twice."""
    told = told_apart(paths)
    short = [name if path.is_dir() else name.removesuffix(path.suffix) for path, name in zip(paths, told, strict=True)]
    domains = [stem if short.count(stem) == 1 else name for stem, name in zip(short, told, strict=True)]
    found: list[tuple[Path, str, str]] = []
    known: set[str] = set()
    for path, domain, name in zip(paths, domains, told, strict=True):
        for file, part in _files(path):
            if (real := os.path.realpath(file)) in known:
                raise Usage(
                    "this text would be read twice", where=file, fix="Name every text once, and no folder of it."
                )
            known.add(real)
            found.append((file, part or domain, file.name if path.is_dir() else name))
    return found


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """The files to read, and the subfolder of a folder in which each is; empty for what is in none."""
    if not path.is_dir():
        if not path.exists():
            raise Usage("there is no such file or folder", where=path, fix="Pass a text file, or a folder of them.")
        yield path, ""
        return
    found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    inside = sorted((file.relative_to(path), file) for file in found)
    wanted = [(short, file) for short, file in inside if not any(part.startswith(".") for part in short.parts)]
    if not wanted:
        what = f"there are no texts in this folder ({', '.join(SUFFIXES)})"
        raise Malformed(what, where=path, fix="Name another folder, or the files, which may have any suffix.")
    for short, file in wanted:
        yield file, short.parts[0] if len(short.parts) > 1 else ""


def _read(file: Path, domain: str, name: str) -> list[TextDocument]:
    reader = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}.get(file.suffix.lower())
    if reader is None:
        documents = [TextDocument(domain, _content(file).removesuffix("\n"), name=name)]
    else:
        documents = [_document(row, where, domain, name) for where, row in reader(file)]
    documents = [each for each in documents if each.messages or each.text]
    if not documents:
        raise Malformed("the file holds no text", where=file, fix="Leave it out.")
    return documents


def _content(file: Path) -> str:
    raw = read_bytes(file, limit=MAX_SIZE)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Malformed(
            f"the byte 0x{raw[error.start]:02x} is not UTF-8", where=f"{file}:{line}", fix="Save the text as UTF-8."
        ) from None


def _jsonl_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_content(file).removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            yield f"{file}:{number}", parse_json(line.encode(), f"{file}:{number}")


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise Unsupported(
            "reading .parquet files needs pyarrow, which is not installed", where=file, fix="pip install pyarrow"
        ) from None
    if not file.is_file():
        raise Usage("the path is not a regular file", where=file, fix="Pass a file.")
    try:
        with ParquetFile(file) as table:
            columns = [name for name in ("text", "messages") if name in table.schema_arrow.names]
            if not columns:
                names = ", ".join(map(shown, table.schema_arrow.names[:20]))
                raise Malformed(f"the columns are {names}", where=file, fix="One must be `text` or `messages`.")
            number = 0
            for batch in table.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    if found := {key: value for key, value in row.items() if value is not None}:
                        yield f"{file}, row {number}", found
    except (ArrowException, OSError, ValueError) as error:  # pyarrow reports damaged bytes by all of them
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(file, error) from error
        what = f"the file is not Parquet, or is damaged: {shown(str(error))}"
        raise Malformed(what, where=file, fix="Copy, download or make the file again.") from None


def _document(row: Any, where: str, domain: str, name: str) -> TextDocument:
    if not isinstance(row, dict):
        raise Malformed("the row is not an object", where=where, fix=FIX)
    if not {"text", "messages"} & row.keys():
        found = f"has {', '.join(map(shown, list(row)[:20]))}" if row else "is empty"
        raise Malformed(f"the row {found}", where=where, fix=FIX)
    if "messages" not in row:
        return TextDocument(domain, _text(row["text"], "text", where), name=name)
    messages = row["messages"]
    if not isinstance(messages, list):
        raise Malformed('"messages" is not a list', where=where, fix=FIX)
    return TextDocument(domain, messages=tuple(_messages(messages, where)), name=name)


def _messages(messages: Iterable[Any], where: str) -> Iterator[Mapping[str, str]]:
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise Malformed('a message has no "role" or no "content"', where=where, fix=FIX)
        role = message["role"]
        if role not in ROLES:
            raise Malformed(
                f"the role {shown(role)} is not one of {', '.join(ROLES)}", where=where, fix="Leave such chats out."
            )
        yield {"role": role, "content": _text(message["content"], "content", where)}


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f'"{key}" is not a text', where=where, fix=FIX)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        lone = f"U+{ord(value[error.start]):04X}"
        raise Malformed(
            f'"{key}" has {lone}, half of a surrogate pair, which is not a character',
            where=where,
            fix="Write the whole character, or leave the row out.",
        ) from None
    return value
