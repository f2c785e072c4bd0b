"""Shard sets against the others: llama.cpp loads ours, we read what it and its converter write, and cut the same."""

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_models import logits

import checkpoints
import reference
from ggufsmith.container.copy import copy, plan_merge, plan_split
from ggufsmith.container.shards import Limits, open_gguf_set
from ggufsmith.pipeline.request import Request
from requesting import plan, request, run

pytestmark = pytest.mark.conformance

IDS = [1, *range(20, 40)]
# The limits, as options of ours and of the reference converter.
LIMITS: dict[str, tuple[Limits, dict[str, Any], list[str]]] = {
    "tensors": (Limits(max_tensors=5), {"split_max_tensors": 5}, ["--split-max-tensors", "5"]),
    "size": (Limits(max_size=700_000), {"split_max_size": "700K"}, ["--split-max-size", "700K"]),
    "header alone": (
        Limits(max_tensors=8, header_alone=True),
        {"split_max_tensors": 8, "no_tensor_first_split": True},
        ["--split-max-tensors", "8", "--no-tensor-first-split"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("models") / "Tiny-Fixture")


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    run(request(folder, outfile=path))
    return path


def written(asked: Request) -> list[Path]:
    planned = plan(asked)
    run(planned)
    return planned.output.paths


@pytest.fixture(scope="module")
def theirs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of the reference converter."""
    return reference.convert(folder, tmp_path_factory.mktemp("theirs") / "m.gguf", "--outtype", "f16")


@pytest.mark.parametrize("kind", LIMITS)
def test_the_shards_of_the_reference_converter(folder: Path, theirs: Path, tmp_path: Path, kind: str) -> None:
    """Its one file, split by us, gives its shards byte for byte; its shards, merged by us, give its one file."""
    limits, _, options = LIMITS[kind]
    asked = tmp_path / "theirs" / "m.gguf"
    asked.parent.mkdir()
    asked.touch()  # `convert` looks whether the file it asked for is there
    reference.convert(folder, asked, "--outtype", "f16", *options)
    asked.unlink()
    with open_gguf_set(theirs) as model:
        done = copy(model, plan_split(model, limits), tmp_path / "m.gguf")
    assert len(done.paths) > 2
    assert sorted(path.name for path in asked.parent.iterdir()) == [path.name for path in done.paths]
    for path in done.paths:
        assert path.read_bytes() == asked.with_name(path.name).read_bytes()
    with open_gguf_set(asked.with_name(done.paths[1].name)) as model:
        copy(model, plan_merge(model), tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("kind", LIMITS)
def test_converting_into_shards_is_splitting_the_one_file(folder: Path, whole: Path, tmp_path: Path, kind: str) -> None:
    limits, options, _ = LIMITS[kind]
    mine = written(request(folder, outfile=tmp_path / "m.gguf", **options))
    (tmp_path / "split").mkdir()
    with open_gguf_set(whole) as model:
        done = copy(model, plan_split(model, limits), tmp_path / "split" / "m.gguf")
    assert [path.read_bytes() for path in mine] == [path.read_bytes() for path in done.paths]


@pytest.mark.parametrize("kind", LIMITS)
def test_llama_cpp_loads_our_shards(whole: Path, tmp_path: Path, kind: str) -> None:
    with open_gguf_set(whole) as model:
        done = copy(model, plan_split(model, LIMITS[kind][0]), tmp_path / "m.gguf")
    assert np.array_equal(logits(done.paths[0], IDS), logits(whole, IDS))


def test_we_read_the_shards_that_llama_quantize_writes(whole: Path, tmp_path: Path) -> None:
    import llama_cpp

    with open_gguf_set(whole) as model:
        first = copy(model, plan_split(model, Limits(max_tensors=5)), tmp_path / "m.gguf").paths[0]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.keep_split = llama_cpp.LLAMA_FTYPE_MOSTLY_F16, True
    target = os.fsencode(tmp_path / "again")
    assert llama_cpp.llama_model_quantize(os.fsencode(first), target, ctypes.byref(parameters)) == 0
    (path,) = tmp_path.glob("again-00001-of-*.gguf")
    with open_gguf_set(path) as model:
        assert len(model.files) > 2
        assert "split.no" not in model.metadata
        with open_gguf_set(whole) as source:
            assert model.tensors.keys() == source.tensors.keys()
        copy(model, plan_merge(model), tmp_path / "merged.gguf")
    assert np.array_equal(logits(tmp_path / "merged.gguf", IDS), logits(path, IDS))


@pytest.mark.parametrize("kind", LIMITS)
def test_llama_cpp_loads_what_is_quantized_into_shards(folder: Path, whole: Path, tmp_path: Path, kind: str) -> None:
    """From a checkpoint and from a GGUF file; the same weights as in one file."""
    found = []
    for name, options in (("one", {}), ("many", LIMITS[kind][1])):
        sets = [
            written(request(source, "q4_K_M", outfile=tmp_path / f"{name}-{source.stem}.gguf", **options))
            for source in (folder, whole)
        ]
        found.append([logits(paths[0], IDS) for paths in sets])
        assert all((len(paths) > 1) == (name == "many") for paths in sets)
    for one, many in zip(*found, strict=True):
        assert np.array_equal(one, many)
