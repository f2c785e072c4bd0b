"""What running the models of a job adds to the estimate of a dry run."""

from pathlib import Path

import pytest

import checkpoints
from ggufsmith.calibrate.price import ModelRuns, run_seconds, runs_of
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.passes import plan_model

CARD = "card = 'README.md'\nquality = true"


def runs(home: Path, said: str) -> ModelRuns:
    """Of a job with one model."""
    text = f"output = 'out'\n[[model]]\nsource = 'A'\n{said}\n"
    (home / "jobs.toml").write_text(text, encoding="utf-8")
    (model,) = read_job(home / "jobs.toml", {}).models
    planned = plan_model(model, model.wanted)
    with planned.made:
        return runs_of(model, planned)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    checkpoints.write("qwen2", tmp_path / "A")
    (tmp_path / "text.txt").write_text("Words and more words. " * 500, encoding="utf-8")
    return tmp_path


def test_what_costs_time(home: Path) -> None:
    plain = runs(home, "recipes = 'q4_0'")
    assert (plain.products, plain.refined) == (0, {}) and run_seconds(plain, 2) == 0
    own = "calibrate = 'text.txt'\nrecipes = "
    one, two = runs(home, f"{own}'q4_K_M'"), runs(home, f"{own}['q4_K_M', 'q3_K_M']")
    assert one.products == two.products > 0, "the model is run once for all outputs"
    assert sum(two.refined.values()) == pytest.approx(2 * sum(one.refined.values()))
    assert {effort for _, effort in one.refined} == {"normal"}
    few = runs(home, f"{own}'q4_K_M'\ncalibrate_chunks = 1")
    assert few.products < one.products
    assert runs(home, f"{own}'q4_K_M'\neffort = 'none'").refined == {}
    judged = runs(home, f"recipes = ['q4_0', 'q8_0']\n{CARD}")
    assert judged.products == pytest.approx(1.5 * runs(home, f"recipes = 'q4_0'\n{CARD}").products)
    best = runs(home, f"{own}'q4_K_M'\neffort = 'best'")
    assert best.products > one.products and set(best.refined.values()) == set(one.refined.values())
    chosen = runs(home, "calibrate = 'text.txt'\nmatch = 'q4_0'")
    assert chosen.products > 4 * few.products, "the types are weighed in a run of their own, forward and backward"


def test_seconds_follow_what_is_done(home: Path) -> None:
    some = ModelRuns(10**9, {("Q4_K", "fast"): 10**6}, "cpu")
    seconds = run_seconds(some, 1)
    assert 0 < seconds < 60
    assert run_seconds(ModelRuns(10**12, {("Q4_K", "fast"): 10**9}, "cpu"), 1) > 100 * seconds
