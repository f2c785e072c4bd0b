"""A folder that is made whole or not at all: written beside its place, then renamed.

While it is written, a file beside it is locked. What a killed run left behind has no such lock, and the next run for
the same folder removes it. Windows has no such locks, but there an open file cannot be removed, which serves as well.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ggufsmith.container.disk import check_space, lock, make_folder, remove_leftover, rename
from ggufsmith.container.errors import Failure, NoSpace, OutputConflict
from ggufsmith.container.output_names import check_name
from ggufsmith.container.writer import FULL

TOKEN = 6  # bytes


@contextmanager
def new_folder(path: Path, size: int) -> Iterator[Path]:
    """A temporary folder that becomes `path` when all went well, and is removed otherwise. size: bytes that it needs.

    OutputConflict if `path` is anything but an empty folder, Usage if there cannot be one, NoSpace if the disk is or
    becomes full, Failure for everything else that the system refuses.
    """
    if path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None):
        raise OutputConflict(
            "the output already exists and is not an empty folder",
            where=path,
            fix="Choose another folder with --outdir.",
        )
    check_name(path, fix="Choose another folder with --outdir.")
    make_folder(path.parent)
    _remove_leftovers(path)
    check_space(path, size)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN)}.partial")
    held = _held(temporary)
    try:
        with held.open("xb") as file:
            lock(file.fileno())
            temporary.mkdir()
            yield temporary
            if path.exists():
                path.rmdir()
            rename(temporary, path)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(f"cannot write: {error.strerror}", where=path, fix="Free some space.") from error
        raise Failure(f"cannot write: {error.strerror}", where=path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            held.unlink()


def _held(temporary: Path) -> Path:
    """The file that is locked while its run is alive. It is there before the folder, and gone after it."""
    return temporary.with_name(f"{temporary.name}.lock")


def _remove_leftovers(path: Path) -> None:
    """What killed runs for the same folder left."""
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * TOKEN}}}\.partial")
    for name in os.listdir(path.parent):
        if left.fullmatch(name) and remove_leftover(_held(path.with_name(name))):
            shutil.rmtree(path.with_name(name), ignore_errors=True)
