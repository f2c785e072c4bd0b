"""Blocks to lanes and back, and the small pieces that all block formats share.

In lanes, element i of the blocks of a group is the vector at i * W: lane l of it belongs to block l.
"""

from typing import Any

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize.simd import TILE, W, half_to_f32, jitable, load, store, to_u8, to_u16, transpose


def offsets(name: str) -> tuple[int, ...]:
    """Where the fields of a block of this format begin, in the order of the record, and the size of the block."""
    dtype = BY_NAME[name].dtype
    return (*(int(offset) for _, offset in (field[:2] for field in (dtype.fields or {}).values())), dtype.itemsize)


@jitable
def part_to_lanes(blocks: Any, at: int, stride: int, n: int, lanes: Any, to: int) -> None:
    """W runs of n elements, `stride` apart from `at` on, into lanes[to : to + n * W]; n >= TILE."""
    for lane in range(0, W, TILE):
        for start in range(0, n, TILE):
            i = min(start, n - TILE)
            transpose(blocks, at + lane * stride + i, stride, lanes, to + i * W + lane, W)


@jitable
def to_lanes(blocks: Any, at: int, n: int, lanes: Any, to: int) -> None:
    """W blocks of n elements, one after the other from `at` on, into lanes[to : to + n * W]; n >= TILE."""
    part_to_lanes(blocks, at, n, n, lanes, to)


@jitable
def from_lanes(lanes: Any, n: int, blocks: Any, at: int) -> None:
    """The inverse of `to_lanes`."""
    for lane in range(0, W, TILE):
        for start in range(0, n, TILE):
            i = min(start, n - TILE)
            transpose(lanes, i * W + lane, W, blocks, at + lane * n + i, n)


@jitable
def store_half(block: Any, byte: int, h: Any) -> None:
    """float16 bits in u16 as two bytes of the blocks in lanes."""
    store(block, byte * W, to_u8(h))
    store(block, (byte + 1) * W, to_u8(h >> 8))


@jitable
def load_half(block: Any, byte: int) -> Any:
    """Two bytes of the blocks in lanes, as the f32 that their float16 stands for."""
    return half_to_f32(to_u16(load(block, byte * W)) | (to_u16(load(block, (byte + 1) * W)) << 8))


@jitable
def load_halves(blocks: Any, at: int, stride: int, room: Any, halves: Any) -> None:
    """W float16, `stride` bytes apart from `at` on, as f32 into halves[0 : W]. room: u16, W elements."""
    for lane in range(W):
        byte = at + lane * stride
        room[lane] = int(blocks[byte]) | int(blocks[byte + 1]) << 8
    store(halves, 0, half_to_f32(load(room, 0)))
