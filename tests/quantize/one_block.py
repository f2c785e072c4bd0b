"""One block, encoded and back, for formats worked out by hand."""

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows


def block(name: str, x: NDArray[np.float32]) -> np.void:
    """The block of these weights, as a record with the format's fields."""
    form = format_of(name)
    packed = np.empty((1, form.size), np.uint8)
    rows.encode(form, x.reshape(1, -1), packed)
    return packed.view(form.dtype)[0, 0]


def numbers(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the block of these weights is read back as."""
    back = np.empty((1, x.size), np.float32)
    rows.decode(format_of(name), np.frombuffer(block(name, x).tobytes(), np.uint8).reshape(1, -1), back)
    return back[0]
