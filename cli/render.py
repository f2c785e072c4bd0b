"""What a person, a log or a machine sees: progress, summaries, errors. The only module that knows rich.

Names and texts may come from a hostile file: what is printed here cannot steer a terminal.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from rich.console import Console

from ggufsmith.cli.progress import Progress, shown_progress
from ggufsmith.container.errors import Failure
from ggufsmith.container.text import count as count
from ggufsmith.container.text import printable
from ggufsmith.container.text import size as size

SPECIAL = re.compile(r"[^\n -~]")  # what may need an escape in JSON beyond those that it asks for
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
out = Console(highlight=False, soft_wrap=True, emoji=False)  # a path with :x: in it is no picture


def weights_per_second(number: float) -> str:
    """A speed in words."""
    return f"{count(number)} weights/s"


def progress(
    title: str | Sequence[str],
    total: int | None,
    quiet: bool,
    rate: Callable[[float], str] = weights_per_second,
) -> AbstractContextManager[Progress]:
    """Shows on standard error how far the work is: a bar in a terminal, a line every ten seconds in a log.

    title: of the work, or the names of the files that it makes, which are then listed once.
    total: weights or bytes; None if it is not known. rate: how to show so many of them in a second.
    """
    return nullcontext(Progress()) if quiet or total == 0 else shown_progress(err, title, total, rate)


def kernels(seconds: float) -> None:
    """Say why a first run took longer."""
    if seconds > 1:
        line(f"compiled kernels in {seconds:.1f} s; later runs find them on the disk", err)


def line(text: str, console: Console | None = None) -> None:
    """One line, on standard output or another console."""
    (console or out).print(printable(text), markup=False)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Cells under one another; the last one is as long as it is."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)] if rows else []
    for *cells, last in rows:
        padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
        out.print("  ".join([*padded, last]), markup=False)


def lines(rows: Iterator[tuple[str, str]]) -> None:
    """A summary: label and value, aligned."""
    pairs = list(rows)
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        line(f"{label:<{width}}  {value}")


def as_json(report: Mapping[str, Any]) -> None:
    """One JSON object on standard output, UTF-8 whatever the platform's default; nothing if that was closed."""
    _utf8(SPECIAL.sub(_escaped, json.dumps(report, ensure_ascii=False, indent=2) + "\n"))


def document(text: str) -> None:
    """A file's content on standard output: for a terminal what it can show, otherwise UTF-8, as the file would be."""
    text = printable(text, keep="\n\t")
    if out.is_terminal:
        out.print(text, end="", markup=False)
    else:
        _utf8(text)


def _utf8(text: str) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else "".join(f"\\u{unit:04x}" for unit in _units(match[0]))


def _units(character: str) -> Iterator[int]:
    """UTF-16, as JSON escapes it."""
    raw = character.encode("utf-16-be", "surrogatepass")
    return (int.from_bytes(raw[k : k + 2]) for k in range(0, len(raw), 2))


def failure(error: Failure, machine: bool) -> None:
    """The message of an error, for people on standard error, for machines as JSON on standard output.

    People are told also what standard output cannot take.
    """
    notes = getattr(error, "__notes__", [])
    if machine:
        body = {"code": error.code, "what": error.what, "where": error.where, "fix": error.fix, "also": error.also}
        with suppress(OSError):
            as_json({"error": {**body, "notes": notes}})
            return
    where, fix = error.where and printable(error.where), error.fix and printable(error.fix)
    err.print("error: ", style="bold red", end="")
    err.print(str(Failure(printable(error.what), where=where, fix=fix, also=map(printable, error.also))), markup=False)
    for note in notes:
        line(note, err)
