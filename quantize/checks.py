"""Checks of what was just made, cheap enough to be done always: nothing infinite, and rows near their source.

They do not trust the kernels: blocks are read by plain NumPy (reference.py). A row of ordinary weights loses no more in
a type than LARGEST says, and resembles its source; a kernel that is miscompiled, or memory that fails, loses about all
of it. One row of every tensor, and more of a large one, is looked at. Extraordinary ones (a few weights or a few
importances that count for all others, weights near nothing) can lose everything and be right: they are passed over.
Before all that, every kernel has given known answers (selftest.py).
"""

import math
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import Format
from ggufsmith.quantize.reference import dequantize, widen
from ggufsmith.quantize.rows import MODULES, decode
from ggufsmith.quantize.selftest import agree

# Bits of the smallest pattern that is infinite or NaN, sign aside.
LIMITS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
E8M0_NAN = 0xFF  # the scale of MXFP4 that stands for no number
SCALES = ("d", "dmin", "m", "s")  # fields of half precision; the codes beside them are bounded
EVERY = 16  # chunks of a tensor: from the first on, one of so many is looked at
SAMPLE = 4096  # weights of a row that are looked at; a multiple of every block
EVEN = 64.0  # of so many equal weights a row must have the evenness: (sum of x)**2 / (sum of x**2), x their powers
FAINTEST = 1e-3  # root mean square: below it scales get coarse, they are of half precision
SLACK = 1.5
ALIKE = 0.2  # cosine of the angle to the source, which even the coarsest types keep; wrong bytes are near 0
# Type -> the largest error among 10**5 such rows of 256 to 4096 weights, of sixteen distributions, without importance
# and with five kinds of it: root of the mean square, relative to the weights, importance counted.
LARGEST: Mapping[str, float] = MappingProxyType(
    {
        "F32": 0.0,
        "F16": 2.0**-11,
        "BF16": 2.0**-8,
        "Q8_0": 0.0088,
        "Q6_K": 0.030,
        "Q5_0": 0.075,
        "Q5_1": 0.052,
        "Q5_K": 0.050,
        "Q4_0": 0.14,
        "Q4_1": 0.11,
        "Q4_K": 0.097,
        "IQ4_NL": 0.11,
        "IQ4_XS": 0.12,
        "MXFP4": 0.16,
        "NVFP4": 0.16,
        "Q3_K": 0.21,
        "IQ3_S": 0.23,
        "IQ3_XXS": 0.37,
        "Q2_K": 0.40,
        "IQ2_S": 0.43,
        "IQ2_XS": 0.42,
        "IQ2_XXS": 0.55,
        "IQ1_S": 0.64,
        "Q2_0": 0.82,
        "Q1_0": 0.92,
        "TQ1_0": 0.96,
        "TQ2_0": 0.96,
        "IQ1_M": 1.1,
    }
)


def nonfinite(format: Format, data: NDArray[np.uint8]) -> int:
    """How many weights, or blocks, of these whole blocks are NaN or infinite."""
    if format.name in LIMITS:
        return _above(data.view(format.dtype["x"].str.replace("f", "u")), LIMITS[format.name])
    if halves := _halves(format):
        blocks = data.view(format.dtype)
        return int(sum(_above(np.ascontiguousarray(blocks[name]), LIMITS["F16"]) for name in halves))
    if format.name not in MODULES:
        return 0  # integers
    wide = np.empty((1, data.size // format.size * format.weights), np.float32)
    decode(format, data.reshape(1, -1), wide)
    nan = data.view(format.dtype)["e"] == E8M0_NAN if format.name == "MXFP4" else np.zeros(1, bool)
    if not (nan.any() or _above(wide.view(np.uint32).reshape(-1), LIMITS["F32"])):
        return 0
    return int((nan | ~np.isfinite(wide).reshape(-1, format.weights).all(1)).sum())


def check_scales(format: Format, encoded: NDArray[np.uint8], where: str) -> None:
    """Failure if a scale of half precision among blocks just made is NaN or infinite."""
    if _halves(format) and nonfinite(format, encoded.reshape(-1)):
        raise _damaged(f"blocks of {format.name} have a scale that is NaN or infinite", where)


def check_row(
    format: Format,
    encoded: NDArray[np.uint8],
    rows: NDArray[Any],
    source: Format,
    importance: Callable[[int], NDArray[np.float32] | None],
    where: str,
) -> None:
    """Failure if the last of the rows just encoded cannot be what was meant.

    encoded: (n, bytes per row). rows: (n, width) of a plain format, `source`. importance: of a row, by its number.
    where:   the tensor.
    """
    if format.plain:  # where rows may be as short as one weight
        encoded, rows = encoded.reshape(1, -1)[:, : SAMPLE * format.size], rows.reshape(1, -1)[:, :SAMPLE]
    last = len(rows) - 1
    part, blocks = _window(format, rows.shape[1], where)
    weights = None if format.plain else importance(last)
    row = widen(rows[last, part], source)
    fit = row_fit(format, encoded[last:, blocks], row, None if weights is None else weights[part])
    if fit is None:
        return
    if not fit.error <= SLACK * LARGEST[format.name]:
        raise _damaged(f"a row as {format.name} has an error of {fit.error:.2g} of its weights", where)
    if not fit.alike >= ALIKE:
        raise _damaged(f"a row as {format.name} does not resemble its source", where)


def check_decoded(format: Format, blocks: NDArray[np.uint8], wide: NDArray[np.float32], where: str) -> None:
    """Failure if the last of the rows just decoded, (n, width) from (n, bytes per row), is not what its blocks say."""
    if len(wide) == 0:
        return
    part, bytes_of_part = _window(format, wide.shape[1], where)
    if not agree(wide[-1:, part], dequantize(format, blocks[-1:, bytes_of_part])):
        raise _damaged(f"a row of {format.name} was read as other numbers than it holds", where)


class RowFit(NamedTuple):
    """How near a row is to its source: the root of the mean squared error, relative to the weights; and the cosine of
    the angle between the two. Importance counts in both.
    """

    error: float
    alike: float


def row_fit(
    format: Format, encoded: NDArray[np.uint8], row: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> RowFit | None:
    """Of (1, bytes) beside the (width,) weights. None for a row that is not ordinary."""
    with np.errstate(over="ignore"):  # rope factors of 1e30 mean "do not rotate"; such rows are not ordinary
        powers = np.square(row)
    counted = [powers] if importance is None else [powers, importance, powers * importance]
    if float(powers.mean()) < FAINTEST**2 or not all(map(_even, counted)):
        return None
    back = widen(encoded[0].view(format.dtype["x"]), format) if format.plain else dequantize(format, encoded)[0]
    weigh = 1 if importance is None else importance
    with np.errstate(over="ignore", invalid="ignore"):  # then NaN or infinity is the answer
        power, other = float(counted[-1].sum()), float((np.square(back) * weigh).sum())
        error = math.sqrt(float((np.square(back - row) * weigh).sum()) / power)
        return RowFit(error, float((back * row * weigh).sum()) / math.sqrt(power * other) if other else 0.0)


def _window(format: Format, width: int, where: str) -> tuple[slice, slice]:
    """Which weights of a row are looked at, and their bytes: SAMPLE of a long one, elsewhere in every tensor."""
    if width <= SAMPLE:
        return slice(None), slice(None)
    first = min(zlib.crc32(where.encode("utf-8", "surrogatepass")) % (width // SAMPLE + 1) * SAMPLE, width - SAMPLE)
    first -= first % format.weights
    blocks = first // format.weights * format.size
    return slice(first, first + SAMPLE), slice(blocks, blocks + SAMPLE // format.weights * format.size)


def _even(values: NDArray[np.float32]) -> bool:
    """False also for what is no number, or too large for sums."""
    return EVEN * float(np.vdot(values, values)) <= float(values.sum()) ** 2 < math.inf


def _damaged(what: str, where: str) -> Failure:
    return Failure(
        f"{what}; this should be impossible",
        where=where,
        fix="Check the memory of this machine, and remove ggufsmith's folder in the user's cache; then report it.",
    )


@cache
def _halves(format: Format) -> tuple[str, ...]:
    """The scales of half precision."""
    names = [name for name in SCALES if format.dtype.names and name in format.dtype.names]
    return tuple(name for name in names if format.dtype[name] == np.uint16)


def _above(bits: NDArray[Any], limit: int) -> int:
    """How many patterns are at or above `limit`, their sign bit aside."""
    magnitudes = bits & bits.dtype.type((1 << (8 * bits.dtype.itemsize - 1)) - 1)
    return int(np.count_nonzero(magnitudes >= limit)) if magnitudes.size and magnitudes.max() >= limit else 0
