"""Q4_0 to Q8_0, Q1_0, Q2_0: blocks worked out by hand from the layouts."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows

NAMES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q1_0", "Q2_0")
ONE, HALF, TWO = bytes([0, 0x3C]), bytes([0, 0x38]), bytes([0, 0x40])  # as float16


def encoded(name: str, x: NDArray[np.float32]) -> bytes:
    out = np.empty((1, format_of(name).nbytes(x.shape)), np.uint8)
    rows.encode(format_of(name), x[None, :].astype(np.float32), out)
    return out.tobytes()


def test_q8_0_by_hand() -> None:
    """127 is the largest magnitude: scale 1; halves round away from zero."""
    x = np.zeros(32)
    x[:5] = 127, -126.5, 0.5, -0.5, 0.49
    assert encoded("Q8_0", x) == ONE + np.array([127, -127, 1, -1, 0] + [0] * 27, np.int8).tobytes()


def test_q4_0_by_hand() -> None:
    """-8 has the largest magnitude: scale 1, codes x + 8; weight j and j + 16 share byte j."""
    x = np.zeros(32)
    x[0], x[1], x[16], x[31] = -8, 7, 3, -1
    nibbles = [0 | 11 << 4, 15 | 8 << 4, *[8 | 8 << 4] * 13, 8 | 7 << 4]
    assert encoded("Q4_0", x) == ONE + bytes(nibbles)


def test_q4_0_takes_the_first_of_equal_magnitudes() -> None:
    x = np.zeros(32)
    x[3], x[4] = 8, -8
    assert encoded("Q4_0", x)[:2] == bytes([0, 0xBC])  # scale -1, from +8
    assert encoded("Q4_0", -x)[:2] == ONE


def test_q4_1_by_hand() -> None:
    """From 2 to 9.5 in steps of 0.5: scale 0.5, minimum 2."""
    x = 2 + 0.5 * (np.arange(32) % 16)
    assert encoded("Q4_1", x) == HALF + TWO + bytes([j | j << 4 for j in range(16)])


def test_q5_0_by_hand() -> None:
    """-16 has the largest magnitude: scale 1, codes x + 16, whose fifth bits are bits 0 to 31 of a word."""
    x = np.arange(-16.0, 16)
    fifth = sum(1 << j for j in range(16, 32))
    assert encoded("Q5_0", x) == ONE + fifth.to_bytes(4, "little") + bytes([j | j << 4 for j in range(16)])


def test_q5_1_by_hand() -> None:
    x = 2 + 0.5 * np.arange(32)
    fifth = sum(1 << j for j in range(16, 32))
    assert encoded("Q5_1", x) == HALF + TWO + fifth.to_bytes(4, "little") + bytes([j | j << 4 for j in range(16)])


def test_q1_0_by_hand() -> None:
    """Signs, of which -0 is positive, and the mean magnitude."""
    x = np.where(np.arange(128) % 2, -1.5, 0.5)
    x[1] = -0.0
    x[3] = -3
    assert encoded("Q1_0", x) == ONE + bytes([0b01010111, *[0b01010101] * 15])


def test_q2_0_by_hand() -> None:
    x = np.tile([1.0, -1, 0.5, 0.4], 16)
    assert encoded("Q2_0", x) == ONE + bytes([2 | 0 << 2 | 2 << 4 | 1 << 6]) * 16


@pytest.mark.parametrize("name", NAMES)
def test_zeros(name: str) -> None:
    form = format_of(name)
    out, back = np.empty((1, form.size), np.uint8), np.ones((1, form.weights), np.float32)
    assert rows.encode(form, np.zeros((1, form.weights), np.float32), out) == rows.Report()
    rows.decode(form, out, back)
    assert not back.any()
