"""Folders that are made whole or not at all."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ggufsmith.container.errors import Failure, NoSpace, OutputConflict, Usage
from ggufsmith.container.folder import new_folder

HOLD = """
import sys, time
from pathlib import Path
from ggufsmith.container.folder import new_folder
with new_folder(Path(sys.argv[1]), 0) as folder:
    (folder / "file").write_bytes(b"x")
    print("ready", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_or_nothing(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b", 0) as folder:
        (folder / "file").write_bytes(b"x")
        assert not (tmp_path / "a" / "b").exists()
    assert names(tmp_path / "a") == ["b"]
    assert names(tmp_path / "a" / "b") == ["file"]
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a" / "c", 0) as folder:
        raise RuntimeError
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, NoSpace), (errno.EFBIG, NoSpace), (errno.EIO, Failure), (errno.EACCES, Failure)],
)
def test_a_full_disk_is_no_other_failure(tmp_path: Path, number: int, kind: type[Failure]) -> None:
    with pytest.raises(Failure) as caught, new_folder(tmp_path / "a", 0):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is kind
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Usage, match="cannot be used as the output folder"), new_folder(tmp_path / "file" / "a", 0):
        pass
    with pytest.raises(OutputConflict, match="not an empty folder"), new_folder(tmp_path / "file", 0):
        pass
    with pytest.raises(NoSpace), new_folder(tmp_path / "a", 1 << 60):
        pass
    assert names(tmp_path) == ["file"]


def test_what_a_killed_run_left_goes_with_the_next(tmp_path: Path) -> None:
    """And what a run that is alive is writing stays."""
    target = tmp_path / "[a]"
    with subprocess.Popen([sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        (left,) = tmp_path.glob("*.partial")
        with new_folder(target, 0):
            assert (left / "file").is_file()
        target.rmdir()
        other.kill()
    assert (left / "file").is_file()
    (tmp_path / ".other.0123456789ab.partial").mkdir()
    for _ in range(100):  # until the system has released the lock
        with new_folder(target, 0):
            pass
        if not left.exists():
            break
        target.rmdir()
        time.sleep(0.05)
    assert names(tmp_path) == [".other.0123456789ab.partial", "[a]"]
