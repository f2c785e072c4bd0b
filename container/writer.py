"""Writes a GGUF file so that its path always holds either the old complete file or the new verified one.

A temporary file `.NAME.<random>.partial` in the destination folder takes the bytes; `commit` forces it to the disk,
reads every byte back, checks it with the reader, and renames it. While it is open it is the lock of this output as
well: another run that wants the same output finds it locked and stops; one that finds it unlocked knows that its writer
was killed, and removes it, or takes it over if it is to resume the same work. The kernel drops the lock with the
process, so nothing is ever stale. (Windows: an open file cannot be removed, and nothing is taken over.)
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from ggufsmith.container.apart import check_apart
from ggufsmith.container.checksum import checksum, intact
from ggufsmith.container.disk import (
    LOCKS,
    WINDOWS,
    Flusher,
    check_folder,
    check_space,
    force,
    force_folder,
    lock,
    remove_leftover,
    rename,
    reserve,
)
from ggufsmith.container.errors import Failure, Malformed, NoSpace, OutputConflict, Unsupported, Usage
from ggufsmith.container.fingerprint import file_mark, fingerprint
from ggufsmith.container.journal import Journal, Pieces, recorded
from ggufsmith.container.layout import Layout
from ggufsmith.container.output_names import check_name
from ggufsmith.container.parallel import parallel_for
from ggufsmith.container.positional import Buffer, as_bytes, read_at, write_at
from ggufsmith.container.reader import TensorInfo, open_gguf
from ggufsmith.container.release import own_version

BLOCK = 64  # pieces that a thread reads back at a time
NONE: Pieces = np.empty((0, 3), np.int64)
COMPLETE = "{} is complete and verified"
PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{12}\.partial", re.DOTALL)
NEEDED = "--resume needs locks that end with their process, which this system does not have"
UNABLE = f"nothing was kept: {NEEDED}"
KEPT = "the finished part is kept; run the same command with --resume to continue"
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # EFBIG: FAT's 4 GiB, or a process limit


def gguf_tensors(path: Path) -> list[TensorInfo]:
    """The tensors of a GGUF file."""
    with open_gguf(path) as file:
        return list(file.tensors.values())


@contextmanager
def noting_complete(paths: Sequence[Path]) -> Iterator[None]:
    """For what follows the naming of outputs, such as hashing them: an error or an interrupt in the block gets a note
    that they are there.
    """
    try:
        yield
    except BaseException as error:
        for path in paths:
            note_once(error, COMPLETE.format(path))
        raise


def note_once(error: BaseException, note: str) -> None:
    """Add a note to an error that does not have it yet."""
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


class Writer:
    """One output file, for use in a `with`; leaving it without `commit` removes what was written, unless `resume`.

    path:      the output. A symbolic link is followed: what it points to is replaced.
    sync:      False leaves flushing to the system: the file may be lost with the power, as any scratch file.
    overwrite: False refuses an output that exists.
    inputs:    files that are read; none of them may be the output, under any name.
    resume:    take over what an interrupted run of the same work left (see `holds`), and leave the same if interrupted,
               or stopped by a full disk.
    identity:  whatever decides the bytes besides layout and inputs; inputs are known by name, folder and content, large
               ones by size and time instead (see `fingerprint.file_mark`).
    reader:    gives the tensors of a file as they stand in it, for the check before the name is given.
    threads:   that read the file back.

    Entering raises Usage for a destination that cannot hold a file, OutputConflict for an output that exists, is an
    input, or is being written by another run, NoSpace with the bytes needed and free. Memory does not grow with the
    file: 24 bytes are kept per write.

    taken: bytes that were taken over. strange: there was something to resume, of another plan or from other inputs.
    lost: there was something, and this system cannot tell whether its run is over.
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
        resume: bool = False,
        identity: bytes = b"",
        threads: int = 1,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.layout = layout
        self.sync = sync
        self.overwrite = overwrite
        self.inputs = inputs
        self.reader = reader
        self._token = secrets.token_hex(6)
        self._temporary = self._partial(self.path.name)
        self.resume = resume and LOCKS
        self._unable = resume and not LOCKS
        self.identity = identity
        self.threads = threads
        self.taken = 0
        self.strange = False
        self.lost = False
        self._naming = False
        self._fd = -1
        self._journal: Journal | None = None
        self._held: Pieces = NONE
        self._flusher: Flusher | None = None

    def __enter__(self) -> "Writer":
        try:  # an interrupt can come at any point
            self.claim()
            check_space(self.path, self.missing)
            self.reserve()
        except BaseException as error:
            self.leave(error)
            raise
        return self

    def claim(self) -> None:
        """The first half of entering: be the only writer of this output, and clear away, or take over, what is left.

        Each run locks its own file before it looks at the others, so of two that start together at least one sees the
        other.
        """
        self._check_destination()
        with self._reporting("cannot make a file in this folder", Usage):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self._temporary, flags, 0o666)
        if not lock(self._fd) or not self._temporary.exists():
            raise self._busy(self._temporary)
        for other in list(self.path.parent.iterdir()):
            found = PARTIAL.fullmatch(other.name)
            if not found or other.name == self._temporary.name or not self._is_ours(found[1]):
                continue
            if self.resume and not len(self._held) and self._take_over(other):
                continue
            self.lost |= self._unable
            if not remove_leftover(other):
                raise self._busy(other)

    def _partial(self, name: str) -> Path:
        """The temporary file of an output in this folder, as this run would call it."""
        return self.path.with_name(f".{name}.{self._token}.partial")

    def _is_ours(self, name: str) -> bool:
        """Whether this is our output's name too: in the folders of macOS and Windows `model.gguf` is `Model.gguf`."""
        return name == self.path.name or os.path.exists(self._partial(name))

    def reserve(self) -> None:
        """The second half: reserve all the bytes of the file, before the first is computed."""
        size = self.layout.size
        with self._reporting("cannot reserve the space"):
            reserve(self._fd, size)
        with self._reporting("cannot write"):
            write_at(self._fd, memoryview(self.layout.header), 0)
        self._journal = Journal(self._fd, size, self._fingerprint)
        for piece in self._held:
            self._journal.add(*map(int, piece))
        self._journal.write_out()
        if self.sync:
            self._flusher = Flusher(self._fd)

    @property
    def missing(self) -> int:
        """Bytes that the disk has not given to the claimed file yet."""
        given = 512 * getattr(os.fstat(self._fd), "st_blocks", 0)
        return max(self.layout.size - given, 0)

    @property
    def temporary(self) -> Path:
        """The file that takes the bytes, for processes that write into it themselves."""
        return self._temporary

    def holds(self, offset: int, size: int) -> bool:
        """Whether these bytes were taken over from an interrupted run, and need no writing."""
        at = int(np.searchsorted(self._held[:, 0], offset))
        return at < len(self._held) and bool((self._held[at, :2] == (offset, size)).all())

    def write(self, offset: int, data: Buffer) -> None:
        """Put the bytes of `data`, C-contiguous, at `offset` of the file. Safe from many threads.

        Every byte of every tensor is to be written once, if the file does not hold it; `commit` checks that. NoSpace if
        the disk is full.
        """
        view = as_bytes(data)

        def put(fd: int, offset: int) -> int:
            write_at(fd, view, offset)
            return checksum(view)

        self.fill(offset, len(view), put)

    def fill(self, offset: int, size: int, put: Callable[[int, int], int]) -> None:
        """Have `put` write these bytes to a file (descriptor, offset), and return their checksum."""
        self._journal_for(offset, size)
        with self._reporting("cannot write"):
            found = put(self._fd, offset)
        self.record(offset, size, found)

    def record(self, offset: int, size: int, found: int) -> None:
        """Note a write that `write` or another process did, with the checksum of its bytes (see `checksum`)."""
        self._journal_for(offset, size).add(offset, size, found)
        if self._flusher:
            self._flusher.count(size)

    def keep(self) -> None:
        """See that a run that is killed from now on can be resumed here. Cheap, but not for every write."""
        if self._journal is not None:
            self._journal.write_out()

    def _journal_for(self, offset: int, size: int) -> Journal:
        """Where a write of these bytes is noted. Failure if they have no place in this file."""
        end = offset + size
        if offset < len(self.layout.header) or end > self.layout.size:
            raise Failure(f"internal error: a write to bytes {offset}..{end} is outside the tensors", where=self.path)
        if self._journal is None:
            raise Failure("internal error: a write before the file was opened", where=self.path)
        return self._journal

    def commit(self) -> None:
        """Verify the file, force it to the disk, give it its name. Failure, and no new file, if it is not complete."""
        self.seal()
        self.finish()
        self.publish()
        if self.sync:
            force_folder(self.path.parent)

    def seal(self) -> None:
        """Check that the disk has what was written, all of it. An interrupt until here can still be resumed."""
        pieces = NONE
        if self._journal:
            self._journal.write_out()
            pieces = self._journal.pieces()
        self._check_cover(pieces)
        if self._flusher:
            self._flusher.stop()
            with self._reporting("cannot flush to the disk"):
                force(self._fd)
        self._check_sums(pieces)

    def finish(self) -> None:
        """Cut the journal off the sealed file, and look at it as everybody else will."""
        self._journal, self._held = None, NONE
        with self._reporting("cannot flush to the disk"):
            os.ftruncate(self._fd, self.layout.size)
            if self.sync:
                force(self._fd)
        self._verify()
        if not self.overwrite and self.path.exists():
            raise self._exists()

    def publish(self) -> None:
        """Give the sealed file its name."""
        if WINDOWS:  # an open file cannot be renamed there
            self._close()
        with self._reporting("cannot rename the finished file"):
            self._naming = True
            rename(self._temporary, self.path)
        self._close()

    @property
    def complete(self) -> bool:
        """Whether the file has its name. True as well for an interrupt at the moment when it got it."""
        return self._naming and not os.path.exists(self._temporary)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.complete:
            note_once(error, COMPLETE.format(self.path))
        self.leave(error)

    @cached_property
    def _fingerprint(self) -> bytes:
        """Of everything that decides the bytes."""
        inputs = [(path, file_mark(path)) for path in map(Path, self.inputs)]
        return fingerprint(_version(), self.layout.header, self.layout.size, self.identity, inputs)

    def _exists(self) -> OutputConflict:
        return OutputConflict(
            "the output already exists", where=self.path, fix="Leave out --no-overwrite, or choose another output."
        )

    def _busy(self, other: Path) -> OutputConflict:
        return OutputConflict(
            "another run is writing this output",
            where=self.path,
            fix=f"Wait until it ends. If no such run exists on any machine, remove {other}.",
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
        check_folder(folder)
        check_name(self.path)
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise Usage(f"cannot be an output: {error.strerror}", where=self.path) from error
        if stat.S_ISDIR(mode):
            raise Usage(
                "the output is a folder, not a file", where=self.path, fix="Give the name of a file in that folder."
            )
        if not stat.S_ISREG(mode):
            raise Usage("the output exists and is not a regular file", where=self.path, fix="Choose another output.")
        check_apart(self.path, self.inputs)
        if not self.overwrite:
            raise self._exists()
        if WINDOWS:
            self._check_replaceable(mode)

    def _check_replaceable(self, mode: int) -> None:
        """OutputConflict for an output that Windows would refuse to replace in the end."""
        if not mode & stat.S_IWRITE:
            raise OutputConflict("the output is read-only", where=self.path, fix="Choose another output.")
        try:
            rename(self.path, self.path)  # changes nothing, and needs the same rights
        except PermissionError as error:
            fix = "Close that program, or choose another output."
            raise OutputConflict("the output is open in another program", where=self.path, fix=fix) from error

    def _take_over(self, other: Path) -> bool:
        """Go on with the temporary file of an interrupted run, if it is of the same work."""
        try:
            fd = os.open(other, os.O_RDWR)
        except OSError:
            return False
        held = NONE
        try:
            if lock(fd) and os.path.samestat(os.fstat(fd), os.stat(other)):
                pieces = recorded(fd, self.layout.size, self._fingerprint)
                self.strange |= pieces is None
                if pieces is not None:
                    held = pieces[~np.isin(pieces[:, 0], self._wrong(fd, pieces))]
        except OSError:
            held = NONE
        finally:
            if not len(held):
                os.close(fd)
        if not len(held):
            return False
        os.unlink(self._temporary)
        os.close(self._fd)
        self._fd, self._temporary, self._held = fd, other, held
        self.taken = int(held[:, 1].sum())
        return True

    def _check_cover(self, pieces: Pieces) -> None:
        """Every byte of every tensor was written exactly once."""
        layout = self.layout
        starts, ends = pieces[:, 0], pieces[:, 0] + pieces[:, 1]
        total = int(pieces[:, 1].sum())
        for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
            stop = offset + tensor.nbytes
            first, last = np.searchsorted(starts, (offset, stop))
            # Where the pieces of this tensor begin, against where those before them, and it, end.
            begun, due = np.append(starts[first:last], stop), np.append(offset, ends[first:last])
            if bad := np.flatnonzero(begun != due).tolist():
                raise Failure(
                    f"bytes from {int(due[bad[0]]) - offset} of {tensor.nbytes} were written more than once or not "
                    f"at all",
                    where=f"{self.path}: {tensor.name}",
                )
            total -= tensor.nbytes
        if total:
            raise Failure(f"{total} bytes were written outside the tensors", where=self.path)

    def _check_sums(self, pieces: Pieces) -> None:
        """The file, read back, holds the bytes that were written."""

        with self._reporting("cannot read back"):
            bad = self._wrong(self._fd, pieces)
        if bad:
            raise Failure(
                f"the written file does not verify: the bytes from {min(bad)} on are not those that were written "
                f"({len(bad)} of {len(pieces)} pieces)",
                where=self.path,
                fix="Check the disk and the memory of this machine.",
            )

    def _wrong(self, fd: int, pieces: Pieces) -> list[int]:
        """Where those of the pieces begin that a file does not hold."""
        bad: list[int] = []

        def check(block: int) -> None:
            bad.extend(piece[0] for piece in pieces[block : block + BLOCK].tolist() if not intact(fd, *piece))

        parallel_for(lambda stop: check, range(0, len(pieces), BLOCK), self.threads)
        return bad

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

    def leave(self, error: BaseException | None) -> None:
        """Remove the temporary file; or keep it, for a run that can resume and will not meet the same error again."""
        passing = not isinstance(error, Usage | Unsupported | Malformed)
        if error is not None and passing and self.resume and (len(self._held) or self._journal is not None):
            if self._journal:
                self._journal.write_out()
            self._close()
            note_once(error, KEPT)
            return
        if error is not None and self._unable and self._journal is not None:
            note_once(error, UNABLE)
        if WINDOWS:
            self._close()
        with suppress(OSError):
            os.unlink(self._temporary)
        self._close()


@cache
def _version() -> str:
    return own_version()
