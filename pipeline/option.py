"""What an option is, wherever it is set: a field of a frozen record, with what users are told of it."""

from __future__ import annotations  # so that fields keep their types as they are written here

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Input = Literal["model", "adapter", "file"]
INPUTS: Mapping[Input, str] = {"model": "a model folder", "adapter": "an adapter", "file": "a GGUF file"}
CHECKPOINT: tuple[Input, ...] = ("model", "adapter")
WEIGHTS: tuple[Input, ...] = ("model", "file")
MODEL = "model"  # what may stand in braces in some keys of job files
GROUPS = ("Input", "Types", "Calibration", "Output", "Publishing", "Work")


@dataclass(frozen=True)
class Option:
    """What a user is told of one field of a record, and where the field can be set.

    about:   one or two sentences, for help and documents.
    group:   the heading under which `--help` shows it.
    flag:    the option's name, if it is not the field's. A flag that begins with --no- sets a field to False.
    short:   its short form.
    metavar: what its value is called.
    inputs:  the kinds of source for which it has a meaning.
    decides: whether its value has a part in the bytes of outputs, or in their names within a set. Files that a value
             names are known by their content instead, and recipes by their rules.
    key:     the name of its key in job files, if it is not the field's.
    keyless: why job files have no such key.
    keyed:   what the documents say of its key, where `about` does not fit.
    numbers: the key takes numbers, although the option takes text.
    fields:  what may stand in braces in the value of its key.
    """

    about: str
    group: str = ""
    flag: str = ""
    short: str = ""
    metavar: str | None = None
    inputs: tuple[Input, ...] = tuple(INPUTS)
    decides: bool = False
    key: str = ""
    keyless: str = ""
    keyed: str = ""
    numbers: bool = False
    fields: tuple[str, ...] = ()


def option(default: Any, about: str, group: str = "", **more: Any) -> Any:
    """A field of a record, with its default and what users are told of it (see `Option`)."""
    return field(default=default, metadata={"option": Option(about, group, **more)})


@dataclass(frozen=True)
class Declared:
    """A field of a record as its class declares it. type: of its values, as text."""

    name: str
    type: str
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """The name of its option on the command line."""
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def key(self) -> str | None:
        """The name of its key in job files; None if it has none."""
        return None if self.option.keyless else self.option.key or self.name


def declared(record: type) -> Iterator[Declared]:
    """The fields of a record that users can set."""
    for each in fields(record):
        if "option" in each.metadata:
            yield Declared(each.name, str(each.type), each.default, each.metadata["option"])


def given(record: Any) -> list[str]:
    """The flags of what is set in a record, other than to its default."""
    return [each.flag for each in declared(type(record)) if getattr(record, each.name) != each.default]


def unfit(kinds: Collection[Input], *records: Any) -> list[str]:
    """The flags of what is set in these records and has no meaning for a source of any of these kinds."""
    return [
        each.flag
        for record in records
        for each in declared(type(record))
        if not set(kinds) & set(each.option.inputs) and getattr(record, each.name) != each.default
    ]
