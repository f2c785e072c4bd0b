"""Writes a GGUF file so that its path always holds either the old complete file or the new verified one.

A temporary file `.NAME.<random>.partial` in the destination folder takes the bytes; `commit` checks it with the reader,
forces it to the disk and renames it. While it is open it is the lock of this output as well: another run that wants the
same output finds it locked and stops; one that finds it unlocked knows that its writer was killed, and removes it. The
kernel drops the lock with the process, so nothing is ever stale. (Windows: an open file cannot be removed.)
"""

import errno
import os
import secrets
import shutil
import stat
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, TracebackType

from ggufsmith.container.errors import Failure, Malformed, NoSpace, OutputConflict, Usage
from ggufsmith.container.layout import Layout
from ggufsmith.container.positional import Buffer, as_bytes, read_at, write_at
from ggufsmith.container.reader import TensorInfo, open_gguf

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FLUSH = 128 * 2**20  # bytes written between two early flushes
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # EFBIG: FAT's 4 GiB, or a process limit


def gguf_tensors(path: Path) -> list[TensorInfo]:
    """The tensors of a GGUF file."""
    with open_gguf(path) as file:
        return list(file.tensors.values())


class Writer:
    """One output file, for use in a `with`; leaving it without `commit` removes what was written.

    path:      the output. A symbolic link is followed: what it points to is replaced.
    sync:      False leaves flushing to the system: the file may be lost with the power, as any scratch file.
    overwrite: False refuses an output that exists.
    inputs:    files that are read; none of them may be the output, under any name.
    reader:    gives the tensors of a file as they stand in it, for the check before the name is given.

    Entering raises Usage for a destination that cannot hold a file, OutputConflict for an output that exists, is an
    input, or is being written by another run, NoSpace with the bytes needed and free. Memory does not grow with the
    file: a record of 16 bytes or so is kept per write.
    """

    def __init__(
        self,
        path: Path | str,
        layout: Layout,
        *,
        sync: bool = True,
        overwrite: bool = True,
        inputs: Sequence[Path] = (),
        reader: Callable[[Path], list[TensorInfo]] = gguf_tensors,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.layout = layout
        self.sync = sync
        self.overwrite = overwrite
        self.inputs = inputs
        self.reader = reader
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.partial")
        self._fd = -1
        self._written: list[tuple[int, int]] = []
        self._flusher: _Flusher | None = None

    def __enter__(self) -> "Writer":
        self._check_destination()
        try:  # an interrupt can come at any point from here on
            with self._reporting("cannot make a file in this folder", Usage):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                self._fd = os.open(self._temporary, flags, 0o666)
            self._claim()
            self._reserve()
            with self._reporting("cannot write"):
                write_at(self._fd, memoryview(self.layout.header), 0)
            if self.sync:
                self._flusher = _Flusher(self._fd)
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, offset: int, data: Buffer) -> None:
        """Put the bytes of `data`, C-contiguous, at `offset` of the file. Safe from many threads.

        Every byte of every tensor is to be written once; `commit` checks that. NoSpace if the disk is full.
        """
        view = as_bytes(data)
        end = offset + len(view)
        if offset < len(self.layout.header) or end > self.layout.size:
            raise Failure(f"a write to bytes {offset}..{end} is outside the tensors", where=self.path)
        with self._reporting("cannot write"):
            write_at(self._fd, view, offset)
        self._written.append((offset, end))
        if self._flusher:
            self._flusher.count(len(view))

    def commit(self) -> None:
        """Verify the file, force it to the disk, give it its name. Failure, and no new file, if it is not complete."""
        self.seal()
        self.publish()
        if self.sync:
            force_folder(self.path.parent)

    def seal(self) -> None:
        """All of `commit` but the name."""
        self._check_cover()
        if self._flusher:
            self._flusher.stop()
            with self._reporting("cannot flush to the disk"):
                _force(self._fd)
        self._verify()
        if not self.overwrite and self.path.exists():
            raise self._exists()

    def publish(self) -> None:
        """Give the sealed file its name."""
        if os.name == "nt":  # an open file cannot be renamed there
            self._close()
        with self._reporting("cannot rename the finished file"):
            os.replace(self._temporary, self.path)
        self._close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _exists(self) -> OutputConflict:
        return OutputConflict("the output exists already", where=self.path, fix="Allow overwriting, or name another.")

    def _busy(self, other: Path) -> OutputConflict:
        return OutputConflict(
            "another run is writing this output",
            where=self.path,
            fix=f"Wait until it ends. If there is none on any machine, remove {other}.",
        )

    @contextmanager
    def _reporting(self, what: str, kind: type[Failure] = Failure) -> Iterator[None]:
        """An OSError in the block as one of ours."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise kind(f"{what}: {error.strerror}", where=self.path) from error
            free = shutil.disk_usage(self.path.parent).free
            raise NoSpace(
                f"{what}: {error.strerror}; the file needs {self.layout.size} bytes, {free} are free",
                where=self.path,
                fix="Free some space, raise the quota, or write to another disk.",
            ) from error

    def _check_destination(self) -> None:
        folder = self.path.parent
        if not folder.is_dir():
            raise Usage("the folder of the output does not exist", where=folder, fix=f"mkdir -p '{folder}'")
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise Usage(f"cannot be an output: {error.strerror}", where=self.path) from error
        if stat.S_ISDIR(mode):
            raise Usage("the output is a folder", where=self.path, fix="Name a file in it.")
        if not stat.S_ISREG(mode):
            raise Usage("the output exists and is not a regular file", where=self.path)
        for file in self.inputs:
            if Path(file).exists() and os.path.samefile(file, self.path):
                raise OutputConflict(f"the output is the input {file}", where=self.path, fix="Name another output.")
        if not self.overwrite:
            raise self._exists()

    def _claim(self) -> None:
        """Lock our temporary file, then see whether another run holds one for this output.

        Each run locks its own before it looks at the others, so of two that start together at least one sees the other.
        """
        if not _lock(self._fd) or not self._temporary.exists():
            raise self._busy(self._temporary)
        prefix, suffix = f".{self.path.name}.", ".partial"
        for other in list(self.path.parent.iterdir()):
            middle = other.name[len(prefix) : -len(suffix)]
            ours = other.name == prefix + middle + suffix and len(middle) == 12 and other != self._temporary
            if ours and not _remove_leftover(other):
                raise self._busy(other)

    def _reserve(self) -> None:
        """All the bytes of the file, before the first is computed."""
        size = self.layout.size
        check_space(self.path, size)
        with self._reporting("cannot reserve the space"):
            try:
                os.posix_fallocate(self._fd, 0, size)
            except (AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                os.ftruncate(self._fd, size)

    def _check_cover(self) -> None:
        """Every byte of every tensor was written exactly once."""
        layout = self.layout
        done = sorted(self._written)
        total = sum(end - start for start, end in done)
        starts = [start for start, _ in done]
        for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
            at, stop = offset, offset + tensor.nbytes
            for start, end in done[bisect_right(starts, offset - 1) : bisect_right(starts, stop - 1)]:
                if start != at:
                    break
                at = end
            if at != stop:
                raise Failure(
                    f"bytes from {at - offset} on of {tensor.nbytes} were not written exactly once",
                    where=f"{self.path}: {tensor.name}",
                )
            total -= tensor.nbytes
        if total:
            raise Failure(f"{total} bytes were written outside the tensors", where=self.path)

    def _verify(self) -> None:
        """What the temporary file holds, as the reader sees it, is what was laid out."""
        layout = self.layout
        expected = [
            TensorInfo(tensor.name, tensor.shape, tensor.format, offset, tensor.nbytes)
            for tensor, offset in zip(layout.tensors, layout.offsets, strict=True)
        ]
        header = memoryview(bytearray(len(layout.header)))
        with self._reporting("cannot read back"):
            read_at(self._fd, header, 0)
        try:
            same = self.reader(self._temporary) == expected and os.fstat(self._fd).st_size == layout.size
        except Malformed as error:
            raise Failure(f"the written file does not verify: {error.what}", where=self.path) from error
        if not same or header != layout.header:
            raise Failure("the written file does not verify: it differs from its layout", where=self.path)

    def _close(self) -> None:
        if self._flusher:
            self._flusher.stop()
            self._flusher = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _discard(self) -> None:
        if os.name == "nt":
            self._close()
        with suppress(OSError):
            os.unlink(self._temporary)
        self._close()


class _Flusher:
    """Starts writing to the disk early, from its own thread, so that the last flush is short."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = 0
        self._due = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def count(self, size: int) -> None:
        with self._due:
            self._pending += size
            if self._pending < FLUSH or self._stopped:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flush", daemon=True)
                self._thread.start()
            self._due.notify()

    def stop(self) -> None:
        with self._due:
            self._stopped = True
            self._due.notify()
        if self._thread is not None:
            self._thread.join()

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
            f"needs {size} bytes, but {path.parent} has {free} free",
            where=path,
            fix=f"Free {size - free} bytes, or write to another disk.",
        )


def _lock(fd: int) -> bool:
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


def _remove_leftover(file: Path) -> bool:
    """Remove the temporary file of a run that was killed. False if its run is alive."""
    try:
        fd = os.open(file, os.O_RDWR) if fcntl else -1
        try:
            if not _lock(fd):
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


def _force(fd: int) -> None:
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
    """Make the rename itself durable. Windows cannot open a folder, and some filesystems cannot flush one."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
