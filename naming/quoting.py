"""Names of files and texts of headers, as they stand in Markdown and in commands, where they cannot end their place.

CommonMark 0.31 (code spans), GitHub Flavored Markdown (tables), POSIX.1-2024, Shell Command Language (quoting).
"""

import re

from ggufsmith.container.text import printable


def inline(text: str) -> str:
    """Text in a paragraph: one line, its Markdown and HTML switched off."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def code(text: str, *, cell: bool = False) -> str:
    """A code span, which shows the text as terminals do: line ends and what steers them as escapes.

    cell: it stands in a table, where a bar ends a column even within a span.
    """
    text = printable(text)
    text = text.replace("|", r"\|") if cell else text
    ticks = "`" * _longest(text, least=1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """A code block, its fence longer than any in the text."""
    fence = "`" * _longest(text, least=3)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def _longest(text: str, least: int) -> int:
    """How many backticks are more than the text has in a row."""
    return max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def word(text: str) -> str:
    """One word for a shell, on one line."""
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "'\\''") + "'"
    return f"$'{''.join(map(_dollar, text))}'"


def file_word(name: str) -> str:
    """The name of a file as one word that no program takes for an option."""
    return word(f"./{name}" if name.startswith("-") else name)


def _dollar(character: str) -> str:
    number = ord(character)
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8, as Python has it in names
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
