"""Blocks that are refined under the Hessians of their layers: the encoder of `--calibrate`.

Its bytes are in ggml's formats, and are not those of ggml's quantizer, which looks at one weight at a time.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.gram import Inputs
from ggufsmith.calibrate.hessian import Hessian, prepare
from ggufsmith.calibrate.refine import BLOCK, Effort, refine_block
from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import Format
from ggufsmith.pipeline.encoder import Conversion, Encoder, RowRange
from ggufsmith.pipeline.findings import Report
from ggufsmith.quantize.cache import compile_all
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.fields import is_refinable, layout_of
from ggufsmith.quantize.kernels import cholesky, descent, descent_lattice, tile_sums
from ggufsmith.quantize.lattice_fields import LatticeLayout
from ggufsmith.quantize.reference import dequantize, widen
from ggufsmith.quantize.rows import codec_of

KERNELS = (tile_sums.project, tile_sums.inner, descent.descend, descent.feed, cholesky.factor_and_invert)
LATTICE_KERNELS = (descent_lattice.descend_lattice, descent_lattice.feed_lattice)
TOLERANCE = 1e-2  # of a loss that is computed in another way and order; a wrong byte is far more


@dataclass
class Gain:
    """What refinement took off the losses of one tensor in one type. Losses are (w - w') H (w - w')^T, summed."""

    start: float = 0.0
    end: float = 0.0


# Why matrices have ggml's bytes, as the end of a sentence.
UNREACHED = "the text did not reach them"
UNREFINED = "there is no refinement for {}"


@dataclass
class Shelf:
    """What the encoder knows at the moment. Threads read it while nobody writes, but for the gains.

    hessians: by the names of the tensors of a block; one for all matrices of a stack, or one for each.
    importance: their diagonals, (width,) or (matrices, width).
    gains:    by tensor and type, of all blocks so far.
    plain:    why there are matrices that have ggml's bytes: of each tensor which of its stack they are, or none of it.
    short:    tensors whose text had fewer tokens than they have columns: both numbers.
    """

    hessians: Mapping[str, Sequence[Hessian]] = field(default_factory=dict)
    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    gains: dict[tuple[str, str], Gain] = field(default_factory=dict)
    plain: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    short: dict[str, tuple[int, int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, inputs: Mapping[str, Inputs], threads: int) -> None:
        """Make the Hessians of a block from what its linears were given; matrices with the same inputs share them."""
        made: dict[int, tuple[list[Hessian], NDArray[np.float32]]] = {}
        with ThreadPoolExecutor(threads) as pool:
            for given in inputs.values():
                if id(given) not in made:
                    hessians = [
                        prepare(h, pool.map, tokens=tokens) for h, tokens in zip(given.h, given.tokens, strict=True)
                    ]
                    diagonals = np.stack([_importance(each) for each in hessians])
                    made[id(given)] = hessians, diagonals if len(hessians) > 1 else diagonals[0]
        for name, given in inputs.items():
            tokens, columns = int(min(given.tokens)), len(given.h[0])
            if 0 < tokens < columns:
                self.short[name] = tokens, columns
        self.hessians = {name: made[id(given)][0] for name, given in inputs.items()}
        self.importance = {name: made[id(given)][1] for name, given in inputs.items()}

    def clear(self) -> None:
        """Forget the block."""
        self.hessians, self.importance = {}, {}

    def leave(self, tensor: str, why: str, matrix: int | None = None) -> None:
        """Note that a tensor, or a matrix of a stack, has ggml's bytes."""
        with self.lock:
            found = self.plain.setdefault(why, {}).setdefault(tensor, set())
            found |= set() if matrix is None else {matrix}

    def add(self, tensor: str, type: str, start: float, end: float) -> None:
        """Note a gain."""
        with self.lock:
            gain = self.gains.setdefault((tensor, type), Gain())
            gain.start += start
            gain.end += end


@dataclass(frozen=True)
class CalibratedEncoder:
    """A `pipeline.encoder.Encoder`.

    effort: how long it searches. text: SHA-256 of the tokens that the Hessians come from.
    shelf:  the Hessians of the block that is encoded at the moment.
    """

    effort: Effort
    text: str
    shelf: Shelf = field(default_factory=Shelf, compare=False, repr=False)
    plain: Encoder = GGML

    def load(
        self, conversions: Iterable[Conversion], advance: Callable[[int, int], None] = lambda done, total: None
    ) -> float:
        """See `Encoder.load`."""
        conversions = list(conversions)
        targets = {target.name for target, _, weighted in conversions if weighted and is_refinable(target.name)}
        lattices = any(isinstance(layout_of(name), LatticeLayout) for name in targets)
        wanted = [*(KERNELS if targets else ()), *(LATTICE_KERNELS if lattices else ())]
        return self.plain.load(conversions, advance) + compile_all(wanted, advance)

    def decode(self, source: Format, blocks: NDArray[np.uint8], out: NDArray[np.float32], *, place: RowRange) -> None:
        """See `Encoder.decode`."""
        self.plain.decode(source, blocks, out, place=place)

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
        """See `Encoder.encode`. importance: is not used; the diagonals of the Hessians are better known."""
        hessians = self.shelf.hessians.get(place.tensor)
        if target.plain or hessians is None or importance is None:
            if importance is not None and not target.plain:
                self.shelf.leave(place.tensor, UNREACHED)
                importance = _even(target, rows.shape[1])
            return self.plain.encode(target, rows, out, source=source, importance=importance, place=place)
        weights = self.shelf.importance[place.tensor]
        report = self.plain.encode(target, rows, out, source=source, importance=weights, place=place)
        for k, part in place.parts(len(hessians), len(rows)):
            why = hessians[k].trouble
            if why is not None:
                self.shelf.leave(place.tensor, why, k if len(hessians) > 1 else None)
                here = replace(place, first=place.first + part.start)
                even = _even(target, rows.shape[1])
                self.plain.encode(target, rows[part], out[part], source=source, importance=even, place=here)
            elif is_refinable(target.name):
                self._refine(target, np.ascontiguousarray(widen(rows[part], source)), out[part], hessians[k], place)
            else:
                self.shelf.leave(place.tensor, UNREFINED.format(target.name))
        return report

    def _refine(
        self, target: Format, w: NDArray[np.float32], out: NDArray[np.uint8], hessian: Hessian, place: RowRange
    ) -> None:
        """Make ggml's bytes in `out` better."""
        for at in range(0, len(w), BLOCK):
            part = slice(at, at + BLOCK)
            out[part], start, end = refine_block(target, w[part], out[part], hessian, self.effort)
            _check_loss(target, w[part][-1], out[part][-1:], hessian, float(end[-1]), place)
            self.shelf.add(place.tensor, target.name, float(start.sum()), float(end.sum()))


def _even(target: Format, width: int) -> NDArray[np.float32] | None:
    """The importance of columns of which nothing is known: none, but for formats that cannot do without."""
    return np.ones(width, np.float32) if codec_of(target).encode is None else None


def _importance(hessian: Hessian) -> NDArray[np.float32]:
    """Of each column; even where the Hessian cannot be used."""
    return np.ones_like(hessian.diagonal) if hessian.trouble is not None else hessian.diagonal


def _check_loss(
    target: Format,
    row: NDArray[np.float32],
    block: NDArray[np.uint8],
    hessian: Hessian,
    said: float,
    place: RowRange,
) -> None:
    """Failure if a row loses something else than its refinement says, by a decoder that had no part in it."""
    error = row.astype(np.float64) - dequantize(target, block)[0]
    loss = float((error.astype(np.float32) @ hessian.h) @ error)  # H is not copied for one row of many
    scale = float(np.square(error) @ hessian.diagonal)
    if not math.isclose(loss, said, rel_tol=TOLERANCE, abs_tol=TOLERANCE * scale + 1e-30):
        raise Failure(
            f"a refined row of {target.name} loses {loss:.3g} instead of {said:.3g}; this should be impossible",
            where=place.origin,
            fix="Leave out --calibrate, and report it.",
        )
