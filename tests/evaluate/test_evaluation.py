"""What is judged, by which name, and what is no judgement: as far as it goes without running a model."""

import os
from pathlib import Path

import numpy as np
import pytest
import small_models as models
from typer.testing import CliRunner

from ggufsmith.cli.app import app
from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.formats import format_of
from ggufsmith.container.values import string
from ggufsmith.evaluate.compared import score_logits
from ggufsmith.evaluate.evaluation import EvalTask, _candidates, _check_finite, _models_once, _places, find_place
from ggufsmith.evaluate.judged import Candidate
from ggufsmith.evaluate.token_scores import TokenScores
from ggufsmith.evaluate.variants import ModelVariant
from ggufsmith.pipeline.request import Request, TextOptions


def task(*files: Path) -> EvalTask:
    return EvalTask(Request(files[0]), files, TextOptions())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny-2M-F16.gguf"
    models.write_model(path)
    return path


def test_what_lies_beside_models_is_left_out(model: Path, tmp_path: Path) -> None:
    for kind in ("mmproj", "imatrix"):
        models.write_gguf(
            tmp_path / f"{kind}.gguf",
            {"general.type": string(kind)},
            {"a": models.plain(np.ones((2, 32), np.float32), format_of("F32"))},
        )
    kept, notes = _models_once(task(tmp_path / "mmproj.gguf", tmp_path / "imatrix.gguf", model))
    assert kept.files == (model,)
    assert notes[1] == "imatrix.gguf is an importance matrix, so it is left out"


def test_a_model_is_judged_once_by_all_its_names(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["split", str(model), str(tmp_path / "Parts"), "--split-max-tensors", "2"])
    assert done.exit_code == 0, done.output
    shards = sorted(tmp_path.glob("Parts-*.gguf"))
    assert len(shards) > 1
    os.link(model, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(model)
    again = (model, tmp_path / "hard.gguf", tmp_path / "soft.gguf")
    kept, notes = _models_once(task(*shards, model, *again))
    assert kept.files == (shards[0], model)
    assert notes == [
        f"{shards[0].name} was named {len(shards)} times, by its shards or by other names, and is judged once",
        f"{model.name} was named 4 times, by its shards or by other names, and is judged once",
    ]
    assert _models_once(task(model)) == (task(model), [])


def variant(label: str, *paths: Path) -> ModelVariant:
    return ModelVariant(label, {}, {}, 1, 8.0, paths=paths)


def test_files_of_equal_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/out/M-Q4_0.gguf", "b/out/M-Q4_0.gguf", "b/out/M-Q8_0.gguf")]
    found = _candidates([*(variant(path.name, path) for path in files), variant("q4_0")], files)
    assert [(each.name, each.group) for each in found] == [
        ("a/out/M-Q4_0.gguf", "a/out"),
        ("b/out/M-Q4_0.gguf", "b/out"),
        ("M-Q8_0.gguf", "b/out"),
        ("q4_0", "recipes"),
    ]


def test_a_name_is_a_path_first_then_a_name_then_a_part_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [Path("M-Q4_K.gguf"), Path("out", "M-Q4_K.gguf"), Path("out", "M-Q4_K-more.gguf")]
    names = (f"{tmp_path.name}/M-Q4_K.gguf", "out/M-Q4_K.gguf", "M-Q4_K-more.gguf")
    found = [Candidate(name, "out", 1, 8.0) for name in names]

    def place(wanted: str) -> int:
        return find_place(found, files, wanted)

    for number, name in enumerate(names):
        assert place(name) == number
    assert (place("M-Q4_K.gguf"), place("./M-Q4_K.gguf"), place(str(tmp_path / "M-Q4_K.gguf"))) == (0, 0, 0)
    assert (place("out/M-Q4_K.gguf"), place("out/M-Q4_K"), place("MORE")) == (1, 1, 2)
    with pytest.raises(Usage, match="fits 3 of those") as error:
        place("q4_k")
    assert error.value.fix == f"Choose two of {', '.join(names)}."
    with pytest.raises(Usage, match="both"):
        _places(found, files, ("out/M-Q4_K.gguf", "out/M-Q4_K"))


def scored(bad: float | None = None, *, divergence: bool = False) -> TokenScores:
    arrays = [np.ones((2, 3), np.float32) for _ in range(3)]
    if bad is not None:
        arrays[divergence][1, 2] = bad
    return TokenScores(arrays[0], arrays[1], arrays[2] > 0, arrays[2])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_of_the_other_engine_that_are_no_numbers_give_scores_that_are_none(bad: float) -> None:
    logits = np.ones((2, 8), np.float32)
    broken = logits.copy()
    broken[1, 3] = bad
    nll, divergence, *_ = score_logits(logits, broken, np.zeros(2, np.int32))
    assert np.isfinite(nll).tolist() == np.isfinite(divergence).tolist() == [True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_computes_no_numbers_is_an_error_that_names_it(bad: float) -> None:
    source, good, file = variant("S", Path("S")), variant("G", Path("G.gguf")), variant("A", Path("out", "A.gguf"))
    _check_finite([source, good], [scored(), scored()])
    with pytest.raises(Malformed, match=r"A\.gguf: the model computes NaN or infinity at 1 of 6") as error:
        _check_finite([source, good, file], [scored(), scored(), scored(bad)])
    assert "G.gguf" not in str(error.value)
    with pytest.raises(Malformed, match="the recipe q4_0: the model computes") as error:
        _check_finite([source, file, variant("q4_0")], [scored(), scored(bad), scored(bad, divergence=True)])
    assert str(error.value).count("1 of 6") == 2
    with pytest.raises(Malformed, match="S: the source computes") as error:
        _check_finite([source, file], [scored(bad), scored(bad)])
    assert not error.value.also
