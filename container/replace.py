"""Small files beside the outputs, such as cards and records: replaced whole, or not at all."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ggufsmith.container.disk import check_folder, rename
from ggufsmith.container.errors import Failure, NoSpace, OutputConflict, Usage
from ggufsmith.container.output_names import check_name
from ggufsmith.container.writer import FULL


def check_place(path: Path | None) -> None:
    """Usage, before the work, if no file can be put there. None is fine."""
    if path is not None and path.is_dir():
        raise Usage("there is a folder of this name", where=path, fix="Choose another name for the file.")
    if path is not None:
        check_folder(path.absolute().parent)
        check_name(path, fix="Choose another name for the file.")


def check_new(path: Path, *, overwrite: bool) -> None:
    """`check_place`, and OutputConflict for a file that is there and may not be replaced."""
    check_place(path)
    if not overwrite and path.exists():
        raise OutputConflict("the output already exists", where=path, fix="Choose another with -o.")


def replace_text(path: Path, text: str, *, alone: bool = False) -> None:
    """`replace_bytes` with `text` in UTF-8."""
    replace_bytes(path, text.encode("utf-8", "backslashreplace"), alone=alone)


def replace_bytes(
    path: Path, data: bytes, *, alone: bool = False, check: Callable[[Path], None] = lambda written: None
) -> None:
    """Put `data` in the place of what `path` holds; a symbolic link is followed, a pipe or device written.

    alone: nobody else writes it at the same time, so that what a killed run leaves beside it is replaced by the next.
    check: called with the complete file before it gets its name; what it raises leaves the old one in place.

    NoSpace if the disk is full, Failure if it cannot be written otherwise; what was there before is then still there.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(Path(os.path.realpath(path)), data, alone, check)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(f"cannot write: {error.strerror}", where=path, fix="Free some space.") from error
        fix = "Check that you may write there, or choose another place."
        raise Failure(f"cannot write: {error.strerror}", where=path, fix=fix) from error


def _replace(path: Path, data: bytes, alone: bool, check: Callable[[Path], None]) -> None:
    token = "" if alone else f".{secrets.token_hex(6)}"
    temporary = path.with_name(f".{path.name.lstrip('.')}{token}.partial")
    try:
        with temporary.open("wb" if alone else "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        rename(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
