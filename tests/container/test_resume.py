"""Going on from what an interrupted run left: the writer's side, and real kills of the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_writer import DATA, LAYOUT, OLD, WHOLE, names

import checkpoints
from faulted import run_faulty
from ggufsmith.container import fingerprint, journal
from ggufsmith.container.errors import Malformed, NoSpace, OutputConflict
from ggufsmith.container.journal import recorded
from ggufsmith.container.layout import lay_out
from ggufsmith.container.shards import SetWriter, plan_shards
from ggufsmith.container.values import string
from ggufsmith.container.writer import Writer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="an open file has no lock there that ends with its process")

PIECE = 36 * 8  # bytes; the first tensor in eight
FIRST = [(LAYOUT.offsets[0] + at, DATA[0][at : at + PIECE]) for at in range(0, len(DATA[0]), PIECE)]
PIECES = [*FIRST, (LAYOUT.offsets[1], DATA[1])]


def begin(path: Path, count: int, **options: Any) -> None:
    """A run that is interrupted after some pieces."""
    with pytest.raises(KeyboardInterrupt) as caught, Writer(path, LAYOUT, resume=True, **options) as writer:
        for piece in PIECES[:count]:
            writer.write(*piece)
        raise KeyboardInterrupt
    assert any("--resume" in note for note in caught.value.__notes__)


def go_on(path: Path, **options: Any) -> int:
    """A run that resumes and finishes; how many pieces it found."""
    with Writer(path, LAYOUT, **{"resume": True, **options}) as writer:
        missing = [piece for piece in PIECES if not writer.holds(piece[0], len(piece[1]))]
        assert writer.taken == sum(len(data) for _, data in PIECES) - sum(len(data) for _, data in missing)
        for piece in missing:
            writer.write(*piece)
        writer.commit()
    assert path.read_bytes() == WHOLE
    assert names(path.parent) == ["x.gguf"]
    return len(PIECES) - len(missing)


def left(path: Path) -> Path:
    (found,) = path.parent.glob(f".{path.name}.*.partial")
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "out" / "x.gguf"
    found.parent.mkdir()
    found.write_bytes(OLD)
    return found


@pytest.mark.parametrize("count", [0, 1, 5, len(PIECES)])
def test_what_was_written_is_there(path: Path, count: int) -> None:
    begin(path, count)
    assert path.read_bytes() == OLD
    assert go_on(path) == count


def test_interrupted_twice(path: Path) -> None:
    begin(path, 3)
    with pytest.raises(KeyboardInterrupt), Writer(path, LAYOUT, resume=True) as writer:
        assert writer.taken == 3 * PIECE
        writer.write(*PIECES[6])
        raise KeyboardInterrupt
    assert go_on(path) == 4


def test_without_resume_nothing_is_left(path: Path) -> None:
    begin(path, 3)
    assert go_on(path, resume=False) == 0


def test_an_error_keeps_it_too(path: Path) -> None:
    with pytest.raises(NoSpace), Writer(path, LAYOUT, resume=True) as writer:
        writer.write(*PIECES[0])
        raise NoSpace("full")
    assert go_on(path) == 1


def test_an_error_that_would_come_again_keeps_nothing(path: Path) -> None:
    begin(path, 2)
    with pytest.raises(Malformed), Writer(path, LAYOUT, resume=True) as writer:
        writer.write(*PIECES[2])
        raise Malformed("NaN")
    assert names(path.parent) == ["x.gguf"]


def test_another_plan_input_or_identity(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE", 0)  # the input is a large file
    source = tmp_path / "in"
    source.write_bytes(b"1")
    for change in ("plan", "input", "time", "identity"):
        begin(path, 3, inputs=[source])
        layout = LAYOUT
        if change == "plan":
            layout = lay_out({**LAYOUT.metadata, "general.name": string("B")}, LAYOUT.tensors)
        elif change == "input":
            source.write_bytes(source.read_bytes() + b"2")
        elif change == "time":
            os.utime(source, ns=(1, 1))
        identity = b"other" if change == "identity" else b""
        with Writer(path, layout, resume=True, inputs=[source], identity=identity) as writer:
            assert (writer.taken, writer.strange) == (0, True), change
        assert names(path.parent) == ["x.gguf"]


def test_damaged_data_are_made_again(path: Path) -> None:
    begin(path, 5)
    with left(path).open("r+b") as file:
        file.seek(PIECES[2][0] + 7)
        file.write(b"\xee")
    assert go_on(path) == 4


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_a_torn_journal(path: Path, cut: int) -> None:
    """Cut anywhere, or with nonsense in the middle: what is still listed is used."""
    begin(path, 5)
    size = left(path).stat().st_size
    os.truncate(left(path), size - cut)
    assert go_on(path) == max(5 - -(-cut // 24), 0)
    begin(path, 5)
    with left(path).open("r+b") as file:
        file.seek(LAYOUT.size + 40 + cut)
        file.write(b"\xee")
    assert go_on(path) == 4


def test_records_are_held_back_until_they_are_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill costs the pieces since the last records were written; an interrupt costs none."""
    monkeypatch.setattr(journal, "TOGETHER", 3 * PIECE)
    with Writer(path, LAYOUT, resume=True) as writer:
        for piece in PIECES[:5]:
            writer.write(*piece)
        with writer.temporary.open("rb") as file:
            found = recorded(file.fileno(), LAYOUT.size, writer._fingerprint)
        assert found is not None and found[:, 0].tolist() == [offset for offset, _ in PIECES[:3]]
    begin(path, 5)
    assert go_on(path) == 5


def test_two_leftovers(path: Path) -> None:
    """The first of the same work is used, the others go."""
    begin(path, 2)
    strange = left(path).with_name(".x.gguf.0123456789ab.partial")
    strange.write_bytes(left(path).read_bytes()[: LAYOUT.size])
    assert go_on(path) == 2


def test_a_living_run_is_not_taken_over(path: Path) -> None:
    with Writer(path, LAYOUT, resume=True) as first:
        first.write(*PIECES[0])
        with pytest.raises(OutputConflict, match="another run"):
            go_on(path)
        for piece in PIECES[1:]:
            first.write(*piece)
        first.commit()
    assert path.read_bytes() == WHOLE


def test_a_set(tmp_path: Path) -> None:
    """Each shard by itself."""
    plan = plan_shards(LAYOUT, (1, 1))
    offset = plan.whole.offsets[0]
    with pytest.raises(KeyboardInterrupt), SetWriter(tmp_path / "x.gguf", plan, resume=True) as writer:
        writer.write(offset, DATA[0][:PIECE])
        raise KeyboardInterrupt
    with SetWriter(tmp_path / "x.gguf", plan, resume=True) as writer:
        assert writer.holds(offset, PIECE)
        assert not writer.holds(plan.whole.offsets[1], len(DATA[1]))
        assert list(writer.notes()) == [f"resumed: {PIECE} of {plan.whole.size} bytes were already written"]
        writer.write(offset + PIECE, DATA[0][PIECE:])
        writer.write(plan.whole.offsets[1], DATA[1])
        writer.commit()
    assert names(tmp_path) == ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]


# ---- the command line, killed for real ----

linux = pytest.mark.skipif(sys.platform != "linux", reason="the places of faults are the calls made on Linux")
OPTIONS = {
    "plain": (),
    "recipes in shards": ("--recipe", "q4_K_M", "--recipe", "q8_0", "--split-max-tensors", "12"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("m") / "Tiny")


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    found = {}
    for kind in OPTIONS:
        folder = tmp_path_factory.mktemp("whole")
        report(run("none getpid 0", model, folder, kind))
        found[kind] = contents(folder)
    return found


def run(fault: str, model: Path, folder: Path, kind: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return run_faulty(*fault.split(), "convert", model, "--outdir", folder, "--json", *OPTIONS[kind], *options)


def report(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@linux
@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("plain", "pwrite 1"),
        ("plain", "pwrite 15"),
        ("plain", "ftruncate 1"),
        ("recipes in shards", "after:pwrite 20"),
        ("recipes in shards", "fsync 1"),
        ("recipes in shards", "replace 1"),
    ],
)
def test_killed(model: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path, place: str, kind: str) -> None:
    """The same bytes as those of a run that nobody disturbed; and what was done is not done again."""
    killed = run(f"SIGKILL {place}", model, tmp_path, kind, "--resume")
    assert killed.returncode == -signal.SIGKILL
    assert not any(file.suffix == ".gguf" for file in tmp_path.iterdir())
    found = report(run("none getpid 0", model, tmp_path, kind, "--resume"))["found"]
    assert contents(tmp_path) == expected[kind]
    assert place in ("pwrite 1", "replace 1") or any(note.startswith("resumed:") for note in found)


@linux
def test_a_killed_run_that_did_not_ask_for_it_can_be_resumed_all_the_same(
    model: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    assert run("SIGKILL fsync 1", model, tmp_path, "plain").returncode == -signal.SIGKILL
    (note,) = report(run("none getpid 0", model, tmp_path, "plain", "--resume"))["found"]
    assert note.startswith("resumed: ")
    assert contents(tmp_path) == expected["plain"]


@linux
@pytest.mark.parametrize(("fault", "code"), [("SIGTERM", 143), ("full", 5)])
def test_interrupted(model: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path, fault: str, code: int) -> None:
    """What was written is kept, and said to be; a run that does not resume removes it."""
    done = run(f"{fault} pwrite 15", model, tmp_path, "plain", "--resume")
    assert done.returncode == code
    assert "with --resume to continue" in done.stderr + done.stdout
    assert [name.endswith(".partial") for name in contents(tmp_path)] == [True]
    report(run("none getpid 0", model, tmp_path, "plain"))
    assert contents(tmp_path) == expected["plain"]


@linux
def test_a_changed_model_begins_afresh(tmp_path: Path) -> None:
    model = checkpoints.write("llama", tmp_path / "Tiny")
    (tmp_path / "out").mkdir()
    run("SIGKILL pwrite 15", model, tmp_path / "out", "plain", "--resume")
    checkpoints.write("llama", model, seed=1)
    found = report(run("none getpid 0", model, tmp_path / "out", "plain", "--resume"))["found"]
    assert [note.split(":")[0] for note in found] == ["not resumed"]
    (tmp_path / "again").mkdir()
    report(run("none getpid 0", model, tmp_path / "again", "plain"))
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
