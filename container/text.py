"""Text for people: what files say, made harmless for a terminal; sizes, counts and near names, by one rule each."""

import difflib
import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

# Unit and digits behind the point; a number has at most three before it, but for the last unit.
BYTES = (("B", 0), ("kB", 1), ("MB", 1), ("GB", 2), ("TB", 2))
COUNTS = (("", 0), ("thousand", 1), ("million", 1), ("billion", 2))


def size(nbytes: float) -> str:
    """Bytes in decimal units, as disks and model pages count them: 93.5 MB, 4.30 GB."""
    return _scaled(nbytes, BYTES)


def count(number: float) -> str:
    """A number of weights in words: 135.0 million."""
    return _scaled(number, COUNTS)


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 tensor, 2 tensors. many: the plural, if it is not made with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of many, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def listed(names: Sequence[str]) -> str:
    """All of them, as a sentence has them: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def choice(names: Iterable[str]) -> str:
    """The sentence that says what can be chosen, which is sometimes only one."""
    known = list(names)
    return f"Choose one of {', '.join(known)}." if len(known) > 1 else f"Choose {''.join(known)}, the only one here."


def nearest(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names most like `name`, best first, whatever their case. cutoff: how like, from 0 to 1 (difflib)."""
    by_key: dict[str, str] = {}
    for each in known:
        by_key.setdefault(each.casefold(), each)  # of names that differ in case only, the first
    return [by_key[key] for key in difflib.get_close_matches(name.casefold(), by_key, n=most, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """`Did you mean X or Y?` for the names that `nearest` finds; empty if it finds none."""
    near = nearest(name, known, most=most, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def told_apart(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and before it as many of its folders as equal ones need to differ; / between them."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]

    def tail(own: tuple[str, ...], length: int) -> str:
        return Path(*own[-length:]).as_posix()

    def told(own: tuple[str, ...]) -> str:
        others = [each for each in parts if each != own and each[-1:] == own[-1:]]
        alone = (n for n in range(1, len(own)) if all(tail(each, n) != tail(own, n) for each in others))
        return tail(own, next(alone, len(own)))

    return [told(own) for own in parts]


def _scaled(number: float, units: Sequence[tuple[str, int]]) -> str:
    *smaller, (largest, digits) = units
    for unit, places in smaller:
        text = f"{number:.{places}f}"
        if float(text) < 1000:
            return f"{text} {unit}".rstrip()
        number /= 1000
    return f"{number:.{digits}f} {largest}"


def printable(text: str, keep: str = "") -> str:
    """Every character that could move a cursor, change a colour or fake a line, as an escape; those of `keep` stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def shell_command(*words: object) -> str:
    """A command line that can be copied into this system's shell, whatever is in its words."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
