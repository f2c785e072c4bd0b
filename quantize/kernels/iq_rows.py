"""Rows: vectors of 16 numbers that are not blocks but candidates of one block, entries of a table, or scales tried.

The vocabulary is that of simd.py, as far as the searches of iq_nearest.py need it. Like there, everything runs compiled
inside a kernel (compiler/rows.py) and, on NumPy arrays of 16, outside.
"""

from typing import Any

import numpy as np

from ggufsmith.quantize.grids import CHUNK


def row(array: Any, at: int) -> Any:
    """array[at : at + 16] of float32 or int32."""
    return array[at : at + CHUNK].copy()


def put_row(array: Any, at: int, x: Any) -> None:
    """array[at : at + 16] = x."""
    array[at : at + CHUNK] = x


def fill(x: Any) -> Any:
    """A float32, or an integer as int32, sixteen times."""
    return np.full(CHUNK, x, np.float32 if isinstance(x, float | np.floating) else np.int32)


def lanes_less(x: Any, y: Any) -> int:
    """Bit l is set where x < y in lane l."""
    return int(np.packbits(x < y, bitorder="little").view(np.uint16)[0])


def lanes_equal(x: Any, value: int) -> int:
    """Bit l is set where lane l of an int32 row has this value."""
    return int(np.packbits(x == value, bitorder="little").view(np.uint16)[0])


def choose_lanes(lanes: int, a: Any, b: Any) -> Any:
    """a in the lanes whose bits are set, else b."""
    return np.where(lanes >> np.arange(CHUNK) & 1, a, b).astype(a.dtype)


def lowest_bit(lanes: int) -> int:
    """The number of the lowest bit that is set; there is one."""
    return (lanes & -lanes).bit_length() - 1


def look_up(table: Any, index: Any) -> Any:
    """table[index & 15] for each lane of `index`."""
    return table[index & 15]


def pick(table: Any, packed: Any, i: int) -> Any:
    """The table's entry for nibble i of each lane."""
    return table[(packed >> (4 * i)) & 15]


def least(distance: Any, slot: int) -> int:
    """The smallest of 16 distances (never negative) and where it is first: its bits << 32 | slot + lane.

    Of two such keys the smaller is the better candidate, and of equally good ones the earlier.
    """
    pattern = distance.view(np.uint32) & 0x7FFFFFFF
    return (int(pattern.min()) << 32) | (slot + int(pattern.argmin()))
