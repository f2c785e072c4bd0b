"""What a run has written so far, kept behind the data in its temporary file, so that a later run can go on from there.

It begins where the finished file will end, and cutting it off finishes the file:

    8 bytes   MAGIC
    32 bytes  fingerprint of everything that decides the bytes; a run with another one has no use for them
    records   offset, size (uint64), checksum of the data, CRC-32 of the record so far (uint32), little-endian

Records are written after their data, many at once, without waiting for the disk: data that a power loss kept from it do
not have their checksum, and are made again, as are those whose records a killed run still held back. A journal that
cannot be written costs no more than the chance to go on from there.
"""

import struct
import threading
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.positional import read_at, write_at

MAGIC = b"GGUFSJ01"
HEAD = struct.Struct("<8s32s")
RECORD = struct.Struct("<QQI")
SUM = struct.Struct("<I")
STEP = RECORD.size + SUM.size
BLOCK = 4096 * STEP  # bytes of records read at a time
TOGETHER = 1 << 24  # bytes of data whose records are written at once: each write takes the file's lock from the data's

Pieces = NDArray[np.int64]  # (n, 3): offset, size, checksum of bytes that were written


class Journal:
    """The pieces written to one file. 24 bytes of memory for each."""

    def __init__(self, fd: int, start: int, fingerprint: bytes) -> None:
        self._fd = fd
        self._end = start + HEAD.size
        self._lock = threading.Lock()
        self._pieces = array("q")
        self._waiting = bytearray()
        self._since = 0
        self._write(HEAD.pack(MAGIC, fingerprint), start)

    def add(self, offset: int, size: int, checksum: int) -> None:
        """Record a write that has been done. Safe from many threads."""
        record = RECORD.pack(offset, size, checksum)
        with self._lock:
            self._pieces.extend((offset, size, checksum))
            self._waiting += record + SUM.pack(zlib.crc32(record))
            self._since += size
            due = self._since >= TOGETHER
        if due:
            self.write_out()

    def write_out(self) -> None:
        """Write the records that were held back."""
        with self._lock:
            data, at = bytes(self._waiting), self._end
            self._end += len(data)
            self._waiting.clear()
            self._since = 0
        self._write(data, at)

    def _write(self, data: bytes, at: int) -> None:
        with suppress(OSError):
            write_at(self._fd, memoryview(data), at)

    def pieces(self) -> Pieces:
        """What was written, by place. To be called when nobody writes any more."""
        with self._lock:
            found = np.frombuffer(self._pieces, np.int64).reshape(-1, 3)
            return found[np.argsort(found[:, 0], kind="stable")]


def recorded(fd: int, start: int, fingerprint: bytes) -> Pieces | None:
    """The pieces of bytes before `start` that a journal lists, by place, the last one of each. None if there is no
    journal, or one of another fingerprint.
    """
    head = memoryview(bytearray(HEAD.size))
    if read_at(fd, head, start) < HEAD.size or HEAD.unpack(head) != (MAGIC, fingerprint):
        return None
    listed = array("q")
    for offset, size, checksum in _records(fd, start + HEAD.size):
        if offset + size <= start:
            listed.extend((offset, size, checksum))
    latest_first = np.frombuffer(listed, np.int64).reshape(-1, 3)[::-1]
    return latest_first[np.unique(latest_first[:, 0], return_index=True)[1]]


def _records(fd: int, at: int) -> Iterator[tuple[int, int, int]]:
    """Up to the first that is not whole. One that a killed run had not written yet is zeros, with others behind it."""
    buffer = memoryview(bytearray(BLOCK))
    while (count := read_at(fd, buffer, at) // STEP) > 0:
        for k in range(count):
            record = buffer[k * STEP : k * STEP + RECORD.size]
            if SUM.unpack_from(buffer, k * STEP + RECORD.size)[0] == zlib.crc32(record):
                yield RECORD.unpack(record)
        at += count * STEP
