"""Files that stand in for weights that are elsewhere. The disk holds only their headers."""

import sys
from pathlib import Path
from typing import BinaryIO

SET_SPARSE = 0x900C4  # FSCTL_SET_SPARSE of Windows, where files are not sparse by themselves


def stand_in(path: Path, header: bytes | bytearray, size: int) -> None:
    """Write a sparse file of `size` bytes that begins with the header."""
    with path.open("wb") as file:
        _make_sparse(file)
        file.write(header)
        file.truncate(size)


def _make_sparse(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import ctypes
        import msvcrt

        handle, ignored = msvcrt.get_osfhandle(file.fileno()), ctypes.c_ulong()
        ctypes.windll.kernel32.DeviceIoControl(
            ctypes.c_void_p(handle), SET_SPARSE, None, 0, None, 0, ctypes.byref(ignored), None
        )
