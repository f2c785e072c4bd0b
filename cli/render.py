"""What a person, a log or a machine sees: progress, summaries, errors. The only module that knows rich.

Names and texts may come from a hostile file: what is printed here cannot steer a terminal.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from textwrap import wrap
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ggufsmith.cli.progress import shown_progress
from ggufsmith.container.errors import Failure
from ggufsmith.container.text import count as count
from ggufsmith.container.text import printable
from ggufsmith.container.text import size as size
from ggufsmith.progress import Display, Progress, Unit

SPECIAL = re.compile(r"[^\n -~]")  # what may need an escape in JSON beyond those that it asks for
COMMAND = re.compile(r"(^|: )(gguf-convert|gguf-quant|ggufsmith|pip|mkdir) ")  # to be copied in one piece
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


RATES: Mapping[Unit, Callable[[float], str]] = {
    "weights": weights_per_second,
    "bytes": lambda number: f"{size(number)}/s",
    "windows": lambda number: f"{count(number)} windows/s",
}


class Shown(Display):
    """Shows on standard error what a run does."""

    def progress(
        self, title: str | Sequence[str], total: int | None, unit: Unit = "weights"
    ) -> AbstractContextManager[Progress]:
        """See Display."""
        return progress(title, total, False, RATES[unit])

    def note(self, text: str) -> None:
        """See Display."""
        paragraph(f"note: {text}", err, indent=6)

    def compiled(self, seconds: float) -> None:
        """Say why a first run took longer."""
        kernels(seconds)


def display(quiet: bool) -> Display:
    """Shows what a run does, unless that is not wanted."""
    return Display() if quiet else Shown()


def kernels(seconds: float) -> None:
    """Say why a first run took longer."""
    from ggufsmith.quantize.machine_code import folder, new_remarks

    for remark in new_remarks():
        paragraph(f"note: {remark}", err, indent=6)
    if seconds > 1 and folder():
        line(f"compiled the kernels in {seconds:.1f} s; later runs load them from the cache", err)


def line(text: str, console: Console | None = None) -> None:
    """One line, on standard output or another console."""
    (console or out).print(printable(text), markup=False)


def paragraph(text: str, console: Console | None = None, indent: int = 0, style: str = "") -> None:
    """A sentence: in a terminal in as many lines as it takes, broken between words, all but the first indented.

    style: of its first word.
    """
    console, text = console or out, printable(text)
    if console.is_terminal:
        rest, room = " " * indent, max(console.width, indent + 20)
        text = "\n".join(
            wrap(text, room, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False) or [""]
        )
    first, space, others = text.partition(" ")
    console.print(Text.assemble((first, style), space, others))


def blank() -> None:
    """An empty line."""
    out.print()


def lines(rows: Iterable[tuple[str, str]]) -> None:
    """A summary: labels and values, under one another."""
    pairs = list(rows)
    width = max((len(label) for label, _ in pairs), default=0)
    for label, value in pairs:
        paragraph(f"{label:<{width}}  {value}", indent=width + 2)


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = (), title: str = "") -> None:
    """Cells under one another: in a terminal as a table of its width, elsewhere each row in one line.

    heads: of the columns; one that ends in a blank marks a column of numbers, and a line end in one is for terminals.
           Columns and tables without content are left out.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    if not shown:
        return
    heads = heads or [""] * len(shown[0])
    filled = [k for k in range(len(heads)) if any(row[k] for row in shown)]
    shown, heads = [[row[k] for k in filled] for row in shown], [heads[k] for k in filled]
    (_table if out.is_terminal else _columns)(shown, heads, title)


def _table(rows: list[list[str]], heads: Sequence[str], title: str) -> None:
    headed = any(heads)
    table = Table(
        title=title or None,
        title_justify="left",
        box=SIMPLE_HEAD if headed else None,
        show_header=headed,
        pad_edge=False,
        padding=(0, 1) if headed else (0, 2, 0, 0),
    )
    for index, head in enumerate(heads):
        number = head.endswith(" ")
        table.add_column(
            Text(head.strip()),
            justify="right" if number else "left",
            style="bold" if index == 0 else None,
            overflow="fold",
            no_wrap=number,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table, soft_wrap=False)


def _columns(rows: list[list[str]], heads: Sequence[str], title: str) -> None:
    shown = [[" ".join(head.split()) for head in heads], *rows] if any(heads) else rows
    widths = [max(cell_len(row[k]) for row in shown) for k in range(len(heads))]
    lines = ["", title] if title else []
    for row in shown:
        cells = []
        for cell, width, head in zip(row, widths, heads, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if head.endswith(" ") else cell + space)
        lines.append("  ".join(cells).rstrip())
    out.print("\n".join(lines), markup=False)


def as_json(report: Mapping[str, Any]) -> None:
    """One JSON object on standard output, UTF-8 whatever the platform's default; nothing if that was closed.

    JSON has no NaN and no infinity: they become null.
    """
    text = json.dumps(_finite(report), ensure_ascii=False, indent=2, allow_nan=False)
    _utf8(SPECIAL.sub(_escaped, text + "\n"))


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


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    paragraph(f"error: {error.where}: {error.what}" if error.where else f"error: {error.what}", err, style="bold red")
    for each in error.also:
        paragraph(f"  - {each}", err, indent=4)
    for each in (*([error.fix] if error.fix else []), *notes):
        (line if COMMAND.search(each) else paragraph)(each, err)
