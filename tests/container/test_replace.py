"""Small files are replaced whole, or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggufsmith.container.errors import Failure, NoSpace
from ggufsmith.container.replace import replace_text


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to("real")
    replace_text(tmp_path / "link", "é\ud800\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == "é\\ud800\n".encode()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/stdout")
def test_what_is_no_file_is_written_as_it_stands() -> None:
    code = "from pathlib import Path; from ggufsmith.container.replace import replace_text as put"
    done = subprocess.run([sys.executable, "-c", f"{code}; put(Path('/dev/stdout'), 'x')"], capture_output=True)
    assert done.stdout == b"x", done.stderr


def test_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "x"):
        with pytest.raises(Failure, match="cannot write"):
            replace_text(path, "x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file sizes have no limit on Windows")
    path = tmp_path / "README.md"
    path.write_text("old", encoding="utf-8")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(NoSpace, match=os.strerror(errno.EFBIG)):
            replace_text(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text(encoding="utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 1
