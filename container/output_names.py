"""Names that a system does not take for an ordinary file.

Windows: "Naming Files, Paths, and Namespaces" in its documentation. A name with a colon would write a stream inside
another file, and CON.gguf the console, without an error.
"""

import os
import re
from pathlib import Path

from ggufsmith.container import disk
from ggufsmith.container.errors import Usage

DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³])(?:[ .:].*)?", re.IGNORECASE | re.DOTALL)
NOT_IN_NAMES = re.compile(r'[<>:"|?*\x00-\x1f]')
LONGEST = 255  # bytes of a name, or units of UTF-16, where the system does not say it
ADDED = len("..0123456789ab.partial")  # what a run calls a file until it is finished
LONGEST_PATH = 259  # characters on Windows, unless long paths are enabled there


def check_name(path: Path, fix: str = "Choose another name for the output.") -> None:
    """Usage, before the work, if an output cannot have this name."""
    problem = _problem(path)
    if problem is not None:
        raise Usage(problem, where=path, fix=fix)


def _problem(path: Path) -> str | None:
    name = path.name
    if str(path) == "-":
        return "standard output, for which - often stands, cannot take this"
    if disk.WINDOWS:
        if DEVICE.fullmatch(name):
            return "Windows keeps this name for a device"
        if found := NOT_IN_NAMES.search(name):
            return f"{found[0]!r} cannot be part of a name on Windows"
        if name != name.rstrip(" ."):
            return "a name cannot end in a point or a space on Windows"
        if len(os.path.abspath(path)) + ADDED > LONGEST_PATH and not path.parent.is_dir():
            return f"the path is longer than the {LONGEST_PATH} characters that Windows takes"
        length = len(name.encode("utf-16-le", "surrogatepass")) // 2
    else:
        length = len(os.fsencode(name))
    room = _longest(path.absolute().parent) - ADDED
    return f"the name is longer than {room} bytes, the most that this file system takes" if length > room else None


def _longest(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows; a folder that is not there
        return LONGEST
