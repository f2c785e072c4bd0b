"""The keys of job files for calibrating. That such jobs work is shown in tests/conformance/test_calibrated_runs.py."""

from pathlib import Path

import jobs
import pytest

from ggufsmith.container.errors import Malformed
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.passes import memory, plan_model
from ggufsmith.convert.batch.state import fingerprints
from ggufsmith.pipeline.request import AUTO

HEAD = 'output = "out"\n[defaults]\nrecipes = "q4_K_M"\n'
FULL = "calibrate = ['auto', '{model}.txt', 'texts']\ncalibrate_chunks = 9\neffort = 'best'\ndevice = 'cpu'"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.md").write_text("One.", encoding="utf-8")
    (tmp_path / "A.txt").write_text("Two.", encoding="utf-8")
    return jobs.models(tmp_path)


def model(home: Path, said: str) -> JobModel:
    (found,) = read_job(jobs.write(home / "jobs.toml", HEAD, [f"source = 'A'\n{said}"]), {}).models
    return found


def test_the_keys_are_those_of_the_commands(home: Path) -> None:
    make = model(home, FULL).request.make
    assert make.calibrate == (AUTO, home / "A.txt", home / "texts")
    assert (make.calibrate_chunks, make.effort, make.calibrate_device) == (9, "best", "cpu")
    assert model(home, "calibrate = 'auto'").request.make.calibrate == (AUTO,)


def test_what_decides_the_bytes_is_in_the_fingerprint(home: Path) -> None:
    """The texts by their content; not the device."""

    def plan(said: str = FULL) -> str:
        (found,) = fingerprints(model(home, said)).values()
        return found

    first = plan()
    others = {plan(FULL.replace(a, b)) for a, b in (("'auto', ", ""), ("9", "8"), ("best", "fast"), (", 'texts'", ""))}
    assert len(others | {first}) == 5
    assert plan(FULL.replace("device = 'cpu'", "")) == first
    for path in (home / "A.txt", home / "texts" / "one.md"):
        path.write_text("Three.", encoding="utf-8")
        before, first = first, plan()
        assert first != before


def test_running_the_model_counts_among_the_memory(home: Path) -> None:
    needed = []
    for said in ("", "calibrate = 'auto'"):
        found = model(home, said)
        planned = plan_model(found, found.wanted)
        with planned.made:
            needed.append(memory(planned, found, 2))
    assert needed[1] > needed[0] + 500 * 10**6


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("calibrate = 'absent.txt'", "there is no such file or folder"),
        ("calibrate = ['auto', '{modle}.txt']", "{modle} is not a known field"),
        ("calibrate = 'auto'\neffort = 'huge'", "unknown effort 'huge'"),
        ("effort = 'best'", "effort is about calibrating, but there is no calibrate"),
        ("device = 'cpu'", "device is about calibrating, but there is no calibrate"),
        ("calibrate_chunks = 3", "calibrate_chunks is about calibrating, but there is no calibrate"),
        ("calibrate = 'auto'\nimatrix = 'auto'", "imatrix cannot be combined with calibrate"),
        ("calibrate = 'auto'\nprune_layers = 0", "prune_layers cannot be combined with calibrate"),
        ("calibrate = 'auto'\nrecipes = []\nouttypes = 'f16'", "calibrate is about quantizing"),
        ("calibrate = 'auto'\ncalibrate_chunks = 0", "a whole number above 0"),
    ],
)
def test_what_does_not_fit(said: str, problem: str, home: Path) -> None:
    with pytest.raises(Malformed) as caught:
        model(home, said)
    assert problem in str(caught.value)
