"""The lattices behind the IQ types: their points, and which points are tried for a vector that is not on the lattice.

A point is `dims` codes of `levels` values each (eight ternary codes, or four of eight values). The points come from the
`gguf` package. Which points a search tries is ggml's rule (iq2xs_init_impl and iq3xs_init_impl in ggml-quants.c): all
points within the `shells` smallest distinct distances, nearest first and, within a distance, in the order of the grid.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gguf import quants
from numpy.typing import NDArray

CHUNK = 16  # candidates that are compared at once

# Grid -> how many distinct distances its candidates reach.
SHELLS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}

IQ4_VALUES = np.array(quants.IQ4_NL.kvalues, np.float32)
FP4_VALUES = np.array(quants.MXFP4.kvalues, np.float32)

# Seven stored sign bits -> eight: the eighth makes the number of minus signs even.
EVEN_SIGNS = np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8)


@dataclass(frozen=True, eq=False)
class Candidates:
    """For every vector of codes, the grid points that a search has to compare, in chunks of 16.

    A vector of codes is numbered u = sum(code[i] * levels**i). Its candidates are chunks starts[u] .. stops[u] - 1; a
    short chunk is filled up with its last candidate, which changes no minimum and no first minimum. Chunk p < points is
    that of grid point p, with this one candidate: a slot below 16 * points tells that a vector was on the grid.

    starts, stops: int32 [levels**dims]. counts: int32 [levels**dims], the candidates without what fills up.
    packed: int32 [slots], the codes of a candidate, one nibble each: levels * (i % (16 // levels)) + code[i], so that
            a table of 16 entries serves 16 // levels positions.
    odd:    int32 [slots], one nibble each: 2 * code[i] + 1, the numbers that the searches multiply with a scale.
    terms:  uint8 [slots * dims], 8 * (levels * i + code[i]): which term of a sum it adds for position i, in units of 8
            bytes, for tables of rows.
    points: int32 [slots], the number of the candidate in the grid.
    """

    starts: NDArray[np.int32]
    stops: NDArray[np.int32]
    counts: NDArray[np.int32]
    packed: NDArray[np.int32]
    odd: NDArray[np.int32]
    terms: NDArray[np.uint8]
    points: NDArray[np.int32]


def levels(name: str) -> tuple[int, ...]:
    """The numbers that the codes of grid `name` stand for, in the order of the codes."""
    return tuple(getattr(quants, name).grid_map)


def values(name: str) -> NDArray[np.int8]:
    """int8 [points, dims]: the numbers that a decoder multiplies with the scale."""
    cls: Any = getattr(quants, name)
    cls.init_grid()
    return cls.grid.reshape(cls.grid_shape).astype(np.int8)  # type: ignore[no-any-return]


def codes(name: str) -> NDArray[np.int8]:
    """int8 [points, dims]: the grid's codes, 0 .. levels - 1."""
    return np.searchsorted(np.array(levels(name)), values(name)).astype(np.int8)


def nibbles(numbers: NDArray[Any]) -> NDArray[np.int32]:
    """Rows of up to eight numbers below 16 -> one int32 each, the first number in the low bits."""
    shifts = 4 * np.arange(numbers.shape[1], dtype=np.uint32)
    return (numbers.astype(np.uint32) << shifts).sum(1, dtype=np.uint32).view(np.int32)  # type: ignore[no-any-return]


def neighbours(grid: NDArray[np.int8], base: int, shells: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(u, point) of all candidates, ordered by u, then by distance, then by point; a grid point has only itself."""
    dims = grid.shape[1]
    power = base ** np.arange(dims)
    every = np.arange(base**dims)[:, None] // power % base
    # Squared distances by the cosine rule: float32 holds these small integers exactly and multiplies fast.
    a, b = every.astype(np.float32), grid.astype(np.float32)
    distance = ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T).astype(np.uint8)
    occurs = np.zeros((len(every), int(distance.max()) + 1), bool)
    np.put_along_axis(occurs, distance, True, axis=1)
    reach = np.argmax(np.cumsum(occurs, axis=1) >= np.minimum(shells, occurs.sum(1))[:, None], axis=1)
    reach[grid @ power] = 0
    u, point = np.nonzero(distance <= reach[:, None])
    order = np.lexsort((point, distance[u, point], u))
    return u[order], point[order]


@cache
def candidates(name: str) -> Candidates:
    """The search table of grid `name`, a key of SHELLS; computed once per process, in well under a second."""
    grid, base = codes(name), len(levels(name))
    dims = grid.shape[1]
    u, point = neighbours(grid, base, SHELLS[name])
    counts = np.bincount(u, minlength=base**dims)
    chunks = -(-counts // CHUNK)

    on_grid = grid @ base ** np.arange(dims)
    order = np.concatenate([on_grid, np.setdiff1d(np.arange(len(counts)), on_grid)])
    starts = np.empty(len(counts), np.int64)
    starts[order] = np.cumsum(chunks[order]) - chunks[order]

    slots = CHUNK * chunks[order]
    within = np.arange(slots.sum()) - np.repeat(np.cumsum(slots) - slots, slots)
    first = np.cumsum(counts) - counts
    index = point[np.repeat(first[order], slots) + np.minimum(within, np.repeat(counts[order], slots) - 1)]

    packed = nibbles(base * (np.arange(dims) % (CHUNK // base)) + grid)
    return Candidates(
        starts.astype(np.int32),
        (starts + chunks).astype(np.int32),
        counts.astype(np.int32),
        packed[index],
        nibbles(2 * grid + 1)[index],
        (8 * (base * np.arange(dims) + grid)).astype(np.uint8)[index].reshape(-1),
        index.astype(np.int32),
    )
