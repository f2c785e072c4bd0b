"""Faults while `gguf-convert` runs: what lies at the output, what the run says, and that the next one succeeds."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints
from faulted import command, run_faulty

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the places of faults are the calls made on Linux")

OLD = b"the old complete file"
# Where a run can be: (function of os, which call of it). A run of this model writes some dozens of pieces.
PHASES = {
    "making the file": ("open", 1),
    "reserving": ("posix_fallocate", 1),
    "writing the header": ("pwrite", 1),
    "reading": ("preadv", 9),
    "writing": ("pwrite", 12),
    "flushing": ("fsync", 1),
    "finishing": ("ftruncate", 1),
    "naming": ("replace", 1),
    "named": ("after:replace", 1),
    "flushing the folder": ("fsync", 3),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("m") / "Tiny")


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x.gguf"
    assert convert("none", "getpid", 0, model, path).returncode == 0
    return path.read_bytes()


def convert(
    fault: str, place: str, call: int, model: Path, output: Path, *options: object
) -> subprocess.CompletedProcess[str]:
    return run_faulty(fault, place, call, "convert", model, "-o", output, *options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "x.gguf"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_at_every_phase(model: Path, expected: bytes, output: Path, phase: str, kind: str) -> None:
    done = convert(kind, *PHASES[phase], model, output)
    named = phase in ("named", "flushing the folder")
    assert output.read_bytes() == (expected if named else OLD)
    if kind != "SIGKILL":
        assert done.returncode == {"SIGINT": 130, "SIGTERM": 143}[kind], done.stderr
        assert "Traceback" not in done.stderr
        assert names(output.parent) == ["x.gguf"]
        return
    assert done.returncode == -signal.SIGKILL
    again = convert("none", "getpid", 0, model, output)
    assert again.returncode == 0, again.stderr
    assert names(output.parent) == ["x.gguf"]
    assert output.read_bytes() == expected


@pytest.mark.parametrize("phase", ["reserving", "writing", "reading", "flushing", "finishing", "naming"])
def test_an_io_error(model: Path, output: Path, phase: str) -> None:
    done = convert("fail", *PHASES[phase], model, output)
    assert done.returncode == 1, done.stderr
    assert any(line.startswith("error: ") for line in done.stderr.splitlines())
    assert "Input/output error" in done.stderr
    assert output.read_bytes() == OLD
    assert names(output.parent) == ["x.gguf"]


def test_the_input_is_cut_while_it_is_read(tmp_path: Path, output: Path) -> None:
    model = checkpoints.write("llama", tmp_path / "Tiny")
    weights = model / "model.safetensors"
    done = convert(f"truncate {weights}", "preadv", 3, model, output)
    assert done.returncode == 4, done.stderr
    assert str(weights) in done.stderr
    assert "cut" in done.stderr
    assert output.read_bytes() == OLD
    assert names(output.parent) == ["x.gguf"]


def test_two_runs_on_one_output(model: Path, expected: bytes, output: Path) -> None:
    """The second stops; the first, which was held in the middle, is not disturbed."""
    with subprocess.Popen(
        command("stop", "pwrite", 9, "convert", model, "-o", output), stderr=subprocess.PIPE
    ) as first:
        deadline = time.monotonic() + 60
        while not _stopped(first.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        second = convert("none", "getpid", 0, model, output, "--json")
        assert second.returncode == 6
        assert "another run is writing this output" in json.loads(second.stdout)["error"]["what"]
        assert output.read_bytes() == OLD
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == 0
    assert output.read_bytes() == expected
    assert names(output.parent) == ["x.gguf"]


def _stopped(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.startswith("T")


def test_a_folder_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    """Permissions do not hold root back, so root becomes nobody for this."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        folder.mkdir()
        (folder / "x.gguf").write_bytes(OLD)
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        code = (
            "import os; from ggufsmith.cli.app import convert_main\n"
            "real = os.open\n"
            "def opened(path, flags, *rest, **more):\n"
            "    if flags & os.O_CREAT and not os.geteuid(): os.seteuid(65534)\n"
            "    return real(path, flags, *rest, **more)\n"
            "os.open = opened; convert_main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(model), "-o", str(folder / "x.gguf")],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "cannot make a file in this folder" in done.stderr
        assert (folder / "x.gguf").read_bytes() == OLD
        assert names(folder) == ["x.gguf"]
        folder.chmod(0o755)


# Where a split of the model's file into shards of seven tensors can be.
SPLITTING = {
    "reserving the second shard": ("posix_fallocate", 2),
    "copying": ("copy_file_range", 5),
    "between the names": ("replace", 2),
}


def split(fault: str, place: tuple[str, int], source: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    return run_faulty(fault, *place, "split", source, folder / "s", "--split-max-tensors", "7")


@pytest.fixture(scope="module")
def whole(expected: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A file, and its shards."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "x.gguf").write_bytes(expected)
    (folder / "shards").mkdir()
    assert split("none", ("getpid", 0), folder / "x.gguf", folder / "shards").returncode == 0
    return folder / "x.gguf", {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


@pytest.mark.parametrize("fault", ["SIGINT", "SIGTERM", "SIGKILL", "full"])
@pytest.mark.parametrize("place", SPLITTING)
def test_a_split_is_never_half_there(
    whole: tuple[Path, dict[str, bytes]], tmp_path: Path, place: str, fault: str
) -> None:
    source, shards = whole
    assert len(shards) == 3
    done = split(fault, SPLITTING[place], source, tmp_path)
    if fault == "SIGKILL":
        assert done.returncode == -signal.SIGKILL
        assert "s-00001-of-00003.gguf" not in names(tmp_path)
    elif (place, fault) == ("copying", "full"):  # the kernel's way is full; the other one is not
        assert done.returncode == 0
    else:
        assert done.returncode == {"SIGINT": 130, "SIGTERM": 143, "full": 5}[fault], done.stderr
        assert names(tmp_path) == []
    assert split("none", ("getpid", 0), source, tmp_path).returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == shards


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(
            "mounting a small file system needs root on Linux; test_writer.py fills a disk by a file-size limit"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk(model: Path, expected: bytes, disk: Path) -> None:
    """Refused before anything is written, with the exact number; done as soon as there is room for it."""
    output = disk / "x.gguf"
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(3 * 10**6))
    done = convert("none", "getpid", 0, model, output)
    assert done.returncode == 5, done.stderr
    assert f"needs {len(expected)} bytes" in done.stderr
    assert names(disk) == ["ballast"]
    ballast.unlink()
    assert convert("none", "getpid", 0, model, output).returncode == 0
    assert output.read_bytes() == expected
    # The old file and the new one do not fit together: the old one stays.
    output.write_bytes(OLD + bytes(3 * 10**6))
    assert convert("none", "getpid", 0, model, output).returncode == 5
    assert output.read_bytes().startswith(OLD)
    assert names(disk) == ["x.gguf"]


# ---- what an interrupted run says of its outputs ----

INTERRUPTED: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {  # place, options, the outputs that are there
    "as it gets its name": ("after:replace 1", (), ("x-F16.gguf",)),
    "between two outputs": ("after:replace 1", ("--recipe", "q8_0", "--recipe", "q4_0"), ("x-Q8_0.gguf",)),
    "before the second has its name": ("replace 2", ("--recipe", "q8_0", "--recipe", "q4_0"), ("x-Q8_0.gguf",)),
    "before the card": ("replace 2", ("--card",), ("x-F16.gguf",)),
    "before the record": ("replace 2", ("--provenance",), ("x-F16.gguf",)),
    "between the shards": ("replace 2", ("--split-max-tensors", "12"), ()),
    "before any name": ("replace 1", (), ()),
}


@pytest.mark.parametrize("fault", ["SIGINT", "SIGTERM", "fail"])
@pytest.mark.parametrize("where", INTERRUPTED)
def test_it_says_what_is_there(tmp_path: Path, where: str, fault: str) -> None:
    """Neither "no partial files were left" beside a complete file, nor a word of one that is not there."""
    place, options, there = INTERRUPTED[where]
    if fault == "fail" and place.startswith("after:"):
        fault = "SIGINT"  # the name is given
    model = checkpoints.write("llama", tmp_path / "x")
    (tmp_path / "out").mkdir()
    done = run_faulty(fault, *place.split(), "convert", model, "--outdir", tmp_path / "out", *options)
    assert done.returncode == {"SIGINT": 130, "SIGTERM": 143, "fail": 1}[fault], done.stderr
    assert tuple(name for name in names(tmp_path / "out") if name.endswith(".gguf")) == there
    said = done.stderr.replace("\n", "")
    for name in there:
        assert f"{name} is complete and verified" in said
    assert ("no partial files were left" in said) == (fault != "fail" and not there)
    assert said.count("complete and verified") == len(there)
