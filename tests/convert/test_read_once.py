"""Tensors that are made from one source, with rows between each other's: the source is read once for all of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.convert.ops import Op, Part
from ggufsmith.convert.plan import TensorPlan
from ggufsmith.convert.reorder import Strided, Turn
from ggufsmith.convert.stored import Checkpoint, LocalFiles, StoredTensor
from ggufsmith.convert.tensors import tensors_of
from ggufsmith.pipeline import stream
from ggufsmith.pipeline.stream import Scratch, chunks

Array = NDArray[np.float32]
Split = Callable[[Array], tuple[Array, Array]]
SHAPE = (4, 96, 128)


class Counting(LocalFiles):
    """Files, and how often each byte of them was read."""

    counts: ClassVar[Counter[int]] = Counter()

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self.counts.clear()

    def expect(self, extents: Iterable[tuple[Path, int, int]]) -> None:
        """Not needed."""

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        """See `Reader.read_into`."""
        self.counts.update(range(offset, offset + len(buffer)))
        return super().read_into(path, offset, buffer)


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ((Strided(0, 2), Strided(1, 2)), lambda x: (x[:, ::2], x[:, 1::2])),
        ((Turn(0, 2), Turn(1, 2)), lambda x: (x[..., ::2].swapaxes(1, 2), x[..., 1::2].swapaxes(1, 2))),
        ((Part(0, 48), Part(48, 96)), lambda x: (x[:, :48], x[:, 48:])),
    ],
    ids=["rows in turn", "columns in turn", "halves"],
)
def test_every_byte_is_read_once(
    ops: tuple[Op, Op], expected: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK", 1024)
    x = np.random.default_rng(3).standard_normal(SHAPE, dtype=np.float32)
    (tmp_path / "x").write_bytes(x.tobytes())
    source = StoredTensor("x", SHAPE, "F32", tmp_path / "x", 0, x.nbytes)
    outputs = [TensorPlan(f"out.{k}", op.shape(SHAPE), op, (source,), False) for k, op in enumerate(ops)]
    made = [np.empty(output.shape, np.float32).reshape(-1, output.shape[-1]) for output in outputs]
    with Checkpoint(tmp_path, {"x": source}, open_files=Counting) as checkpoint:
        tensors = tensors_of(checkpoint, outputs)
        order = list(chunks(tensors))
        for index, start, stop in order:
            made[index][start:stop] = tensors[index].rows(start, stop, Scratch())
    for found, wanted in zip(made, expected(x), strict=True):
        assert np.array_equal(found.reshape(wanted.shape), wanted)
    assert set(Counting.counts.values()) == {1} and len(Counting.counts) == x.nbytes
    assert [index for index, _, _ in order[:4]] == [0, 1, 0, 1]


def test_rows_that_do_not_divide_evenly(tmp_path: Path) -> None:
    """A matrix of an odd number of rows: the last of them has no partner."""
    shape = (3, 5, 8)
    x = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    (tmp_path / "x").write_bytes(x.tobytes())
    source = StoredTensor("x", shape, "F32", tmp_path / "x", 0, x.nbytes)
    for begin in (0, 1):
        op = Strided(begin, 2)
        with Checkpoint(tmp_path, {"x": source}) as checkpoint:
            (tensor,) = tensors_of(checkpoint, [TensorPlan("out", op.shape(shape), op, (source,), False)])
            wanted = x[:, begin::2].reshape(-1, 8)
            for size in (1, 2, 3, len(wanted)):
                parts = [tensor.rows(at, min(at + size, len(wanted)), Scratch()) for at in range(0, len(wanted), size)]
                assert np.array_equal(np.concatenate(parts), wanted)
