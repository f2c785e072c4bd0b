"""Sources made again from the tensors that were cut from them, in chunks of every size."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.layout import rows_of
from ggufsmith.convert.architectures.kimi_linear import Channels
from ggufsmith.convert.architectures.latent import Heads
from ggufsmith.convert.architectures.qwen_hybrid import Grouped
from ggufsmith.convert.invert import Merge, inverses
from ggufsmith.convert.ops import AddOne, Array, Copy, Op, Part
from ggufsmith.convert.plan import TensorPlan
from ggufsmith.convert.reorder import Chain, Regroup, Strided, StridedColumns, Turn
from ggufsmith.convert.stored import StoredTensor

Numbers = NDArray[np.float32]
# What it is -> the shape of the source, and the ops of the tensors that are made of it.
CASES: dict[str, tuple[tuple[int, ...], tuple[Op, ...]]] = {
    "gate and up": ((8, 5), (Part(0, 3), Part(3, 8))),
    "of experts": ((3, 8, 5), (Part(0, 4), Part(4, 8))),
    "of experts, turned": ((3, 5, 8), (Chain(Turn(), Part(0, 4)), Chain(Turn(), Part(4, 8)))),
    "row by row": ((3, 8, 5), (Strided(0, 2), Strided(1, 2))),
    "column by column": ((3, 5, 8), (Turn(0, 2), Turn(1, 2))),
    "biases": ((3, 8), (StridedColumns(0, 2), StridedColumns(1, 2))),
    "a vector": ((8,), (Part(0, 3), Part(3, 8))),
    "a vector in turn": ((8,), (Strided(1, 2), Strided(0, 2))),
    "keys and values": ((15, 4), (Chain(Chain(Heads(3), Part(0, 2)), Turn()), Chain(Heads(3), Part(2, 5)))),
    "queries, keys, values and gates": (
        (24, 4),
        (Grouped(2, 12, ((0, 2), (2, 4), (4, 8))), Grouped(2, 12, ((8, 12),))),
    ),
    "convolutions": ((9, 1, 4), (Channels(0, 3), Channels(3, 5), Channels(5, 9))),
    "in another order as well": ((12, 4), (Part(0, 6), Chain(Part(6, 12), Regroup(2, 3, 1)))),
}


def forward(op: Op, x: Array) -> Array:
    """The output of an op as rows."""
    flat = x.reshape(rows_of(x.shape))
    return op.rows(lambda k, first, last: flat[first:last], (x.shape,), 0, rows_of(op.shape(x.shape))[0])


def plans(shape: tuple[int, ...], ops: tuple[Op, ...]) -> list[TensorPlan]:
    source = StoredTensor("source", shape, "F32", Path(), 0, 0)
    return [TensorPlan(f"output.{k}", op.shape(shape), op, (source,), False) for k, op in enumerate(ops)]


@pytest.mark.parametrize("name", CASES)
def test_what_was_cut_is_put_together(name: str) -> None:
    shape, ops = CASES[name]
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    ((source, outputs, op),) = inverses(plans(shape, ops))
    assert source.name == "source" and len(outputs) == len(ops)
    parts, shapes = [forward(each, x) for each in ops], tuple(each.shape for each in outputs)
    assert op.shape(*shapes) == shape
    rows = rows_of(shape)[0]
    for chunk in (1, 2, 3, 5, 100):
        found = [
            op.rows(lambda k, first, last: parts[k][first:last], shapes, at, min(at + chunk, rows))
            for at in range(0, rows, chunk)
        ]
        assert np.array_equal(np.concatenate(found).reshape(shape), x)


def test_rows_that_stay_whole_may_be_blocks() -> None:
    """Their bytes are not as many as their numbers."""
    shape = (2, 6, 256)
    merge = Merge((Part(0, 3), Part(3, 6)), shape)
    blocks = np.random.default_rng(1).integers(0, 256, (12, 144), dtype=np.uint8)
    halves = [blocks.reshape(2, 6, 144)[:, :3].reshape(6, 144), blocks.reshape(2, 6, 144)[:, 3:].reshape(6, 144)]
    assert merge.whole_rows
    shapes = ((2, 3, 256), (2, 3, 256))
    found = merge.rows(lambda k, first, last: halves[k][first:last], shapes, 1, 11)
    assert np.array_equal(found, blocks[1:11])
    assert not Merge((Chain(Turn(), Part(0, 3)),), shape).whole_rows


def test_one_output_that_is_the_whole_is_enough() -> None:
    """As an embedding that is the head too."""
    ((_, outputs, op),) = inverses(plans((4, 3), (Copy(), Copy())))
    assert [each.name for each in outputs] == ["output.0"] and op == Copy()


@pytest.mark.parametrize("ops", [(Part(0, 3),), (Part(0, 3), Part(4, 8)), (Chain(AddOne(), Part(0, 8)),)])
def test_what_is_not_all_there_is_refused(ops: tuple[Op, ...]) -> None:
    with pytest.raises(Unsupported, match="source cannot be made from the GGUF tensors again"):
        inverses(plans((8, 3), ops))
