"""Text for people: one rule for sizes and counts, and nothing that steers a terminal."""

import re
from pathlib import Path

import pytest

from ggufsmith.container.text import choice, count, counted, printable, size

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (93_500_000, "93.5 MB"),
        (110_000_000, "110.0 MB"),
        (999_999_999, "1.00 GB"),
        (4_300_000_000, "4.30 GB"),
        (1_342_000_000_000, "1.34 TB"),
        (5 * 10**15, "5000.00 TB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12.4, "12"), (999.6, "1.0 thousand"), (135e6, "135.0 million"), (999.96e6, "1.00 billion")],
)
def test_counts(number: float, text: str) -> None:
    assert count(number) == text


def test_nouns() -> None:
    assert [counted(number, "tensor") for number in (0, 1, 2)] == ["0 tensors", "1 tensor", "2 tensors"]
    assert [counted(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]


def test_no_other_rule_for_sizes() -> None:
    """A unit of bytes in a format string stands in container/text.py only."""
    for path in ROOT.glob("[a-z]*/**/*.py"):
        if path.relative_to(ROOT).parts[0] in ("tests", "build", "docs"):
            continue
        found = re.search(r"\} ?(kB|MB|GB|TB|KiB|MiB|GiB)\b", path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found and found[0]}"


def test_printable() -> None:
    assert printable("a\x1b[2J\n龙") == r"a\x1b[2J\n龙"
    assert printable("a\n\t", keep="\n") == "a\n\\t"


def test_a_choice_of_one() -> None:
    assert choice(["cpu"]) == "Choose cpu, the only one here."
    assert choice(["cuda", "cpu"]) == "Choose one of cuda, cpu."
