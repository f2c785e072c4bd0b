"""The writer: what lies at the final path after every way a run can end."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ggufsmith.container.errors import Failure, NoSpace, OutputConflict, Usage
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import string
from ggufsmith.container.writer import Writer

ROWS = 64
LAYOUT = lay_out(
    {"general.architecture": string("llama")},
    [TensorSpec("a", (ROWS, 64), format_of("Q4_0")), TensorSpec("b", (5,), format_of("F32"))],
)
DATA = (np.arange(ROWS * 36, dtype="u1").tobytes(), np.arange(5, dtype="<f4").tobytes())
WHOLE = LAYOUT.header + DATA[0] + DATA[1] + bytes(12)  # 64 rows of 36 bytes need no padding
OLD = b"the old complete file"

posix = pytest.mark.skipif(os.name == "nt", reason="needs signals, limits, links and modes of POSIX")


def fill(writer: Writer, layout: Layout = LAYOUT) -> None:
    for offset, data in zip(layout.offsets, DATA, strict=True):
        writer.write(offset, data)


def write(path: Path, **options: object) -> None:
    with Writer(path, LAYOUT, **options) as writer:  # type: ignore[arg-type]
        fill(writer)
        writer.commit()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_bytes(tmp_path: Path, sync: bool) -> None:
    write(tmp_path / "x.gguf", sync=sync)
    assert (tmp_path / "x.gguf").read_bytes() == WHOLE
    assert names(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize("missing", [[], ["posix_fallocate"], ["pwrite", "preadv"]])
def test_threads_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    """Also without the calls that some systems lack."""
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    rows = np.frombuffer(DATA[0], format_of("Q4_0").dtype).reshape(ROWS, 2)
    with Writer(tmp_path / "x.gguf", LAYOUT) as writer, ThreadPoolExecutor(8) as pool:
        for row in np.random.default_rng(1).permutation(ROWS):
            pool.submit(writer.write, LAYOUT.offsets[0] + int(row) * 36, rows[row])
        pool.submit(writer.write, LAYOUT.offsets[1], DATA[1])
        pool.shutdown()
        writer.commit()
    assert (tmp_path / "x.gguf").read_bytes() == WHOLE


@posix
def test_mode_respects_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "x.gguf")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.gguf").stat().st_mode) == 0o640


def test_without_commit_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(OLD)
    with Writer(path, LAYOUT) as writer:
        fill(writer)
    with pytest.raises(KeyboardInterrupt), Writer(path, LAYOUT) as writer:
        writer.write(LAYOUT.offsets[0], DATA[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["x.gguf"]


def _hole(writer: Writer) -> None:
    writer.write(LAYOUT.offsets[0], DATA[0][:-1])
    writer.write(LAYOUT.offsets[1], DATA[1])


def _hole_at_the_start(writer: Writer) -> None:
    writer.write(LAYOUT.offsets[0] + 1, DATA[0][1:])
    writer.write(LAYOUT.offsets[1], DATA[1])


def _tensor_missing(writer: Writer) -> None:
    writer.write(LAYOUT.offsets[0], DATA[0])


def _twice(writer: Writer) -> None:
    fill(writer)
    writer.write(LAYOUT.offsets[0], DATA[0])


def _overlap_of_the_right_sum(writer: Writer) -> None:
    writer.write(LAYOUT.offsets[0], DATA[0][:1200])
    writer.write(LAYOUT.offsets[0] + 1100, DATA[0][1100:2204])
    writer.write(LAYOUT.offsets[1], DATA[1])


def _padding(writer: Writer) -> None:
    fill(writer)
    writer.write(LAYOUT.offsets[1] + 20, b"\1")


def _damaged_data(writer: Writer) -> None:
    fill(writer)
    (temporary,) = writer.path.parent.glob(".x.gguf.*.partial")
    with temporary.open("r+b") as file:
        file.seek(LAYOUT.offsets[0] + 1000)
        file.write(b"\xee")


def _damaged_header(writer: Writer) -> None:
    fill(writer)
    (temporary,) = writer.path.parent.glob(".x.gguf.*.partial")
    with temporary.open("r+b") as file:
        file.seek(len(LAYOUT.header) - 1)
        file.write(b"\1")


def _damaged_magic(writer: Writer) -> None:
    fill(writer)
    (temporary,) = writer.path.parent.glob(".x.gguf.*.partial")
    with temporary.open("r+b") as file:
        file.write(b"X")


@pytest.mark.parametrize(
    "damage",
    [
        _hole,
        _hole_at_the_start,
        _tensor_missing,
        _twice,
        _overlap_of_the_right_sum,
        _padding,
        _damaged_data,
        _damaged_header,
        _damaged_magic,
    ],
)
def test_an_incomplete_file_is_never_named(tmp_path: Path, damage: Callable[[Writer], None]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(OLD)
    with pytest.raises(Failure), Writer(path, LAYOUT) as writer:
        damage(writer)
        writer.commit()
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize("offset", [0, len(LAYOUT.header) - 1, LAYOUT.size - 1])
def test_writes_outside_the_tensors_are_refused_at_once(tmp_path: Path, offset: int) -> None:
    with Writer(tmp_path / "x.gguf", LAYOUT) as writer, pytest.raises(Failure, match="outside"):
        writer.write(offset, b"\1\1")


def test_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write(path, overwrite=False)
    with pytest.raises(OutputConflict, match="exists"):
        write(path, overwrite=False)
    write(path)
    path.unlink()
    with pytest.raises(OutputConflict, match="exists"), Writer(path, LAYOUT, overwrite=False) as writer:
        fill(writer)
        path.write_bytes(OLD)  # another program was faster
        writer.commit()
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "through a linked folder"])
def test_output_is_an_input(tmp_path: Path, link: str) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(OLD)
    output = tmp_path / "out.gguf"
    if link == "same":
        output = tmp_path / "sub" / ".." / "in.gguf"
        (tmp_path / "sub").mkdir()
    elif link == "symbolic":
        output.symlink_to(source)
    elif link == "hard":
        os.link(source, output)
    else:
        (tmp_path / "link").symlink_to(tmp_path)
        output = tmp_path / "link" / "in.gguf"
    with pytest.raises(OutputConflict, match="input"):
        write(output, inputs=[tmp_path / "other.gguf", source])
    assert source.read_bytes() == OLD


@posix
def test_symbolic_link_as_output(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "real.gguf"
    target.write_bytes(OLD)
    (tmp_path / "x.gguf").symlink_to(target)
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").is_symlink()
    assert target.read_bytes() == WHOLE


def test_impossible_destinations(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    for path in (tmp_path, tmp_path / "absent" / "x.gguf", tmp_path / "file" / "x.gguf", tmp_path / ("x" * 300)):
        with pytest.raises(Usage):
            write(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(Usage, match="regular"):
            write(tmp_path / "pipe")


def test_disk_preflight_before_any_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system would hand out a sparse file of that size."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    free = shutil.disk_usage(tmp_path).free
    huge = lay_out({}, [TensorSpec("a", (free // 4 + 2**28,), format_of("F32"))])
    with pytest.raises(NoSpace, match=f"needs {huge.size} bytes, but only .* are free in "):
        Writer(tmp_path / "x.gguf", huge).__enter__()
    assert names(tmp_path) == []


def test_one_run_per_output(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with Writer(path, LAYOUT) as first:
        with pytest.raises(OutputConflict, match="another run"):
            write(path)
        write(tmp_path / "y.gguf")
        fill(first)
        first.commit()
    write(path)
    assert names(tmp_path) == ["x.gguf", "y.gguf"]


CHILD = """
import resource, sys, time
from pathlib import Path
from test_writer import DATA, LAYOUT, Writer
from ggufsmith.container.errors import NoSpace
path, what = Path(sys.argv[1]), sys.argv[2]
if what == "small limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with Writer(path, LAYOUT) as writer:
        writer.write(LAYOUT.offsets[1], DATA[1])
        if what == "limit reached":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        if what == "wait":
            print("ready", flush=True)
            time.sleep(60)
        writer.write(LAYOUT.offsets[0], DATA[0])
except NoSpace as error:
    print(error)
    sys.exit(error.code)
"""


def _child(path: Path, what: str) -> "subprocess.Popen[str]":
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), what], stdout=subprocess.PIPE, text=True, env=here)


@posix
def test_killed_run(tmp_path: Path) -> None:
    """SIGKILL in the middle: the old file stays, the next run removes the leftover and is not kept out by it."""
    path = tmp_path / "x.gguf"
    path.write_bytes(OLD)
    with _child(path, "wait") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(OutputConflict, match="another run"):
            write(path)
        assert len(names(tmp_path)) == 2
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == OLD
    assert len(names(tmp_path)) == 2
    other = tmp_path / ".y.gguf.0123456789ab.partial"
    other.write_bytes(b"of another output")
    write(path)
    assert path.read_bytes() == WHOLE
    assert names(tmp_path) == [other.name, "x.gguf"]


@posix
@pytest.mark.parametrize("what", ["small limit", "limit reached"])
def test_disk_full(tmp_path: Path, what: str) -> None:
    """A file-size limit stands for a full disk: the system refuses the reservation, or a later write."""
    path = tmp_path / "x.gguf"
    path.write_bytes(OLD)
    with _child(path, what) as child:
        output, _ = child.communicate(timeout=60)
    assert child.returncode == NoSpace.code
    assert f"needs {LAYOUT.size} bytes" in output
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["x.gguf"]


def test_early_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper thread flushes while the file is written, and never outlives it."""
    flushed = []
    call = "fdatasync" if hasattr(os, "fdatasync") else "fsync"
    real = getattr(os, call)
    monkeypatch.setattr(os, call, lambda fd: (flushed.append(fd), real(fd)))
    monkeypatch.setattr("ggufsmith.container.disk.FLUSH", 100)
    with Writer(tmp_path / "x.gguf", LAYOUT) as writer:
        writer.write(LAYOUT.offsets[0], DATA[0])
        deadline = time.monotonic() + 30
        while not flushed and time.monotonic() < deadline:
            time.sleep(0.001)
        assert flushed
        writer.write(LAYOUT.offsets[1], DATA[1])
        writer.commit()
    with open_gguf(tmp_path / "x.gguf") as found:
        assert found.size == LAYOUT.size
