"""Integers of a few bits in 32-bit words, and their way to float32: what GPTQ, AWQ and compressed-tensors share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Codes = NDArray[np.uint8]


def unpack(words: Array, bits: int, count: int) -> Codes:
    """The first `count` codes of every row of 32-bit words: (n, count).

    A row is one little-endian stream of bits, without gaps: code k is bits k * bits .. (k + 1) * bits. That is also how
    three-bit codes lie in GPTQ, 32 of them in three words.
    """
    stream = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return stream[:, :count]
    if bits == 4:
        from ggufsmith.quantize.kernels.codes import nibbles

        halves = np.empty((len(stream), 2 * stream.shape[1]), np.uint8)
        nibbles(stream.reshape(-1), halves.reshape(-1))
        return halves[:, :count]
    if 8 % bits == 0:
        each = 8 // bits
        codes = np.empty((len(stream), stream.shape[1], each), np.uint8)
        for k in range(each):
            np.right_shift(stream, k * bits, out=codes[:, :, k])
        codes &= np.uint8((1 << bits) - 1)
        return codes.reshape(len(stream), -1)[:, :count]
    first = np.arange(count) * bits
    last = np.minimum(first // 8 + 1, stream.shape[1] - 1)  # a code never reaches past the last byte
    wide = stream[:, first // 8].astype(np.uint16) | stream[:, last].astype(np.uint16) << np.uint16(8)
    shifted: Codes = (wide >> (first % 8).astype(np.uint16) & np.uint16((1 << bits) - 1)).astype(np.uint8)
    return shifted


def words_for(count: int, bits: int) -> int:
    """32-bit words that hold `count` codes."""
    return -(-count * bits // 32)


def scale_codes(
    codes: Codes,
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32] | np.float32,
    groups: int | NDArray[Any],
    out: NDArray[np.float32],
) -> None:
    """out = (code - zero) * scale in float32, group by group.

    codes: (n, width). scales, zeros: (n, groups); zeros may be one number. groups: columns of a group in turn (the last
    may be shorter), or the group of every column. out: (n, width), C-contiguous.
    """
    from ggufsmith.quantize.kernels.codes import scale_columns, scale_groups

    sizes = (codes.shape[1], scales.shape[1])
    flat = np.ascontiguousarray(codes).reshape(-1)
    wide, offset = (np.ascontiguousarray(np.broadcast_to(part, scales.shape)).reshape(-1) for part in (scales, zeros))
    if isinstance(groups, int):
        scale_groups(flat, wide, offset, *sizes, groups, out.reshape(-1))
    else:
        scale_columns(flat, wide, offset, *sizes, groups.astype(np.int32), out.reshape(-1))
