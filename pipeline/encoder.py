"""What the pipeline asks of whoever knows the formats. It streams rows and writes bytes, and knows no format itself."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import Format
from ggufsmith.pipeline.findings import Report

# Target, source, and whether there is importance.
Conversion = tuple[Format, Format, bool]


@dataclass(frozen=True)
class RowRange:
    """Which rows of a tensor: from `first` on, of `count` in all.

    tensor: its name in the output. origin: what to call it in an error.
    """

    tensor: str
    origin: str
    first: int
    count: int

    def parts(self, matrices: int, rows: int) -> Iterator[tuple[int, slice]]:
        """Cut `rows` rows from `first` on where a stack of `matrices` has its borders: which matrix, and its rows."""
        each, start = self.count // matrices, 0
        while start < rows:
            number = (self.first + start) // each
            stop = min(rows, (number + 1) * each - self.first)
            yield number, slice(start, stop)
            start = stop


class Encoder(Protocol):
    """Makes the bytes of every format from rows of weights, and weights from bytes. Thread-safe; it can be pickled."""

    def load(
        self, conversions: Iterable[Conversion], advance: Callable[[int, int], None] = lambda done, total: None
    ) -> float:
        """Compile what these need, or load it from the disk, and see that it works, before the clock starts.

        advance: told how many kernels are compiled, of how many that have to be. Returns the seconds that compiling
        took.
        """

    def decode(self, source: Format, blocks: NDArray[np.uint8], out: NDArray[np.float32], *, place: RowRange) -> None:
        """The weights of blocks: (n, bytes per row) to (n, width) float32. Failure if they are not what was stored."""

    def encode(
        self,
        target: Format,
        rows: NDArray[Any],
        out: NDArray[np.uint8],
        *,
        source: Format,
        importance: NDArray[np.float32] | None,
        place: RowRange,
    ) -> Report:
        """Write `rows`, (n, width) of the plain format `source`, into `out`, (n, bytes per row), and check them.

        importance: (width,), or (slices, width) for stacked experts.

        Malformed: a weight is NaN or infinite. Unsupported: a finite weight that the target cannot hold. Failure: the
        bytes just made are not what was meant.
        """
