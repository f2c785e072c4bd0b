"""Ops against their definitions in whole-array NumPy, for any chunking."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.container.layout import rows_of
from ggufsmith.convert.ops import AddOne, Array, Constant, Copy, Op, Part, RopePermute, Stack, Unstack


def in_chunks(op: Op, sources: list[Array], step: int) -> Array:
    """The output of an op, made `step` rows at a time."""
    shapes = tuple(source.shape for source in sources)

    def read(k: int, start: int, stop: int) -> Array:
        return sources[k].reshape(rows_of(shapes[k]))[start:stop]

    out = op.shape(*shapes)
    rows = rows_of(out)[0]
    parts = [op.rows(read, shapes, start, min(start + step, rows)) for start in range(0, rows, step)]
    return np.concatenate(parts).reshape(out)


def numbers(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def permuted(x: Array, heads: int) -> Array:
    """The reshape that llama.cpp's conversion documents for rotary weights."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


CASES: dict[str, tuple[Op, list[Array], Callable[[list[Array]], Array]]] = {
    "copy": (Copy(), [numbers(6, 5)], lambda s: s[0]),
    "permute weight": (RopePermute(3), [numbers(24, 5)], lambda s: permuted(s[0], 3)),
    "permute bias": (RopePermute(3), [numbers(24)], lambda s: permuted(s[0], 3)),
    "permute the first rows of a head": (
        RopePermute(3, undo=True, rotary=4),
        [numbers(24, 5)],
        lambda s: s[0].reshape(3, 8, 5)[:, [0, 2, 1, 3, 4, 5, 6, 7]].reshape(24, 5),
    ),
    "stack": (Stack(), [numbers(4, 3) + 100 * k for k in range(5)], lambda s: np.stack(s)),
    "unstack": (Unstack(3), [numbers(5, 4, 3)], lambda s: s[0][3]),
    "part of a matrix": (Part(2, 5), [numbers(7, 3)], lambda s: s[0][2:5]),
    "part of packed experts": (Part(4, 8), [numbers(3, 8, 2)], lambda s: s[0][:, 4:8]),
    "add one": (AddOne(), [numbers(9)], lambda s: s[0] + 1),
    "constant": (Constant((1.0, 2.5, 8.0)), [], lambda s: np.array([1, 2.5, 8], np.float32)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000])
def test_any_chunking_gives_the_whole_array(name: str, step: int) -> None:
    op, sources, whole = CASES[name]
    np.testing.assert_array_equal(in_chunks(op, sources, step), whole(sources))


@given(heads=st.integers(1, 5), half=st.integers(1, 4), width=st.integers(1, 3), step=st.integers(1, 50))
def test_the_inverse_permutation_undoes_it(heads: int, half: int, width: int, step: int) -> None:
    source = numbers(heads * half * 2, width)
    op = RopePermute(heads)
    np.testing.assert_array_equal(in_chunks(op.inverse(), [in_chunks(op, [source], step)], step), source)


@pytest.mark.parametrize(
    "name", ["copy", "permute weight", "permute bias", "permute the first rows of a head", "stack", "add one"]
)
@pytest.mark.parametrize("step", [2, 5, 1000])
def test_the_inverse_of_an_op_makes_its_sources(name: str, step: int) -> None:
    op, sources, whole = CASES[name]
    for k, source in enumerate(sources):
        inverse = op.inverse(k)
        assert inverse is not None
        np.testing.assert_array_equal(in_chunks(inverse, [whole(sources)], step), source)


def test_an_op_without_an_inverse_says_so() -> None:
    assert Part(2, 5).inverse() is None
    assert Constant((1.0,)).inverse() is None


def test_an_op_that_does_not_apply_says_why() -> None:
    with pytest.raises(ValueError, match="10 rows cannot be divided into 4 heads"):
        RopePermute(4).shape((10, 3))
    with pytest.raises(ValueError, match="12 of the 8 rows of a head cannot be reordered"):
        RopePermute(2, rotary=12).shape((16, 3))
    with pytest.raises(ValueError, match="experts differ in shape"):
        Stack().shape((2, 3), (3, 2))
    with pytest.raises(ValueError, match="no tensor 5 in a stack of 5"):
        Unstack(5).shape((5, 4, 3))
    with pytest.raises(ValueError, match="rows 4 to 9 are not within 8"):
        Part(4, 9).shape((3, 8, 2))


def test_permutation_reads_whole_heads_once_when_chunks_follow_the_granule() -> None:
    reads: list[tuple[int, int]] = []
    op, source = RopePermute(4), numbers(32, 2)

    def read(k: int, start: int, stop: int) -> Array:
        reads.append((start, stop))
        return source[start:stop]

    granule = op.granule(source.shape)
    for start in range(0, 32, granule):
        op.rows(read, (source.shape,), start, start + granule)
    assert reads == [(0, 8), (8, 16), (16, 24), (24, 32)]
