"""Blocks that are refined under the Hessians of their layers: the encoder of `--calibrate`.

Its bytes are in ggml's formats, and are not those of ggml's quantizer, which looks at one weight at a time.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.factor import Factor, factor_of
from ggufsmith.calibrate.gram import Inputs
from ggufsmith.calibrate.hessian import Hessian, prepare
from ggufsmith.calibrate.refine import FED, Effort, refine
from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import Format
from ggufsmith.pipeline.encoder import Conversion, Encoder, RowRange
from ggufsmith.pipeline.findings import Report
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.fields import LAYOUTS
from ggufsmith.quantize.kernels import descent
from ggufsmith.quantize.reference import dequantize, widen

KERNELS = (descent.project, descent.descend, descent.feed)
TOLERANCE = 1e-2  # of a loss that is computed in another way and order; a wrong byte is far more


@dataclass(frozen=True, eq=False)
class Layer:
    """The Hessian of one matrix, and its factor, if any type that is made of the matrix starts from error feedback."""

    hessian: Hessian
    factor: Factor | None


@dataclass
class Gain:
    """What refinement took off the losses of one tensor in one type. Losses are (w - w') H (w - w')^T, summed."""

    start: float = 0.0
    end: float = 0.0
    trouble: str | None = None


@dataclass
class Shelf:
    """What the encoder knows at the moment. Threads read it while nobody writes, but for the gains.

    layers: by the names of the tensors of a block; one for all matrices of a stack, or one for each.
    gains:  by tensor and type, of all blocks so far.
    """

    layers: Mapping[str, Sequence[Layer]] = field(default_factory=dict)
    gains: dict[tuple[str, str], Gain] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, inputs: Mapping[str, Inputs], types: Mapping[str, set[str]], threads: int) -> None:
        """Make the layers of a block from what its linears were given. types: that will be made of each tensor."""
        shared: dict[tuple[int, bool], list[Layer]] = {}
        with ThreadPoolExecutor(threads) as pool:
            found = {}
            for name, given in inputs.items():
                fed = bool(types.get(name, set()) & FED)
                key = id(given), fed
                if key not in shared:
                    hessians = [prepare(h) for h in given.h]
                    shared[key] = [
                        Layer(each, factor_of(each, pool.map) if _feeds(each, fed) else None) for each in hessians
                    ]
                found[name] = shared[key]
        self.layers = found

    def add(self, tensor: str, type: str, start: float, end: float, trouble: str | None) -> None:
        """Note a gain."""
        with self.lock:
            gain = self.gains.setdefault((tensor, type), Gain())
            gain.start += start
            gain.end += end
            gain.trouble = gain.trouble or trouble


def _feeds(hessian: Hessian, fed: bool) -> bool:
    return fed and hessian.trouble is None


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
        seconds = self.plain.load(conversions, advance)
        for kernel in KERNELS:
            kernel.compile()
        return seconds

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
        layers = self.shelf.layers.get(place.tensor)
        if layers is None or importance is None:
            return self.plain.encode(target, rows, out, source=source, importance=None, place=place)
        diagonals = np.stack([_importance(layer.hessian) for layer in layers])
        weights = diagonals if len(layers) > 1 else diagonals[0]
        report = self.plain.encode(target, rows, out, source=source, importance=weights, place=place)
        if target.name in LAYOUTS:
            for layer, part in _slices(layers, place, len(rows)):
                self._refine(target, widen(rows[part], source), out[part], layer, place)
        return report

    def _refine(
        self, target: Format, w: NDArray[np.float32], out: NDArray[np.uint8], layer: Layer, place: RowRange
    ) -> None:
        hessian = layer.hessian
        if hessian.trouble is not None:
            self.shelf.add(place.tensor, target.name, 0.0, 0.0, hessian.trouble)
            return
        factor = layer.factor if target.name in FED else None
        refined = refine(target, np.ascontiguousarray(w), hessian, factor, effort=self.effort)
        _check_loss(target, w[-1], refined.data[-1:], hessian, float(refined.end[-1]), place)
        out[...] = refined.data
        self.shelf.add(place.tensor, target.name, float(refined.start.sum()), float(refined.end.sum()), refined.trouble)


def _importance(hessian: Hessian) -> NDArray[np.float32]:
    """Of each column; even where the Hessian cannot be used."""
    return np.ones_like(hessian.diagonal) if hessian.trouble is not None else hessian.diagonal


def _slices(layers: Sequence[Layer], place: RowRange, count: int) -> Iterator[tuple[Layer, slice]]:
    """Which rows of a chunk belong to which matrix of a stack."""
    each, start = place.count // len(layers), 0
    while start < count:
        number = (place.first + start) // each
        stop = min(count, (number + 1) * each - place.first)
        yield layers[number], slice(start, stop)
        start = stop


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
    loss = float(error @ hessian.h.astype(np.float64) @ error)
    scale = float(np.square(error) @ hessian.diagonal)
    if not math.isclose(loss, said, rel_tol=TOLERANCE, abs_tol=TOLERANCE * scale + 1e-30):
        raise Failure(
            f"a refined row of {target.name} loses {loss:.3g} instead of {said:.3g}; this should be impossible",
            where=place.origin,
            fix="Leave out --calibrate, and report it.",
        )
