"""Jobs that put what their outputs have lost into the card. The model is not run here: a stand-in gives the table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jobs
import pytest

import seeing
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.run import Watcher
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize.measured import Progress

HEAD = 'output = "out"\n[defaults]\nrecipes = ["q4_K_M", "q8_0"]\ncard = "README.md"\nquality = true\n'


class Table:
    """Counts what it is asked, and names the files in the table."""

    def __init__(self, refused: str = "") -> None:
        self.asked: list[str] = []
        self.refused = refused

    def check(self, request: Request, open_pass: Callable[[Request], Pass]) -> None:
        if request.path.name == self.refused:
            raise Unsupported("cannot be run", where=request.path)

    def with_table(
        self, card: str, model: JobModel, files: Sequence[Path], check: Callable[[], None], progress: Progress
    ) -> str:
        check()
        with progress(10) as advance:
            advance(10)
        assert all(file.stat().st_size > 1000 for file in files)
        self.asked.append(model.name)
        return f"{card}\nmeasured: {', '.join(file.name for file in files)}\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return jobs.models(tmp_path)


def test_the_card_has_the_table_and_is_made_once(home: Path) -> None:
    path, table = jobs.write(home / "jobs.toml", HEAD, ['source = "A"', 'source = "B"\nquality = false']), Table()
    assert [each.status for each in jobs.run(path, measures=table)] == ["done", "done"]
    assert [each.status for each in jobs.run(path, measures=table)] == ["finished", "finished"]
    assert table.asked == ["A"]
    assert "measured: A-Q4_K_M.gguf, A-Q8_0.gguf" in (home / "out/A/README.md").read_text(encoding="utf-8")
    assert "measured" not in (home / "out/B/README.md").read_text(encoding="utf-8")
    (home / "out/A/README.md").unlink()
    assert [each.status for each in jobs.run(path, measures=table)] == ["finished", "finished"]
    assert table.asked == ["A", "A"]


def test_who_watches_sees_the_model_run(home: Path) -> None:
    """And nobody takes the pass for standing still."""
    told: list[tuple[str, str, int]] = []

    class Watching(Watcher):
        @contextmanager
        def step(self, model: JobModel, what: str, weights: int) -> Iterator[Callable[[int], None]]:
            yield lambda done: told.append((model.name, what, done))

    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    jobs.run(path, Watching(), measures=Table())
    assert told == [("A", "measuring the quality", 10)]


def test_to_ask_later_measures_what_is_there(home: Path) -> None:
    path, table = home / "jobs.toml", Table()
    jobs.write(path, HEAD.replace("quality = true\n", ""), ['source = "A"'])
    made = jobs.run(path, measures=table)[0].made
    jobs.write(path, HEAD, ['source = "A"'])
    (outcome,) = jobs.run(path, measures=table)
    assert (outcome.status, outcome.made, table.asked) == ("finished", made, ["A"])
    assert "measured: A-Q4_K_M.gguf" in (home / "out/A/README.md").read_text(encoding="utf-8")


def test_what_cannot_be_run_is_said_before_it_is_converted(home: Path) -> None:
    path, table = jobs.write(home / "jobs.toml", HEAD, ['source = "A"', 'source = "B"']), Table("A")
    first, second = jobs.run(path, measures=table)
    assert (first.status, second.status) == ("failed", "done")
    assert "cannot be run" in str(first.error) and not (home / "out/A").exists()


def test_a_table_needs_a_card(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD.replace('card = "README.md"\n', ""), ['source = "A"'])
    with pytest.raises(Malformed) as caught:
        read_job(path, {})
    assert "quality puts a table into the model card, but there is no card" in str(caught.value)


def test_a_projector_is_not_measured(tmp_path: Path) -> None:
    seeing.write(tmp_path / "Sees")
    path, table = jobs.write(tmp_path / "jobs.toml", HEAD, ['source = "Sees"\nmmproj = true']), Table()
    assert [each.status for each in jobs.run(path, measures=table)] == ["done"]
    card = (tmp_path / "out/Sees/README.md").read_text(encoding="utf-8")
    assert "mmproj-Sees-F16.gguf" in card and "measured: Sees-Q4_K_M.gguf, Sees-Q8_0.gguf\n" in card
