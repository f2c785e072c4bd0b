"""Checks of bytes just made, cheap enough to be done always: nothing infinite, and rows near what they were made from.

A row of ordinary weights loses no more in a type than LARGEST says; a kernel that is miscompiled, or memory that fails,
loses about all of it. One row of every tensor, and more of a large one, is looked at. Extraordinary ones (a few weights
or a few importances that count for all others, weights near nothing) can lose everything and be right: they are passed
over.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import Format
from ggufsmith.quantize.rows import MODULES, decode

# Bits of the smallest pattern that is infinite or NaN, sign aside.
LIMITS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
E8M0_NAN = 0xFF  # the scale of MXFP4 that stands for no number
SCALES = ("d", "dmin", "m", "s")  # fields of half precision; the codes beside them are bounded
EVERY = 2  # chunks of a tensor: from the first on, one of so many is looked at
SAMPLE = 4096  # weights of a plain format that are looked at
EVEN = 64.0  # of so many equal weights a row must have the evenness: (sum of x)**2 / (sum of x**2), x their powers
FAINTEST = 1e-3  # root mean square: below it scales get coarse, they are of half precision
SLACK = 1.5
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
    weights = None if format.plain else importance(last)
    error = row_error(format, encoded[last:], _wide(rows[last], source), weights)
    if error is not None and not error <= SLACK * LARGEST[format.name]:
        raise _damaged(f"a row as {format.name} has an error of {error:.2g} of its weights", where)


def row_error(
    format: Format, encoded: NDArray[np.uint8], row: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> float | None:
    """Root mean squared error of (1, bytes), relative to the (width,) weights. None for a row that is not ordinary."""
    powers = np.square(row)
    counted = [powers] if importance is None else [powers, importance, powers * importance]
    if float(powers.mean()) < FAINTEST**2 or not all(map(_even, counted)):
        return None
    back = np.empty((1, row.size), np.float32)
    if format.plain:
        back[0] = _wide(encoded[0].view(format.dtype["x"]), format)
    else:
        decode(format, encoded, back)
    back -= row
    errors = np.square(back[0])
    if importance is not None:
        errors *= importance
    return math.sqrt(float(errors.sum()) / float(counted[-1].sum()))


def _even(values: NDArray[np.float32]) -> bool:
    """False also for what is no number, or too large for sums."""
    return EVEN * float(np.vdot(values, values)) <= float(values.sum()) ** 2 < math.inf


def _wide(values: NDArray[Any], format: Format) -> NDArray[np.float32]:
    """float32 of a plain format by NumPy, and not by the kernels that are being checked."""
    if format.name == "F32":
        return values.view(np.float32)
    if format.name == "F16":
        return values.view(np.float16).astype(np.float32)
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


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
