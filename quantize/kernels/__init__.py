"""One module per family of formats; each holds `KERNELS`, format name -> Codec.

Importing this package must stay cheap: the modules in it import Numba, and `rows` loads them when a format is first
used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Codec:
    """The kernels of one block format. Every kernel works on whole groups of W blocks, one block per lane (see
    simd.py).

    encode:   (x float32 [n * weights], out uint8 [n * size]); n a multiple of W. None: only with importance.
    weighted: (x, out, importance float32, first, power float32): the search that an importance matrix steers. Block k
              of x is block `first + k` of a run of rows; importance is the row's weights, repeated from the start for
              at least W more blocks, so that the weights of block k begin at (first + k) % blocks_per_row * weights and
              those of the next W - 1 blocks follow, where blocks_per_row is importance.size // weights - W. power[r] is
              the mean square of row r if `by_row`, else empty. None: the format ignores importance, as ggml does.
    decode:   (blocks uint8 [n * size], out float32 [n * weights]); n a multiple of W.
    alive:    how many neighbouring weights need one positive importance between them, because ggml erases them
              otherwise; 0: none do.
    by_row:   whether `weighted` needs the mean square of whole rows.
    """

    encode: Callable[..., Any] | None
    weighted: Callable[..., Any] | None
    decode: Callable[..., Any]
    alive: int = 0
    by_row: bool = False
