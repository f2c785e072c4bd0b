"""Numbers out of blocks and back: every bit has its place, and what they stand for is what ggml reads."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import fields, lattice_fields, reference, rows

NAMES = (*fields.LAYOUTS, *lattice_fields.LAYOUTS)


def encoded(name: str, n: int = 40) -> NDArray[np.uint8]:
    """ggml's bytes of rows of two blocks, of several magnitudes."""
    form = format_of(name)
    x = np.random.default_rng(len(name)).standard_t(3, (n, 2 * form.weights)).astype(np.float32)
    x *= np.float32(10.0) ** np.arange(-4, 4, dtype=np.float32).repeat(n // 8)[:, None]
    x[0] = 0
    out = np.empty((n, 2 * form.size), np.uint8)
    rows.encode(form, x, out, importance=np.square(x).mean(0))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    data, layout = encoded(name), fields.layout_of(name)
    assert np.array_equal(fields.pack(layout, fields.unpack(layout, data)), data)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_of_any_bits(name: str) -> None:
    """Scales that are NaN aside: which NaN it was is not kept."""
    form, layout = format_of(name), fields.layout_of(name)
    data = np.random.default_rng(1).integers(0, 256, (50, 3 * form.size), np.uint8)
    blocks = data.reshape(-1, form.size)
    records = blocks.view(form.dtype)[:, 0]
    if layout.d:
        byte, bit = divmod(int(layout.d.bits[0, 14]), 8)
        blocks[:, byte] &= 255 - (1 << bit)
    for field in filter(None, (None if layout.d else "d", layout.dmin)):
        records[field] &= 0xBFFF
    assert np.array_equal(fields.pack(layout, fields.unpack(layout, data)), data)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_that_are_decoded(name: str) -> None:
    data, form, layout = encoded(name), format_of(name), fields.layout_of(name)
    values = fields.values(layout, fields.unpack(layout, data))
    decoded = np.empty_like(values)
    rows.decode(form, data, decoded)
    assert np.array_equal(values, decoded)
    assert np.array_equal(values, reference.dequantize(form, data))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_ggml_are_in_reach(name: str) -> None:
    layout = fields.layout_of(name)
    found = fields.unpack(layout, encoded(name))
    signed = layout.levels if name in fields.LAYOUTS else np.concatenate([layout.levels, -layout.levels])
    assert np.isin(found.levels, signed).all()
    assert len(np.unique(found.levels)) == len(signed) or name == "Q8_0"
