"""Look-ups in a table of 32 numbers, one for each lane, and the decoding of four-bit codes by it."""

from typing import Any

from ggufsmith.quantize.kernels.blocks import get, put
from ggufsmith.quantize.simd import gather, jitable, to_i32

ENTRIES = 32


def entry(table: Any, index: Any) -> Any:
    """table[index & 31] for each lane; table: 32 float32."""
    return gather(table, index & (ENTRIES - 1))


@jitable
def decode_nibbles(block: Any, byte: int, n: int, table: Any, scale: Any, s: Any, to: int) -> None:
    """The n / 2 bytes of each block from `byte` on -> numbers `to` to `to + n - 1` of s: the table's entries times
    `scale`, low halves first.
    """
    for i in range(n // 2):
        codes = to_i32(get(block, byte + i))
        put(s, to + i, entry(table, codes & 15) * scale)
        put(s, to + i + n // 2, entry(table, codes >> 4) * scale)
