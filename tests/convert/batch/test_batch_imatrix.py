"""Jobs that leave the importance matrix to us. The model is not run here: a stand-in gives known importance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jobs
import numpy as np
import pytest

from ggufsmith.calibrate.auto import AutoImatrix, is_weighted
from ggufsmith.container.errors import Malformed
from ggufsmith.container.provenance import file_sha256
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.run import BatchOptions, Watcher, plan_job
from ggufsmith.convert.open import open_pass
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import AUTO, Request
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import Entry, Imatrix
from ggufsmith.quantize.measured import Progress
from requesting import request, run

HEAD = 'output = "out"\n[defaults]\nimatrix = "auto"\n'


def importance(
    plain: Request, opener: Callable[[Request], Pass], progress: Progress, chunks: int | None = None
) -> Imatrix:
    with progress(8) as advance:
        advance(8)
    rng = np.random.default_rng(3)
    with opener(plain) as planned:
        specs = [each for each in planned.outputs[0].shards.whole.tensors if is_weighted(each, "llama")]
    sums = {each.name: rng.uniform(1, 9, (1, each.shape[-1])).astype(np.float32) for each in specs}
    return Imatrix({name: Entry(each, np.array([2])) for name, each in sums.items()}, ("a text",), chunks or 1, 512)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return jobs.models(tmp_path)


def test_every_model_gets_its_own_and_keeps_it_if_it_should(home: Path) -> None:
    entries = [
        'source = "A"\nrecipes = ["q4_K_M"]\ntarget_bpw = 5.5\nkeep_imatrix = true',
        'source = "B"\nrecipes = "q4_0"',
    ]
    path = jobs.write(home / "jobs.toml", HEAD, entries)
    with AutoImatrix(importance, ("a text",)) as imatrices:
        outcomes = jobs.run(path, imatrices=imatrices)
        assert [(each.status, each.error) for each in outcomes] == [("done", None)] * 2
        alone = request(home / "A", "q4_K_M", imatrix=AUTO, outdir=home / "alone")
        run(imatrices.made(alone, open_pass))
    assert file_sha256(home / "alone/A-Q4_K_M.gguf") == file_sha256(home / "out/A/A-Q4_K_M.gguf")
    assert open_imatrix(home / "out/A/A-imatrix.gguf").datasets == ("a text",)
    assert not list((home / "out/B").glob("*imatrix*"))
    with AutoImatrix(importance, ("a text",)) as imatrices:
        assert {each.status for each in jobs.run(path, imatrices=imatrices)} == {"finished"}


def test_the_sums_have_it_and_who_watches_sees_the_run(home: Path) -> None:
    told: list[tuple[str, str, int]] = []

    class Watching(Watcher):
        @contextmanager
        def step(self, model: JobModel, what: str, weights: int) -> Iterator[Callable[[int], None]]:
            yield lambda done: told.append((model.name, what, done))

    entry = 'source = "A"\nrecipes = "q4_0"\nkeep_imatrix = true\nchecksums = "SHA256SUMS"'
    with AutoImatrix(importance, ("a text",)) as imatrices:
        jobs.run(jobs.write(home / "jobs.toml", HEAD, [entry]), Watching(), imatrices=imatrices)
    assert told == [("A", "running the model", 8)]
    lines = (home / "out/A/SHA256SUMS").read_text(encoding="utf-8").splitlines()
    names = ["A-Q4_0.gguf", "A-imatrix.gguf"]
    assert lines == [f"{file_sha256(home / 'out/A' / name)}  {name}" for name in names]


def test_of_as_many_windows_as_are_asked_for(home: Path) -> None:
    entry = 'source = "A"\nrecipes = "q4_0"\nkeep_imatrix = true\nimatrix_chunks = {}'
    for chunks in (3, 5):
        path = jobs.write(home / "jobs.toml", HEAD, [entry.format(chunks)])
        with AutoImatrix(importance, ("a text",)) as imatrices:
            assert [each.status for each in jobs.run(path, imatrices=imatrices)] == ["done"], "another file"
        assert open_imatrix(home / "out/A/A-imatrix.gguf").chunks == chunks
    path = jobs.write(home / "jobs.toml", 'output = "out"\n', ['source = "A"\nrecipes = "q4_0"\nimatrix_chunks = 3'])
    with pytest.raises(Malformed) as caught:
        read_job(path, {})
    assert 'imatrix_chunks is about what imatrix = "auto" makes' in str(caught.value)


def test_a_dry_run_makes_none(home: Path) -> None:
    def never(plain: Request, opener: Callable[[Request], Pass], progress: Progress, chunks: int | None) -> Imatrix:
        raise AssertionError("the model is run")

    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"\nrecipes = ["iq2_xs", "q4_0"]\ntarget_bpw = 5.5'])
    with AutoImatrix(never, ("a text",)) as imatrices:
        drafts, outcomes = plan_job(read_job(path, {}), BatchOptions(imatrices=imatrices), Watcher(), dry=True)
    assert len(drafts) == 1 and not outcomes


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('source = "A"\nrecipes = "q4_0"\nimatrix = ""\nkeep_imatrix = true', "keep_imatrix keeps what imatrix"),
        ('source = "A"\nrecipes = "q4_0"\nimatrix = "absent"', "no such file"),
        ('source = "A"\nrecipes = "q4_0"\nimatrix_chunks = 0', "imatrix_chunks"),
        ('source = "A"\nrecipes = "q4_0"\nkeep_imatrix = true\nfile = "{model}-imatrix.gguf"', "twice"),
    ],
)
def test_what_does_not_fit(entry: str, said: str, home: Path) -> None:
    with pytest.raises(Malformed) as caught:
        read_job(jobs.write(home / "jobs.toml", HEAD, [entry]), {})
    assert said in str(caught.value)
