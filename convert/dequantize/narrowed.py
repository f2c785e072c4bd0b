"""Weights in float64, as scientific code saves them: read as float32, which is how transformers and ggml compute."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.scheme import DequantizedTensor, Shape, read_f32
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.stored import StoredTensor

WIDE = "F64"


@dataclass(frozen=True)
class Narrowed:
    """A tensor of float64, rounded to the nearest float32. What float32 cannot hold becomes infinite: it is refused."""

    source: StoredTensor

    granule = 1
    nominal = "F32"

    @property
    def shape(self) -> Shape:
        """See `Weights.shape`."""
        return self.source.shape

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        with np.errstate(over="ignore"):
            read_f32(store, self.source, first, last, out)


def narrowed(source: StoredTensor) -> StoredTensor:
    """The tensor as float32 if it is float64; any other as it is."""
    if source.dtype != WIDE:
        return source
    weights = Narrowed(source)
    return DequantizedTensor(source.name, source.shape, "F32", source.path, 0, source.nbytes, weights, (source,))
