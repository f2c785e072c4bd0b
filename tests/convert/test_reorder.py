"""The ops that reorder, against numpy on whole tensors: every op in chunks of every size gives the same rows."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.convert.ops import AddOne, Array, Op, Part, RopePermute
from ggufsmith.convert.reorder import (
    Chain,
    Fold,
    NegativeExp,
    PaddedRows,
    PartGroups,
    Regroup,
    RegroupColumns,
    Squeeze,
    Strided,
    StridedColumns,
    Turn,
    Unfold,
    Unsqueeze,
)
from ggufsmith.convert.scale import Multiplied, MultipliedRows, UnitRows

Whole = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def grouped(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """4 rows that stay, then (2, 3, 4) becomes (3, 2, 4)."""
    moved = x[4:].reshape(2, 3, 4, -1).swapaxes(0, 1).reshape(24, -1)
    return np.concatenate([x[:4], moved]).reshape(x.shape)


def parted(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """3 groups of 2 queries, a key and a value, each of 2 rows."""
    q, k, v = np.split(x.reshape(3, 4, 2, -1), [2, 3], axis=1)
    return np.concatenate([each.reshape(-1, x.shape[-1]) for each in (q, k, v)])


CASES: dict[str, tuple[Op, tuple[int, ...], Whole]] = {
    "turn": (Turn(), (3, 4, 5), lambda x: x.swapaxes(-1, -2)),
    "turn one": (Turn(), (4, 5), lambda x: x.T),
    "turn some": (Turn(1, 3), (3, 70, 8), lambda x: x[..., 1::3].swapaxes(-1, -2)),
    "strided": (Strided(1, 2), (3, 6, 5), lambda x: x[:, 1::2]),
    "strided vector": (Strided(0, 2), (6,), lambda x: x[::2]),
    "strided columns": (StridedColumns(1, 2), (3, 6), lambda x: x[:, 1::2]),
    "regroup": (Regroup(2, 3, 4, first=4), (28, 5), grouped),
    "regroup vector": (Regroup(2, 3, 4, first=4), (28,), lambda x: grouped(x[:, None])[:, 0]),
    "part groups": (PartGroups(3, 2, 2), (24, 5), parted),
    "part groups vector": (PartGroups(3, 2, 2), (24,), lambda x: parted(x[:, None])[:, 0]),
    "regroup columns": (
        RegroupColumns(2, 3, 4),
        (5, 24),
        lambda x: x.reshape(5, 2, 3, 4).swapaxes(1, 2).reshape(5, 24),
    ),
    "squeeze": (Squeeze(), (6, 1, 4), lambda x: x[:, 0]),
    "unsqueeze": (Unsqueeze(), (6, 4), lambda x: x[:, None]),
    "fold": (Fold(3), (12,), lambda x: x.reshape(3, 4)),
    "column": (Chain(NegativeExp(), Fold(7)), (7,), lambda x: -np.exp(x)[:, None]),
    "unfold": (Unfold(), (3, 4), lambda x: x.ravel()),
    "scaled": (Multiplied((0.6, 0.9)), (5, 4), lambda x: x * np.float32(0.6) * np.float32(0.9)),
    "undone": (Multiplied((0.6, 0.9), undo=True), (5, 4), lambda x: x / np.float32(0.9) / np.float32(0.6)),
    "scaled rows": (
        MultipliedRows(((2, 0.5), (1, 3.0), (4, 1.1))),
        (7, 3),
        lambda x: x * np.float32([0.5, 0.5, 3, 1.1, 1.1, 1.1, 1.1])[:, None],
    ),
    "padded": (PaddedRows(3, 7), (3, 4), lambda x: np.concatenate([x, np.zeros((4, 4), np.float32)])),
    "padded by none": (PaddedRows(3, 3), (3, 4), lambda x: x),
    "unit rows": (UnitRows(), (5, 4), lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)),
    "exp": (NegativeExp(), (7,), lambda x: -np.exp(x)),
    "part of a vector": (Part(2, 5), (9,), lambda x: x[2:5]),
    "chain": (Chain(Turn(), Strided(1, 2)), (3, 4, 6), lambda x: x.swapaxes(-1, -2)[:, 1::2]),
    "computing chain": (Chain(AddOne(), Regroup(2, 3, 1)), (6,), lambda x: (x + 1).reshape(2, 3).T.ravel()),
}


def apply(op: Op, x: NDArray[np.float32], chunk: int) -> NDArray[np.float32]:
    flat = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x[:, None]
    shape = op.shape(x.shape)
    count = int(np.prod(shape[:-1])) if len(shape) > 1 else shape[0]

    def read(source: int, first: int, last: int) -> Array:
        assert 0 <= first <= last <= len(flat)
        return flat[first:last]

    parts = [op.rows(read, (x.shape,), at, min(at + chunk, count)) for at in range(0, count, chunk)]
    return np.concatenate(parts).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_rows_in_chunks_of_every_size(name: str) -> None:
    op, shape, whole = CASES[name]
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    expected = whole(x)
    for chunk in (1, 2, 3, 5, 100):
        found = apply(op, x, chunk)
        assert found.shape == expected.shape
        assert np.allclose(found, expected, rtol=1e-6, atol=0)
    inverse = op.inverse()
    if inverse is not None:
        assert np.allclose(apply(inverse, expected.astype(np.float32), 100), x, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Regroup(2, 3, 4), (25, 2)),
        (PartGroups(2, 1, 4), (25,)),
        (RegroupColumns(2, 3, 4), (2, 25)),
        (Turn(), (4,)),
        (Part(2, 9), (4,)),
    ],
)
def test_shapes_that_do_not_fit_are_said(op: Op, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"are not|cannot be"):
        op.shape(shape)


def test_what_is_made_of_whole_rows() -> None:
    assert Regroup(2, 3, 4).whole_rows and Strided(0, 2).whole_rows and RopePermute(2).whole_rows
    assert not any(op.whole_rows for op in (Turn(), RegroupColumns(2, 3, 4), AddOne(), Chain(Turn(), Strided(0, 2))))
