"""Files that people write, recipes and jobs: TOML or YAML, read with the line of every value.

TOML v1.0.0 (toml.io), YAML through PyYAML's safe loader. Both are bounded in size and depth, and neither can make
anything but plain values.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import read_text, with_newlines

MAX_SIZE = 4 << 20  # bytes; a recipe with a rule for each of 10 000 tensors is below 1 MiB
MAX_DEPTH = 32  # of lists in lists; YAML's C loader recurses, and a deep enough document would end the process
YAML_SUFFIXES = (".yaml", ".yml")
Keys = tuple[str | int, ...]

# A TOML string, a comment, or a character that opens, closes or ends something; all else is passed over.
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}\n]', re.DOTALL
)

_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True)
class Document:
    """The content of a file. kind: "TOML" or "YAML"."""

    path: Path
    text: str
    data: Mapping[str, Any]
    kind: str

    @cached_property
    def lines(self) -> Mapping[Keys, int]:
        """Keys and indices, from the outermost -> line, from 1 on."""
        return dict(_toml_lines(self.text) if self.kind == "TOML" else _yaml_lines(_compose(self.text)))

    def place(self, *keys: str | int) -> str:
        """FILE:LINE of the value behind these keys, or of what should hold it."""
        found = next((keys[:k] for k in range(len(keys), -1, -1) if keys[:k] in self.lines), None)
        return f"{self.path}:{1 if found is None else self.lines[found]}"


def read_document(path: Path) -> Document:
    """Read a file, YAML if its name says so, else TOML. Malformed, with the line, if it is not a table of that
    kind; Failure if it cannot be read.
    """
    return parse_document(with_newlines(read_text(path, limit=MAX_SIZE)), path)


def parse_document(text: str, path: Path) -> Document:
    """`read_document` of a text that was read already."""
    if path.suffix.lower() in YAML_SUFFIXES:
        return _checked(Document(path, text, _parse_yaml(text, path), "YAML"))
    try:
        return _checked(Document(path, text, tomllib.loads(text), "TOML"))
    except tomllib.TOMLDecodeError as error:
        what, line = _TOML_PLACE.sub("", str(error)), _TOML_PLACE.search(str(error))
        end = text.count("\n") + 1
        raise Malformed(
            f"the file is not valid TOML: {what}", where=f"{path}:{line[1] if line and line[1] else end}"
        ) from None
    except ValueError as error:  # of int(), for a number of thousands of digits
        raise Malformed(f"the file is not valid TOML: {error}", where=path) from None
    except RecursionError:
        raise Malformed("the document is nested too deeply", where=path) from None


def _checked(document: Document) -> Document:
    """The same, if its numbers are of 64 bits, as TOML asks; larger ones could not even be printed."""
    for keys, value in _values(document.data, ()):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise Malformed("a whole number here has at most 64 bits", where=document.place(*keys))
    return document


def _values(data: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """Everything in tables and lists, with the keys that lead to it."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _values(value, (*keys, key))
    else:
        yield keys, data


# ---- TOML ----


def _toml_lines(text: str) -> Iterator[tuple[Keys, int]]:
    """Of a valid document: its statements are parsed one by one, each being a document of its own."""
    table: Keys = ()
    counts: dict[Keys, int] = {}

    def placed(names: Keys) -> Keys:
        """A header's names with the index of the last element of every array of tables."""
        path: Keys = ()
        for name in names:
            path = (*path, name)
            if path in counts:
                path = (*path, counts[path] - 1)
        return path

    for line, statement in _statements(text):
        data: Any = tomllib.loads(statement)
        if not statement.startswith("["):
            yield from ((keys, line) for keys in _inside(data, table))
            continue
        names: Keys = ()
        while isinstance(data, dict) and data:
            ((name, data),) = data.items()
            names = (*names, name)
        if isinstance(data, list):
            array = (*placed(names[:-1]), names[-1])
            counts[array] = counts.get(array, 0) + 1
        table = placed(names)
        yield table, line


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every header and every assignment: they end with a line, outside strings and brackets."""
    text = text.replace("\r\n", "\n") + "\n"
    depth = begin = 0
    line = 1
    for token in _TOKEN.finditer(text):
        if token[0] == "\n" and depth == 0:
            piece = text[begin : token.end()]
            if piece.strip() and not piece.lstrip().startswith("#"):
                yield line, piece.strip()
            line, begin = line + piece.count("\n"), token.end()
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)


def _inside(value: Any, keys: Keys) -> Iterator[Keys]:
    """Everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*keys, key)
        yield from _inside(inner, (*keys, key))


# ---- YAML ----


def check_depth(text: str) -> None:
    """ValueError for a YAML document nested too deep to be built."""
    import yaml

    depth, too_deep = 0, ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        for event in yaml.parse(text, _loader()):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise too_deep
    except yaml.MarkedYAMLError as error:
        if error.context and "increasing" in error.context:  # the C library reads ahead, and has a limit of its own
            raise too_deep from None
        raise


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML's wheels have the C one


def _compose(text: str) -> Any:
    import yaml

    return yaml.compose(text, _loader())


def _parse_yaml(text: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        check_depth(text)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _loader())):
            raise ValueError("aliases (*NAME) are not followed")  # they can grow without bound, and hold themselves
        seen: set[Keys] = set()
        for keys, line in _yaml_lines(_compose(text)):
            if keys in seen:
                raise Malformed(f"{keys[-1]!r} occurs twice", where=f"{path}:{line}")
            seen.add(keys)
        data = yaml.load(text, _loader())
    except yaml.MarkedYAMLError as error:
        where = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else path
        raise Malformed(f"the file is not valid YAML: {error.problem}", where=where) from None
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors let through what int(), float() and date() raise for `!!int ""` and the like.
        raise Malformed(f"the file is not valid YAML: {str(error).partition(chr(10))[0]}", where=path) from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise Malformed("the file must hold a table of names and values at the top", where=path)
    return data


def _yaml_lines(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """The line of every key and every element under a node."""
    if node is None:
        return
    if node.id == "mapping":
        for key, value in node.value:
            inside = (*keys, str(key.value))
            yield inside, key.start_mark.line + 1
            yield from _yaml_lines(value, inside)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            yield (*keys, index), value.start_mark.line + 1
            yield from _yaml_lines(value, (*keys, index))
