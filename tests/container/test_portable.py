"""Systems that lack a call, or answer differently: each call with a stand-in is taken away, alone and with the others.

What Windows and macOS do is acted out here: open files that can be neither renamed nor removed, folders that cannot be
opened, names that ignore case, F_PREALLOCATE.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_shards import COUNTS, NAMES, OTHER, WHOLE, contents, fill, write_set
from test_shards import LAYOUT as SET_LAYOUT
from test_writer import DATA, LAYOUT, OLD
from test_writer import WHOLE as BYTES

from ggufsmith.container import disk, writer
from ggufsmith.container.copy import copy, plan_merge
from ggufsmith.container.documents import read_document
from ggufsmith.container.errors import Failure, NoSpace, OutputConflict
from ggufsmith.container.folder import new_folder
from ggufsmith.container.positional import read_at, write_at
from ggufsmith.container.provenance import file_sha256, read_record
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.replace import replace_text
from ggufsmith.container.shards import SetWriter, open_gguf_set, plan_shards
from ggufsmith.container.writer import Writer
from ggufsmith.quantize.machine_code import write_code

CALLS = ("posix_fallocate", "pwrite", "preadv", "copy_file_range", "fdatasync", "sched_getaffinity", "O_NONBLOCK")


def take_away(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        if name == "fcntl":
            without_locks(monkeypatch)
        else:
            monkeypatch.delattr(os, name, raising=False)


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "fcntl", None)
    for module in (disk, writer):
        monkeypatch.setattr(module, "LOCKS", False)


def write(path: Path, **options: Any) -> None:
    with Writer(path, LAYOUT, **options) as file:
        file.write(LAYOUT.offsets[0], DATA[0])
        file.write(LAYOUT.offsets[1], DATA[1])
        file.commit()


@pytest.mark.parametrize("missing", [*((name,) for name in (*CALLS, "fcntl")), (*CALLS, "fcntl")], ids=", ".join)
def test_without_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    """One file, a set, and copies of both, flushed early and often."""
    monkeypatch.setattr(disk, "FLUSH", 1)
    take_away(monkeypatch, *missing)
    (tmp_path / "x.gguf").write_bytes(OLD)
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == BYTES
    first = write_set(tmp_path)
    assert contents(write_set(tmp_path, OTHER)) == dict(zip(WHOLE, OTHER, strict=True))
    with open_gguf_set(first) as model:
        copy(model, plan_merge(model), tmp_path / "merged.gguf")
    assert contents(tmp_path / "merged.gguf") == dict(zip(WHOLE, OTHER, strict=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == [*NAMES, "merged.gguf", "x.gguf"]


@pytest.mark.parametrize("number", sorted(disk.CANNOT))
def test_a_file_system_that_reserves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == BYTES


# ---- macOS ----


class Darwin:
    """fcntl as macOS has it, where nothing but the answers of F_PREALLOCATE and F_FULLFSYNC is acted."""

    F_FULLFSYNC = 51
    LOCK_EX, LOCK_NB = 2, 4

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.asked: list[tuple[int, object]] = []

    def flock(self, fd: int, operation: int) -> None: ...

    def fcntl(self, fd: int, command: int, argument: object = 0) -> object:
        self.asked.append((command, argument))
        if self.answer:
            raise OSError(self.answer, os.strerror(self.answer))
        return argument


@pytest.fixture
def darwin(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Darwin]:
    def begin(answer: int = 0) -> Darwin:
        acted = Darwin(answer)
        take_away(monkeypatch, "posix_fallocate", "copy_file_range", "fdatasync", "sched_getaffinity")
        monkeypatch.setattr(disk, "fcntl", acted)
        monkeypatch.setattr(sys, "platform", "darwin")
        return acted

    return begin


def test_macos_reserves_the_space(tmp_path: Path, darwin: Callable[[int], Darwin]) -> None:
    acted = darwin(0)
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == BYTES
    command, argument = acted.asked[0]
    assert command == 42 and isinstance(argument, bytes)
    assert disk.STORE.unpack(argument) == (4, 3, 0, LAYOUT.size, 0)
    assert len(argument) == 32, "the size of fstore_t"
    assert {command for command, _ in acted.asked} == {42, Darwin.F_FULLFSYNC}


@pytest.mark.parametrize("answer", [errno.ENOTSUP, errno.EINVAL])
def test_a_disk_of_macos_that_can_neither_reserve_nor_flush(
    tmp_path: Path, darwin: Callable[[int], Darwin], monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    darwin(answer)
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(fd) or real(fd))
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == BYTES
    assert len(flushed) >= 3


def test_more_bytes_than_macos_takes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL for more than INT_MAX bytes, in the calls with an offset; Python shortens only those without."""
    sizes: list[int] = []

    def take(size: int) -> int:
        if size > 2**31 - 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sizes.append(size)
        return size

    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: take(sum(map(len, buffers))), raising=False)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: take(len(data)), raising=False)
    buffer = np.empty(2**31 + 5, np.uint8).data  # pages that nobody touches take no memory
    write_at(-1, buffer, 0)
    assert read_at(-1, buffer, 0) == len(buffer)
    assert sum(sizes) == 2 * len(buffer)


def test_a_full_disk_of_macos(tmp_path: Path, darwin: Callable[[int], Darwin]) -> None:
    darwin(errno.ENOSPC)
    with pytest.raises(NoSpace, match="cannot reserve"):
        write(tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


# ---- Windows ----


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this system does differently, and refuses."""
    take_away(monkeypatch, *CALLS, "fcntl")
    for module in (disk, writer):
        monkeypatch.setattr(module, "WINDOWS", True)
    replace, unlink, system_open, fstat = os.replace, os.unlink, os.open, os.fstat

    def refuse_open(path: Any) -> None:
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        if os.path.realpath(path) in held:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))

    def acted_replace(source: Any, target: Any) -> None:
        refuse_open(source)
        refuse_open(target)
        replace(source, target)

    def acted_unlink(path: Any, **options: Any) -> None:
        refuse_open(path)
        unlink(path, **options)

    def acted_open(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return system_open(path, flags, *more, **options)

    def acted_fstat(fd: int) -> Any:
        found = fstat(fd)
        return SimpleNamespace(**{key: getattr(found, key) for key in ("st_size", "st_mode", "st_mtime_ns")})

    monkeypatch.setattr(os, "replace", acted_replace)
    monkeypatch.setattr(os, "unlink", acted_unlink)
    monkeypatch.setattr(os, "open", acted_open)
    monkeypatch.setattr(os, "fstat", acted_fstat)


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


linux = pytest.mark.skipif(sys.platform != "linux", reason="which files are open is read from /proc")


@linux
@pytest.mark.usefixtures("windows")
def test_files_and_sets_on_windows(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(OLD)
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == BYTES
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "x.gguf", LAYOUT) as file:
        file.write(LAYOUT.offsets[0], DATA[0])
        raise KeyboardInterrupt
    write_set(tmp_path)
    with pytest.raises(KeyboardInterrupt), SetWriter(tmp_path / "m.gguf", plan_shards(SET_LAYOUT, COUNTS)) as several:
        fill(several, several.plan.whole)
        raise KeyboardInterrupt
    first = write_set(tmp_path, OTHER)
    assert contents(first) == dict(zip(WHOLE, OTHER, strict=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == [*NAMES, "x.gguf"]


def refuse_at_first(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """As a virus scanner does, which looks at each new file: the names that were refused."""
    refused: list[str] = []
    replace = os.replace

    def acted(source: Any, target: Any) -> None:
        if refused.count(str(target)) < times:
            refused.append(str(target))
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", acted)
    return refused


@linux
@pytest.mark.usefixtures("windows")
def test_names_that_are_refused_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refuse_at_first(monkeypatch, 3)
    (tmp_path / "x.gguf").write_bytes(OLD)
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == BYTES
    write_set(tmp_path)
    first = write_set(tmp_path, OTHER)
    assert contents(first) == dict(zip(WHOLE, OTHER, strict=True))
    replace_text(tmp_path / "README.md", "new")
    with new_folder(tmp_path / "folder", 0) as folder:
        (folder / "file").write_bytes(b"x")
    write_code(tmp_path / "kernel.o", bytes(32), b"code")
    names = [*NAMES, "README.md", "folder", "kernel.o", "x.gguf"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)
    assert {str(tmp_path / name) for name in names} <= set(refused)


@pytest.mark.parametrize("here", [False, True], ids=["POSIX", "Windows"])
def test_a_name_that_is_refused_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    """Elsewhere waiting changes nothing."""
    monkeypatch.setattr(disk, "WINDOWS", here)
    monkeypatch.setattr(disk, "PATIENCE", (0.0,) * 4)
    refused = refuse_at_first(monkeypatch, 1000)
    with pytest.raises(Failure, match="cannot rename the finished file"):
        write(tmp_path / "x.gguf")
    assert len(refused) == (5 if here else 1)
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.usefixtures("windows")
def test_an_output_that_could_not_be_replaced_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PATIENCE", ())
    path = tmp_path / "x.gguf"
    path.write_bytes(OLD)
    with path.open("rb"), pytest.raises(OutputConflict, match="open in another program"):
        Writer(path, LAYOUT).__enter__()
    path.chmod(0o444)
    with pytest.raises(OutputConflict, match="read-only"):
        Writer(path, LAYOUT).__enter__()
    path.chmod(0o644)
    write(path)
    assert path.read_bytes() == BYTES


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_folder_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Some file systems refuse to open one, others to flush it; by then the file has its name."""
    real = getattr(os, call)

    def acted(given: Any, *more: Any, **options: Any) -> Any:
        if stat.S_ISDIR(os.stat(given).st_mode if os.path.exists(given) else 0):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(given))
        return real(given, *more, **options)

    monkeypatch.setattr(os, call, acted)
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == BYTES


@linux
@pytest.mark.usefixtures("windows")
def test_two_runs_on_windows(tmp_path: Path) -> None:
    """An open file cannot be removed: that is the lock."""
    with Writer(tmp_path / "x.gguf", LAYOUT) as first:
        with pytest.raises(OutputConflict, match="another run"):
            write(tmp_path / "x.gguf")
        first.write(LAYOUT.offsets[0], DATA[0])
        first.write(LAYOUT.offsets[1], DATA[1])
        first.commit()
    assert (tmp_path / "x.gguf").read_bytes() == BYTES


def test_resuming_where_it_cannot_be_done_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    plan = plan_shards(LAYOUT, (2,))
    with pytest.raises(KeyboardInterrupt) as caught, SetWriter(tmp_path / "x.gguf", plan, resume=True) as first:
        first.write(LAYOUT.offsets[0], DATA[0])
        raise KeyboardInterrupt
    assert caught.value.__notes__ == [writer.UNABLE]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".x.gguf.0123456789ab.partial").write_bytes(b"of a run that was killed")
    with SetWriter(tmp_path / "x.gguf", plan, resume=True) as second:
        assert [note.split(":")[0] for note in second.notes()] == ["not resumed"]
        fill(second, LAYOUT, DATA)
        second.commit()
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]
    with SetWriter(tmp_path / "y.gguf", plan, resume=True) as third:
        assert list(third.notes()) == []


@linux
@pytest.mark.usefixtures("windows")
def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    for read in (open_gguf, open_gguf_set, file_sha256, read_record, read_document):
        with pytest.raises(Failure, match="is a folder"):
            read(tmp_path)


@pytest.mark.parametrize("read", [open_gguf, file_sha256, read_record, read_document], ids=lambda read: read.__name__)
def test_a_folder_here(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(Failure, match="is a folder"):
        read(tmp_path)


# ---- names that ignore case ----


@pytest.fixture
def ignoring_case(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = os.path.exists

    def acted(path: Any) -> bool:
        here = Path(path)
        if not exists(here.parent):
            return exists(path)
        return any(name.casefold() == here.name.casefold() for name in os.listdir(here.parent))

    monkeypatch.setattr(os.path, "exists", acted)


@pytest.mark.usefixtures("ignoring_case")
@pytest.mark.parametrize("kept", [False, True])
def test_two_runs_under_one_name(tmp_path: Path, kept: bool) -> None:
    with Writer(tmp_path / "Model.gguf", LAYOUT, resume=kept):
        with pytest.raises(OutputConflict, match="another run"):
            write(tmp_path / "model.gguf", resume=kept)
        with Writer(tmp_path / "other.gguf", LAYOUT):
            pass


@pytest.mark.usefixtures("ignoring_case")
def test_what_is_left_under_the_same_name(tmp_path: Path) -> None:
    (tmp_path / ".Model.gguf.0123456789ab.partial").write_bytes(b"of a run that was killed")
    (tmp_path / ".Other.gguf.0123456789ab.partial").write_bytes(b"of another output")
    write(tmp_path / "model.gguf")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".Other.gguf.0123456789ab.partial", "model.gguf"]


def test_two_names_where_case_counts(tmp_path: Path) -> None:
    """There the two are written side by side; elsewhere they are one."""
    (tmp_path / "a").touch()
    one = (tmp_path / "A").exists()
    with Writer(tmp_path / "Model.gguf", LAYOUT):
        try:
            write(tmp_path / "model.gguf")
        except OutputConflict:
            assert one
        else:
            assert not one
