"""Opens files for reading; reads and writes at a position of one open file, from many threads.

POSIX has calls that move no shared file position; where Python lacks them (Windows), a lock is held around seek.
"""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure, Usage

Buffer = bytes | bytearray | memoryview | NDArray[Any]

MOST = 2**30  # bytes for one call: macOS takes no more than INT_MAX, and answers EINVAL instead of taking fewer
PIECE = 2**18  # bytes copied at a time: they stay in the processor's cache
_seeking = threading.Lock()


def as_bytes(buffer: Buffer) -> memoryview:
    """The bytes of any C-contiguous buffer, structured NumPy arrays included. ValueError if it is not contiguous."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError("the array is not C-contiguous")
        return buffer.reshape(-1).view(np.uint8).data
    return memoryview(buffer).cast("B")


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on. Returns the bytes read, fewer only at the end of the file."""
    done = 0
    while done < len(buffer):
        count = _read(fd, buffer[done : done + MOST], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_at(fd: int, buffer: memoryview, offset: int) -> None:
    """Write all of `buffer` at `offset`."""
    done = 0
    while done < len(buffer):
        done += _write(fd, buffer[done : done + MOST], offset + done)


def copy_at(source: int, start: int, fd: int, offset: int, size: int) -> None:
    """Copy bytes of one file to another, inside the kernel where it can; fewer only at the end of the source."""
    done = 0
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):  # not between these file systems, or a disk is full: then writing says so
            while done < size and (count := os.copy_file_range(source, fd, size - done, start + done, offset + done)):
                done += count
    buffer = memoryview(bytearray(min(PIECE, size - done)))
    while done < size:
        part = buffer[: size - done]
        count = read_at(source, part, start + done)
        write_at(fd, part[:count], offset + done)
        if count < len(part):
            return
        done += count


def _read(fd: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _write(fd: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, buffer, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, buffer)


def unreadable(path: Path, error: OSError, what: str = "the file cannot be read") -> Failure:
    """What the system said of a file that should be read, as one of ours: Usage for one that is not there. Of a folder
    Windows says that access to it was denied.
    """
    if os.path.isdir(path):
        return Failure("this is a folder", where=path, fix="Pass a file.")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Usage("there is no such file", where=path, fix="Check the path.")
    return Failure(f"{what}: {error.strerror or error}", where=path, fix="Check that you may read it, and its disk.")


@contextmanager
def regular_file(path: Path) -> Iterator[tuple[int, int]]:
    """(descriptor, bytes) of a regular file, open for reading; closed again only if the block fails.

    Failure if it cannot be opened. Usage if it is a folder, a pipe or a device.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise unreadable(path, error, "the file cannot be opened") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise Usage(f"the path is {kind}", where=path, fix="Pass a file.")
        yield fd, status.st_size
    except BaseException:
        os.close(fd)
        raise
