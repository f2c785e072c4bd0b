"""Blocks in memory and in lanes, and where the fields of a block lie.

In lanes, W blocks lie side by side. What each of them has n of is an array of n * W elements, `room(n, dtype)`, and
`get(s, i)` is number i of every block: a vector whose lane l belongs to block l. All positions in such arrays count
vectors. Positions in memory count elements of a plain array; only what is called `at` beside an `array` or `blocks` is
one.
"""

from typing import Any

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize.simd import (
    TILE,
    W,
    f32_to_half,
    half_to_f32,
    jitable,
    load,
    scratch,
    select,
    store,
    to_u8,
    to_u16,
    transpose,
)

QK_K = BY_NAME["Q4_K"].weights  # of a super-block: 256, as ggml-common.h calls it


def offsets(name: str) -> tuple[int, ...]:
    """Where the fields of a block of this format begin, in the order of the record, and the size of the block."""
    dtype = BY_NAME[name].dtype
    return (*(int(offset) for _, offset in (field[:2] for field in (dtype.fields or {}).values())), dtype.itemsize)


# ---- arrays in lanes ----


@jitable
def room(n: int, dtype: Any) -> Any:
    """Uninitialised: n numbers of each block."""
    return scratch(n * W, dtype)


@jitable
def get(s: Any, i: int) -> Any:
    """Number i of each block."""
    return load(s, i * W)


@jitable
def put(s: Any, i: int, v: Any) -> None:
    """Make v number i of each block."""
    store(s, i * W, v)


@jitable
def cell(i: int, lane: int) -> int:
    """Where in an array in lanes number i of one block is."""
    return i * W + lane


# ---- between memory and lanes ----


@jitable
def part_to_lanes(array: Any, at: int, stride: int, n: int, s: Any, to: int) -> None:
    """W runs of n elements, `stride` apart from `at` on, become numbers `to` and following of the blocks; n >= TILE."""
    for lane in range(0, W, TILE):
        for start in range(0, n, TILE):
            i = min(start, n - TILE)
            transpose(array, at + lane * stride + i, stride, s, (to + i) * W + lane, W)


@jitable
def to_lanes(array: Any, at: int, n: int, s: Any) -> None:
    """W blocks of n elements, one after the other from `at` on; n >= TILE."""
    part_to_lanes(array, at, n, n, s, 0)


@jitable
def part_from_lanes(s: Any, first: int, n: int, array: Any, at: int) -> None:
    """Numbers `first` to `first + n - 1` of each block, those of a block together, from `at` on; n >= TILE."""
    for lane in range(0, W, TILE):
        for start in range(0, n, TILE):
            i = min(start, n - TILE)
            transpose(s, (first + i) * W + lane, W, array, at + lane * n + i, n)


@jitable
def from_lanes(s: Any, n: int, array: Any, at: int) -> None:
    """The inverse of `to_lanes`."""
    part_from_lanes(s, 0, n, array, at)


# ---- bytes and numbers of two bytes ----


@jitable
def put_u16(block: Any, byte: int, bits: Any) -> None:
    """The low 16 bits of integers as two bytes of the blocks in lanes, the lower byte first."""
    put(block, byte, to_u8(bits))
    put(block, byte + 1, to_u8(bits >> 8))


@jitable
def half_bits(d: Any) -> Any:
    """The float16 bits of f32. Every NaN is 0xFE00, what x86 makes of 0 / 0: its sign depends on the CPU."""
    return select(d != d, 0xFE00, f32_to_half(d))


@jitable
def put_half(block: Any, byte: int, d: Any) -> None:
    """f32 as a float16, in two bytes of the blocks in lanes."""
    put_u16(block, byte, half_bits(d))


@jitable
def get_half(block: Any, byte: int) -> Any:
    """Two bytes of the blocks in lanes, as the f32 that their float16 stands for."""
    return half_to_f32(to_u16(get(block, byte)) | (to_u16(get(block, byte + 1)) << 8))


@jitable
def byte_at(blocks: Any, at: int) -> int:
    """One byte of memory, as a number that does not overflow when it is shifted."""
    return int(blocks[at])


@jitable
def load_halves(blocks: Any, at: int, size: int, bits: Any, halves: Any) -> None:
    """The float16 at `at` and at the same place of the next W - 1 blocks of `size` bytes, as f32, one per lane.

    bits: room for one u16, halves: for one f32 of each block.
    """
    for lane in range(W):
        byte = at + lane * size
        bits[lane] = byte_at(blocks, byte) | byte_at(blocks, byte + 1) << 8
    put(halves, 0, half_to_f32(get(bits, 0)))
