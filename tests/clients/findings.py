"""What a check of a client finds."""

from dataclasses import dataclass
from typing import Any

OK, FAILED, MISSING = "ok", "FAILED", "not checked"


class NotInstalledError(Exception):
    """A client is missing; the message says which, and what would bring it."""


@dataclass(frozen=True)
class Finding:
    """One comparison. what: what was compared, or what is wrong, or why it could not be compared."""

    verdict: str
    what: str


def judged(what: str, wrong: str | None) -> Finding:
    """wrong: what is wrong, if anything is."""
    return Finding(OK, what) if wrong is None else Finding(FAILED, f"{what}: {wrong}")


def same(what: str, expected: Any, found: Any) -> Finding:
    """Whether two answers are equal. Lists of ids are too long to print: the first that differs is."""
    if not isinstance(expected, list) or not isinstance(expected[0], list):
        return judged(f"{what}: {expected!r:.100}", None if found == expected else f"not {found!r:.100}")
    differing = [f"{theirs} instead of {ids}" for ids, theirs in zip(expected, found, strict=True) if ids != theirs]
    wrong = f"{len(differing)} of {len(expected)} differ, first {differing[0]}" if differing else None
    return judged(f"{what}: {sum(map(len, expected))} ids", wrong)
