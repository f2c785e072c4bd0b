"""One module per family of formats; each holds `KERNELS`, format name -> Codec. docs/kernels.md explains one of them
line by line.

Importing this package must stay cheap: `rows` loads the modules in it when a format is first used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ggufsmith.quantize.cache import Kernel


class Steering(NamedTuple):
    """What steers a search, and which blocks of a run of rows are at hand: the last arguments of `Codec.weighted`.

    weights:        float32, the importance of the columns of a row, repeated from the start for at least W more
                    blocks, so that those of any W blocks in a row follow each other. Empty: there is none.
    first:          the number of the first block at hand, counted from the start of the run.
    blocks_per_row: of whole rows.
    row_squares:    float32, the mean square of each row of the run, if `Codec.by_row`; else empty.
    """

    weights: Any
    first: int
    blocks_per_row: int
    row_squares: Any


UNSTEERED = Steering(np.empty(0, np.float32), 0, 1, np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class Call:
    """A kernel with its last arguments, which tell the formats apart that it serves."""

    kernel: "Kernel"
    last: Callable[[], tuple[Any, ...]] = tuple

    def __call__(self, *first: Any) -> None:
        self.kernel(*first, *self.last())

    def py_func(self, *first: Any) -> None:
        """The same by the readable twin: the kernel's source, run by Python on NumPy arrays."""
        self.kernel.py_func(*first, *self.last())


@dataclass(frozen=True, eq=False)
class Codec:
    """The kernels of one block format. Each call works on whole groups of W blocks, one block per lane (see simd.py).

    encode:   (x float32 [n * weights], out uint8 [n * size]); n a multiple of W. None: only with importance.
    weighted: (x, out, *Steering): the search that an importance matrix steers. None: the format ignores importance,
              as ggml does.
    decode:   (blocks uint8 [n * size], out float32 [n * weights]); n a multiple of W.
    alive:    how many neighbouring weights need one positive importance between them, because ggml erases them
              otherwise; 0: none do.
    by_row:   whether `weighted` needs the mean square of whole rows.
    """

    encode: Call | None
    weighted: Call | None
    decode: Call
    alive: int = 0
    by_row: bool = False
