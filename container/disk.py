"""What the writer asks of the system: locks, space, flushing."""

import errno
import os
import shutil
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from ggufsmith.container.errors import NoSpace, Usage
from ggufsmith.container.parallel import TICK
from ggufsmith.container.text import shell_command

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCKS = fcntl is not None
WINDOWS = os.name == "nt"  # where open files can be neither renamed nor removed, and folders cannot be opened
# macOS, fcntl(2), F_PREALLOCATE: flags, where from, offset, length, what was allocated (set by the system).
STORE = struct.Struct("=Iiqqq")
F_PREALLOCATE, F_ALLOCATEALL, F_PEOFPOSMODE = 42, 4, 3
CANNOT = {
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
}  # what a file system answers that reserves nothing
PATIENCE = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0)  # seconds between tries to rename a file that someone else has open
FLUSH = 128 * 2**20  # bytes written between two early flushes


class Flusher:
    """Starts writing to the disk early, from its own thread, so that the last flush is short."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = 0
        self._due = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def count(self, size: int) -> None:
        """So many more bytes were written; a flush begins when enough have come together."""
        with self._due:
            self._pending += size
            if self._pending < FLUSH or self._stopped:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flush", daemon=True)
                self._thread.start()
            self._due.notify()

    def stop(self) -> None:
        """End the thread that flushes, and raise what it met."""
        with self._due:
            self._stopped = True
            self._due.notify()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(TICK)

    def _run(self) -> None:
        while True:
            with self._due:
                self._due.wait_for(lambda: self._stopped or self._pending >= FLUSH)
                if self._stopped:
                    return
                self._pending = 0
            with suppress(OSError):  # the flush in commit reports it
                getattr(os, "fdatasync", os.fsync)(self._fd)


def check_space(path: Path, size: int) -> None:
    """NoSpace if the folder of `path` has fewer than `size` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise NoSpace(
            f"the output needs {size} bytes, but only {free} are free in {path.parent}",
            where=path,
            fix=f"Free {size - free} bytes, or write to another disk.",
        )


def reserve(fd: int, size: int) -> None:
    """Give the file at least `size` bytes, from the disk where it can be asked for them, so that none is missing later.

    Where neither the system nor the file system reserves anything, the file only gets its length. OSError if the disk
    has less.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        elif fcntl and sys.platform == "darwin":
            missing = size - 512 * os.fstat(fd).st_blocks
            if missing > 0:
                fcntl.fcntl(fd, F_PREALLOCATE, STORE.pack(F_ALLOCATEALL, F_PEOFPOSMODE, 0, missing, 0))
    except OSError as error:
        if error.errno not in CANNOT:
            raise
    if os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)


def check_folder(folder: Path) -> None:
    """Usage for a folder of an output that does not exist, or is none."""
    if folder.is_dir():
        return
    if folder.exists():
        raise Usage("the output's parent is not a folder", where=folder, fix="Choose another folder for the output.")
    raise Usage("the output folder does not exist", where=folder, fix=shell_command("mkdir", "-p", folder))


def make_folder(path: Path) -> None:
    """Make the folder of outputs, and those above it. Usage if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Usage(
            f"cannot be used as the output folder: {error.strerror}",
            where=path,
            fix="Choose another folder for the outputs.",
        ) from error


def lock(fd: int) -> bool:
    """False if another process holds the lock. Some network filesystems have no locks: there nobody is kept out."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def remove_leftover(file: Path) -> bool:
    """Remove the temporary file of a run that was killed. False if its run is alive."""
    try:
        fd = os.open(file, os.O_RDWR) if fcntl else -1
        try:
            if not lock(fd):
                return False
            file.unlink()
        finally:
            if fd >= 0:
                os.close(fd)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name, in the place of the file that has it. OSError if that cannot be.

    Windows refuses it while anyone has either file open, as virus scanners have each new file for a moment: there it
    is tried again for two seconds.
    """
    for pause in PATIENCE if WINDOWS else ():
        try:
            os.replace(source, target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    os.replace(source, target)


def force(fd: int) -> None:
    """Flush to the platter; on macOS fsync alone stops at the drive's cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl and full is not None:
        try:
            fcntl.fcntl(fd, full)
            return
        except OSError:  # not every filesystem has it
            pass
    os.fsync(fd)


def force_folder(folder: Path) -> None:
    """Make the rename itself durable. Windows cannot open a folder, and some file systems cannot open or flush one."""
    if WINDOWS:
        return
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
