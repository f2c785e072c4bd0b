"""The one family of exceptions. Each class is one exit code of the command line.

    Failure                    1    something failed while working
    ├── Usage                  2    options that contradict each other, an unknown name, a path that does not exist
    ├── Unsupported            3    a valid input that this version cannot convert
    ├── Malformed              4    an input that is damaged, inconsistent or unsafe
    ├── NoSpace                5    the output does not fit on the disk
    └── OutputConflict         6    an output is locked, exists, or is one of the inputs

An interrupted run ends with 130 (SIGINT) or 143 (SIGTERM) and has no class here.
"""

from collections.abc import Iterable
from typing import ClassVar


class Failure(Exception):
    """What was found, where, and what to do next.

    what:   one sentence with the value found and the limit it broke.
    where:  file, tensor or key.
    fix:    the next step, as a sentence or a command.
    also:   further problems found in the same pass, reported together.
    """

    code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None, also: Iterable[str] = ()) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        self.also = tuple(also)
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head, *(f"  - {line}" for line in self.also)]
        return "\n".join([*lines, self.fix] if self.fix else lines)


class Usage(Failure):
    """Exit code 2: options that contradict each other, a name that is not known, a path that does not exist."""

    code = 2


class Unsupported(Failure):
    """Exit code 3: a valid input that this version cannot convert."""

    code = 3


class Malformed(Failure):
    """Exit code 4: an input that is damaged, inconsistent or unsafe."""

    code = 4


class NoSpace(Failure):
    """Exit code 5: the output does not fit on the disk."""

    code = 5


class OutputConflict(Failure):
    """Exit code 6: an output is locked, exists already, or is one of the inputs."""

    code = 6
