"""No run writes over what it reads, or two things into one file. Both are looked at before the work."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ggufsmith.container.errors import OutputConflict


def check_apart(output: Path, inputs: Iterable[Path]) -> None:
    """OutputConflict if the output is one of the inputs, under any name."""
    if file := one_of(output, inputs):
        what = f"the output is the input {file}"
        raise OutputConflict(what, where=os.path.realpath(output), fix="Choose another output.")


def one_of(path: Path, files: Iterable[Path]) -> Path | None:
    """Which of the files an existing path is, under any name."""
    if not os.path.exists(path):
        return None
    return next((file for file in files if os.path.exists(file) and os.path.samefile(file, path)), None)


def check_all_apart(outputs: Iterable[Path | None], inputs: Iterable[Path]) -> None:
    """`check_apart` for everything that a run writes, and `check_distinct`. None stands for what is not written."""
    written, read = [path for path in outputs if path is not None], list(inputs)
    for path in written:
        check_apart(path, read)
    check_distinct(written)


def check_distinct(outputs: Iterable[Path]) -> None:
    """OutputConflict if two outputs are one file, whether it exists or not. A pipe or a device takes several."""
    known: set[str] = set()
    for path in outputs:
        key = place_of(path)
        if key in known and (path.is_file() or not path.exists()):
            what = "two different files would be written here"
            raise OutputConflict(what, where=path, fix="Choose another name for one of them.")
        known.add(key)


def place_of(path: Path) -> str:
    """Equal for paths that may be one file, also where cases, and composed and decomposed accents, are the same."""
    return unicodedata.normalize("NFC", os.path.normcase(os.path.realpath(path)).casefold())
