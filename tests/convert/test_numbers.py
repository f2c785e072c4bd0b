"""Tensors of one number that become keys: what is missing, damaged or of another shape is said."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import f32s
from ggufsmith.convert.architecture import Number
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.numbers import constants, number_sources, read_numbers, set_aside

WANTED = (Number("mlp.act_fn.beta", "beta"), Number("mlp.act_fn.alpha", "alpha", (1,)))


def write(folder: Path, **changes: np.ndarray) -> Path:
    tensors = {"model.norm.weight": np.ones(4, np.float32)}
    for block in range(3):
        tensors[f"model.layers.{block}.mlp.act_fn.beta"] = np.array(0.5 + block, np.float16)
        tensors[f"model.layers.{block}.mlp.act_fn.alpha"] = np.array([-1.0 - block], np.float16)
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value.size}, folder / "model.safetensors")
    return folder


def test_they_are_read_in_the_order_of_blocks(tmp_path: Path) -> None:
    checkpoint, problems = open_checkpoint(write(tmp_path)), list[str]()
    rest, numbers = set_aside(WANTED, 3, checkpoint.tensors, problems)
    assert not problems and list(rest) == ["model.norm.weight"]
    found = read_numbers(checkpoint, numbers)
    assert found["beta"].data.tolist() == [0.5, 1.5, 2.5] and found["alpha"].data.tolist() == [-1, -2, -3]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.empty(0, np.float16), "beta: 2 blocks of 3 have mlp.act_fn.beta, missing [1]"),
        (np.ones(2, np.float16), "model.layers.1.mlp.act_fn.beta: shape [2], but it must be one number"),
    ],
)
def test_what_does_not_fit_is_a_problem(value: np.ndarray, said: str, tmp_path: Path) -> None:
    checkpoint, problems = open_checkpoint(write(tmp_path, model__layers__1__mlp__act_fn__beta=value)), list[str]()
    set_aside(WANTED, 3, checkpoint.tensors, problems)
    assert problems == [said]


def test_a_number_that_is_not_finite(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, model__layers__1__mlp__act_fn__beta=np.array(np.nan, np.float16)))
    _, numbers = set_aside(WANTED, 3, checkpoint.tensors, [])
    with pytest.raises(Malformed, match="the number is nan"):
        read_numbers(checkpoint, numbers)


def test_tensors_are_made_of_the_keys_again() -> None:
    sources = {source.name: source for source in number_sources(WANTED, 2)}
    _, numbers = set_aside(WANTED, 2, sources, [])
    keys = {"beta": f32s([1.0, 2.0]), "alpha": f32s([3.0, 4.0])}
    made = {source.name: (source.shape, op.values) for source, op in constants(numbers, keys, "here")}
    assert made["model.layers.1.mlp.act_fn.beta"] == ((), (2.0,))
    assert made["model.layers.0.mlp.act_fn.alpha"] == ((1,), (3.0,))
    with pytest.raises(Malformed, match="the key is missing"):
        constants(numbers, {"beta": keys["beta"]}, "here")
    with pytest.raises(Malformed, match="must be an array of 2 numbers"):
        constants(numbers, {**keys, "alpha": f32s([3.0])}, "here")
