"""Reads the dense weights of a checkpoint as a conversion would, in pieces of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.layout import rows_of
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.dequantize.detect import detect
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.stored import Checkpoint


def recognised(folder: Path) -> Checkpoint:
    return detect(open_checkpoint(folder), open_config(folder))


def weights(folder: Path) -> dict[str, NDArray[Any]]:
    """Every quantized weight, read whole; any other range of its rows must give the same numbers."""
    found = {}
    with recognised(folder) as checkpoint:
        for source in checkpoint.tensors.values():
            if not isinstance(source, DequantizedTensor):
                continue
            rows, width = rows_of(source.shape)
            whole = read(source, checkpoint, 0, rows)
            for begin in {0, rows - 1, *(rows * k // 7 for k in range(1, 7))}:
                end = min(begin + rows // 5 + 1, rows)
                np.testing.assert_array_equal(read(source, checkpoint, begin, end), whole[begin:end])
            assert whole.shape == (rows, width)
            found[source.name] = whole.reshape(source.shape)
    return found


def read(source: DequantizedTensor, checkpoint: Checkpoint, first: int, last: int) -> NDArray[np.float32]:
    out = np.full((last - first, rows_of(source.shape)[1]), np.nan, np.float32)
    with np.errstate(all="ignore"):
        source.weights.rows(Store(checkpoint), first, last, out)
    return out
