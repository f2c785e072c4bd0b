"""Jobs with projectors: the file of a single command, made again only where it is missing or its type changed."""

from pathlib import Path

import jobs
import pytest

import checkpoints
import seeing
from ggufsmith.container.errors import Malformed
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.report import Outcome
from requesting import request, run

HEAD = 'output = "out"\n[defaults]\nrecipes = ["q8_0"]\nmmproj = true\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    seeing.write(tmp_path / "Sees")
    return tmp_path


def names(outcomes: list[Outcome]) -> list[str]:
    return [file.name for outcome in outcomes for made in outcome.made for file in made.files]


def test_the_files_are_those_of_the_command(home: Path) -> None:
    job = jobs.write(home / "jobs.toml", HEAD, ['source = "Sees"\ncard = "README.md"'])
    outcomes = jobs.run(job)
    assert [outcome.status for outcome in outcomes] == ["done"]
    assert names(outcomes) == ["Sees-Q8_0.gguf", "mmproj-Sees-F16.gguf"]
    run(request(home / "Sees", "q8_0", outdir=home / "alone", mmproj=True))
    found = jobs.hashes(home / "out" / "Sees")
    assert jobs.hashes(home / "alone").items() <= found.items()
    assert "--mmproj mmproj-Sees-F16.gguf" in (home / "out/Sees/README.md").read_text(encoding="utf-8")


def test_only_what_is_missing_is_made(home: Path) -> None:
    job = jobs.write(home / "jobs.toml", HEAD, ['source = "Sees"'])
    jobs.run(job)
    text, projector = home / "out/Sees/Sees-Q8_0.gguf", home / "out/Sees/mmproj-Sees-F16.gguf"
    content, before = projector.read_bytes(), text.stat().st_mtime_ns
    assert [outcome.status for outcome in jobs.run(job)] == ["finished"]
    projector.unlink()
    assert [outcome.status for outcome in jobs.run(job)] == ["done"]
    assert projector.read_bytes() == content
    assert text.stat().st_mtime_ns == before, "the text model was not made again"
    other = jobs.write(home / "jobs.toml", HEAD + 'mmproj_outtype = "q8_0"\n', ['source = "Sees"'])
    assert "mmproj-Sees-Q8_0.gguf" in names(jobs.run(other))
    assert text.stat().st_mtime_ns == before


def test_one_model_may_have_none(home: Path) -> None:
    checkpoints.write("llama", home / "Reads", num_hidden_layers=1)
    job = jobs.write(home / "jobs.toml", HEAD, ['source = "Sees"', 'source = "Reads"\nmmproj = false'])
    assert [outcome.status for outcome in jobs.run(job)] == ["done", "done"]
    job = jobs.write(home / "jobs.toml", HEAD, ['source = "Sees"', 'source = "Reads"'])
    outcomes = jobs.run(job)
    assert [outcome.status for outcome in outcomes] == ["finished", "failed"]
    error = outcomes[1].error
    assert error is not None and "is a text model" in error.what and error.fix == "Leave out mmproj."


def test_notes_name_keys(home: Path) -> None:
    """Not the options of the commands."""
    (outcome,) = jobs.run(jobs.write(home / "jobs.toml", HEAD.replace("mmproj = true\n", ""), ['source = "Sees"']))
    assert any("which mmproj writes" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('mmproj_outtype = "q4_K_M"\n', "unknown type 'q4_K_M'"),
        ('mmproj = false\nmmproj_outtype = "f16"\n', "but mmproj was not given. Add mmproj."),
        ('mmproj = "yes"\n', "mmproj cannot be 'yes'"),
    ],
)
def test_jobs_that_do_not_fit(home: Path, more: str, said: str) -> None:
    head = HEAD.replace("mmproj = true\n", "") if "mmproj =" in more else HEAD
    with pytest.raises(Malformed) as caught:
        read_job(jobs.write(home / "jobs.toml", head + more, ['source = "Sees"']), {})
    assert said in str(caught.value)
