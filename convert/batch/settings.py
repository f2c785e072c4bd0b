"""What a job file says, table by table: values with their lines, environment variables put in, what extends what."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ggufsmith.container.documents import Document, Keys
from ggufsmith.container.errors import Failure
from ggufsmith.container.text import did_you_mean
from ggufsmith.convert.batch.schema import FITTING, SWITCHED_ON, JobKey, Kind, in_keys

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}", re.ASCII)
_FIELD = re.compile(r"\{([^{}]*)\}")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Said:
    """A value, and FILE:LINE where it stands."""

    value: Any
    place: str


@dataclass
class Tables:
    """Reads the tables of a job file; collects what is wrong, and goes on.

    environment: what ${NAME} and ${NAME:-default} stand for.
    """

    document: Document
    environment: Mapping[str, str]
    problems: list[str] = field(default_factory=list)

    def wrong(self, place: str, what: str, fix: str | None = None) -> None:
        """Note a problem at FILE:LINE, and what to do about it."""
        self.problems.append(f"{place}: {what}" + (f". {fix}" if fix else ""))

    def tried(self, place: str, make: Callable[[], Result]) -> Result | None:
        """What `make` gives; None for a Failure, which is noted."""
        try:
            return make()
        except Failure as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            self.wrong(place, in_keys(what), in_keys(error.fix) if error.fix else None)
            return None

    # ---- values ----

    def text(self, name: str, key: JobKey) -> Said | None:
        """A string that must be there, outside all tables."""
        if name not in self.document.data:
            self.wrong(self.document.place(), f"{name} is missing: {key.about}")
            return None
        return self.table((), {name: self.document.data[name]}, {name: key}).get(name)

    def table(self, at: Keys, table: Any, keys: Mapping[str, JobKey]) -> dict[str, Said]:
        """The values of a table that are right, their environment variables expanded."""
        found: dict[str, Said] = {}
        if not isinstance(table, dict):
            self.wrong(self.document.place(*at), f"{at[-1]} is a table, not {table!r}")
            return found
        for name, value in table.items():
            place = self.document.place(*at, name)
            if name not in keys:
                self.wrong(place, *unknown("key", name, keys))
            elif not _fits(value, keys[name].kind):
                self.wrong(place, *misfit(name, value, keys[name].kind))
            elif keys[name].kind in ("flag", "number"):
                found[name] = Said(value, place)
            elif keys[name].kind == "numbers":
                found[name] = Said(tuple(value) if isinstance(value, list) else (value,), place)
            elif keys[name].kind == "texts":
                texts = value if isinstance(value, list) else [value]
                found[name] = Said(tuple(self.expanded(each, place) for each in texts), place)
                for each in found[name].value:
                    self.check_fields(each, keys[name], place)
            else:
                text = self.expanded(value, place)
                self.check_fields(text, keys[name], place)
                found[name] = Said(text, place)
        return found

    def expanded(self, text: str, place: str) -> str:
        """The text with the values of its environment variables; a problem is noted for one that is not set."""

        def value(match: re.Match[str]) -> str:
            found: str | None = self.environment.get(match[1], match[2])
            if found is None:
                self.wrong(place, f"the environment has no variable {match[1]}", f"${{{match[1]}:-…}} gives a default.")
            return found or ""

        if "\0" in text:
            self.wrong(place, "a text must not contain a zero character")
        return _VARIABLE.sub(value, text.replace("\0", ""))

    def check_fields(self, text: str, key: JobKey, place: str) -> None:
        """Braces hold what the key knows; in a key without fields they are text."""
        for name in _FIELD.findall(text) if key.fields else ():
            if name not in key.fields:
                self.wrong(place, f"{{{name}}} is not a known field here", f"Known: {', '.join(key.fields)}.")

    # ---- what extends what ----

    def check_circles(self, named: Mapping[str, Mapping[str, Said]], defaults: Mapping[str, Said]) -> None:
        """Note sets that extend an unknown set, or each other in a circle."""
        for name, table in (("", defaults), *named.items()):
            base = table.get("extends")
            if base and base.value not in named:
                self.wrong(base.place, *unknown("set", base.value, named))
            if base and name in (chain := list(_chain(base.value, named))):
                self.wrong(base.place, f"sets extend one another in a circle: {' -> '.join([name, *chain])}")

    def merged(
        self,
        said: Mapping[str, Said],
        named: Mapping[str, Mapping[str, Said]],
        defaults: Mapping[str, Said],
    ) -> dict[str, Said]:
        """What holds for one model."""
        base = said.get("extends")
        if base and base.value not in named:
            self.wrong(base.place, *unknown("set", base.value, named))
        found: dict[str, Said] = {}
        for table in (said, defaults):
            tables = (
                [table, *(named[name] for name in _chain(table["extends"].value, named))]
                if "extends" in table
                else [table]
            )
            for each in tables:
                found = {**each, **found}
        return found


def unknown(kind: str, name: object, known: Iterable[object]) -> tuple[str, str]:
    """What to say of a name that means nothing: the problem, and the way out. In YAML not all names are texts."""
    names = list(map(str, known))
    fix = did_you_mean(str(name), names, cutoff=0.5) or f"Known: {', '.join(names) or 'none'}."
    return f"unknown {kind} {name!r}", fix


def misfit(name: str, value: Any, kind: Kind) -> tuple[str, str | None]:
    """What to say of a value of the wrong kind: the problem, and the way out if it is plain what was meant."""
    fix = None
    if isinstance(value, bool) and kind in ("text", "texts"):
        usual = SWITCHED_ON.get(name) if value else ""
        fix = None if usual is None else f'Write {name} = "{usual}".'
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{name} cannot be {shown}: it is {FITTING[kind]}", fix


def _fits(value: Any, kind: Kind) -> bool:
    if kind in ("texts", "numbers") and isinstance(value, list):
        return all(not isinstance(each, list) and _fits(each, kind) for each in value)
    if kind in ("number", "numbers"):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value > 0 if kind == "number" else whole or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, bool if kind == "flag" else str)


def _chain(name: str, named: Mapping[str, Mapping[str, Said]]) -> Iterator[str]:
    """A set and what it extends, each once."""
    seen: set[str] = set()
    while name in named and name not in seen:
        seen.add(name)
        yield name
        base = named[name].get("extends")
        name = base.value if base else ""
