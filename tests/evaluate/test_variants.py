"""Weights of a model by GGUF name, in float32: whatever they are read from, and what recipes make of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import adapters
import checkpoints
from ggufsmith.container.errors import Failure, Usage
from ggufsmith.container.layout import rows_of
from ggufsmith.evaluate.variants import (
    ModelVariant,
    SourceModel,
    opened_file,
    opened_model,
    pick_rows,
    read_rows,
    read_tensors,
)
from requesting import request, run

EMBEDDING = "token_embd.weight"


@pytest.fixture(scope="module", params=["llama", "qwen2-moe", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(request.param, tmp_path_factory.mktemp("models") / "Tiny-Fixture")


@contextmanager
def written(folder: Path, path: Path, **options: str) -> Iterator[ModelVariant]:
    run(request(folder, outfile=path, **options))
    with opened_file(path) as file:
        yield file


def assert_equal(found: ModelVariant, expected: ModelVariant) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    names = list(found.tensors)
    ours, theirs = read_tensors(found, names, threads=2), read_tensors(expected, names, threads=1)
    assert [name for name in names if not np.array_equal(ours[name].ravel(), theirs[name].ravel())] == []


def test_a_folder_has_the_weights_of_the_file_made_of_it(folder: Path, tmp_path: Path) -> None:
    with opened_model(request(folder)) as model, written(folder, tmp_path / "f32.gguf", outtype="f32") as file:
        assert_equal(model.source, file)
        with opened_model(request(tmp_path / "f32.gguf")) as again:
            assert_equal(again.source, file)


@pytest.mark.parametrize("recipe", ["q4_K_M", "q8_0", "iq4_XS", "f16"])
def test_a_recipe_gives_what_its_file_holds(folder: Path, tmp_path: Path, recipe: str) -> None:
    with opened_model(request(folder, recipe)) as model:
        run(request(folder, recipe, outfile=tmp_path / "file.gguf"))
        with opened_file(tmp_path / "file.gguf") as file:
            made = model.variants[1]
            assert_equal(made, file)
            assert (made.size, made.bits_per_weight) == (file.size, pytest.approx(file.bits_per_weight))
            shelf = read_tensors(model.source, list(made.tensors), threads=1)
            found = read_tensors(made, list(made.tensors), 1, shelf)
            expected = read_tensors(file, list(made.tensors), threads=1)
            assert all(np.array_equal(found[name].ravel(), expected[name].ravel()) for name in found)


def test_rows_of_a_tensor(folder: Path) -> None:
    with opened_model(request(folder, "q4_K_M")) as model:
        for variant in model.variants:
            whole = read_tensors(variant, [EMBEDDING], threads=1)[EMBEDDING]
            assert whole.shape == rows_of(variant.tensors[EMBEDDING].shape)
            wanted = np.array([0, 3, 4, 100, len(whole) - 1], np.int64)
            assert np.array_equal(pick_rows(variant, EMBEDDING, wanted, threads=2), whole[wanted])
            assert np.array_equal(read_rows(variant, EMBEDDING, 5, 300, threads=2), whole[5:300])


def opened(*args: object, **options: object) -> SourceModel:
    with opened_model(request(*args, **options)) as model:  # type: ignore[arg-type]
        return model


def test_what_is_not_a_whole_model_is_refused(tmp_path: Path) -> None:
    base = checkpoints.write("llama", tmp_path / "base")
    adapters.write(base, tmp_path / "adapter")
    with pytest.raises(Usage, match="--lora"):
        opened(tmp_path / "adapter")
    run(request(tmp_path / "adapter", outtype="f32", outfile=tmp_path / "adapter.gguf"))
    with pytest.raises(Failure, match="LoRA adapter, not a model"):
        opened(tmp_path / "adapter.gguf")
    run(request(base, vocab_only=True, outfile=tmp_path / "vocab.gguf"))
    with pytest.raises(Failure, match="no tensors"):
        opened(tmp_path / "vocab.gguf")
