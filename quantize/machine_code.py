"""Files of machine code, one for each kernel and level: a header that tells whether a file fits, and an object file.

They lie in the installed package, if it was built with them, and in the user's cache folder. A change in the sources of
kernels makes them stale. What is missing, damaged or stale is compiled again; only of the package's own files that is
worth a remark.
"""

import hashlib
import os
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

from ggufsmith.container.disk import rename
from ggufsmith.container.release import own_version
from ggufsmith.quantize import cpu

MAGIC = b"ggufsmith kernel, 1\n"
DIGEST = 32  # bytes of a SHA-256
PACKAGED = Path(__file__).parent / "machine-code"
REMARKS: dict[str, str] = {}  # what there is to say of the files, by subject; "" once it was said


class Unusable(Exception):
    """A file that cannot be used; the text completes "the file …"."""


def user_cache() -> Path:
    """The folder that the system gives programs for caches, for this user."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@cache
def folder() -> Path | None:
    """Where this version's kernels for this level are kept; None if it cannot be written."""
    level = cpu.level()
    name = level.name
    if name == cpu.NATIVE:
        name = f"{level.cpu}-{hashlib.sha256(level.features.encode()).hexdigest()[:12]}"
    try:
        path = user_cache() / "ggufsmith" / own_version() / "kernels" / name
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    return path


def packaged() -> Path:
    """Where this level's kernels lie in a package that was built with them."""
    return PACKAGED / cpu.level().name


def origin() -> str:
    """Where machine code comes from, in words."""
    if packaged().is_dir():
        return f"from {packaged()}"
    place = folder()
    return f"compiled when it is first used, kept in {place}" if place else "compiled in every run"


def source_stamp() -> str:
    """A digest of the sources that kernels are made of."""
    here = Path(__file__).parent
    made_of = ("kernels", "compiler", "grids.py", "signatures.py", "simd.py", "../container/formats.py")
    digest = hashlib.sha256()
    for path in (file for name in made_of for file in sorted((here / name).rglob("*.py")) or [here / name]):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


# Taken while the sources are being imported, so that a process never stores its code as that of a later edit.
STAMP = source_stamp()


@cache
def stamp_of(file: str) -> str:
    """The digest of all that decides the code of kernels in this file."""
    own = Path(file).read_bytes().replace(b"\r\n", b"\n") if Path(file).is_file() else b""
    return hashlib.sha256(STAMP.encode() + own).hexdigest()


def key_of(name: str, file: str) -> bytes:
    """What decides the machine code of a kernel: its sources, in this file and elsewhere, the level, and the system."""
    level = cpu.level()
    decides = (name, stamp_of(file), sys.platform, level.name, level.arch, level.cpu, level.features, str(level.lanes))
    return hashlib.sha256("\0".join(decides).encode()).digest()


def read_code(path: Path, key: bytes) -> bytes:
    """The object file in a file. Unusable if there is none, or not for this key."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Unusable("is missing") from None
    except OSError:
        raise Unusable("cannot be read") from None
    magic, rest = data[: len(MAGIC)], data[len(MAGIC) :]
    found, digest, code = rest[:DIGEST], rest[DIGEST : 2 * DIGEST], rest[2 * DIGEST :]
    if magic == MAGIC and found != key and hashlib.sha256(code).digest() == digest:
        raise Unusable("is of another version")
    if magic != MAGIC or hashlib.sha256(code).digest() != digest:
        raise Unusable("is damaged")
    return code


def write_code(path: Path, key: bytes, code: bytes) -> None:
    """Put an object file into a file, which appears complete. OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        made.write_bytes(MAGIC + key + hashlib.sha256(code).digest() + code)
        rename(made, path)
    except OSError:
        with suppress(OSError):
            made.unlink()
        raise


def file_in(place: Path, name: str) -> Path:
    """The file of a kernel in a folder."""
    return place / f"{name}.o"


def find_code(name: str, key: bytes) -> bytes:
    """A kernel's object file, of the package or of the cache. Unusable if neither has it."""
    try:
        return read_code(file_in(packaged(), name), key)
    except Unusable as fault:
        if (place := folder()) is not None:
            with suppress(Unusable):
                return read_code(file_in(place, name), key)
        _remark_package(name, fault)
        raise


def _remark_package(name: str, fault: Unusable) -> None:
    """Say why code of the package is not used, if it was built with any."""
    if packaged().is_dir():
        again = "installing ggufsmith again mends it"
        remark("package", f"the machine code in {file_in(packaged(), name)} {fault}, so that it is compiled; {again}")
    elif PACKAGED.is_dir():
        level = cpu.level().name
        remark("package", f"this installation has no machine code for {level}, so that kernels are compiled")


def remark(subject: str, text: str) -> None:
    """Add to what there is to say, once for each subject in a process."""
    REMARKS.setdefault(subject, text)


def new_remarks() -> list[str]:
    """What there is to say that this has not yet returned."""
    found = [text for text in REMARKS.values() if text]
    REMARKS.update(dict.fromkeys(REMARKS, ""))
    return found
