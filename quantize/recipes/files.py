"""Recipe files: TOML or YAML that extends a recipe and overrides it by name, role and layer.

    description = "q4_K_M with embeddings and output in q8_0"
    extends = "q4_K_M"              # a file type, a shipped recipe, or another file beside this one

    [[rule]]                        # of all rules the first that applies decides; those of `extends` come last
    type = "q8_0"
    role = ["token_embd", "output"]

    [[rule]]
    type = "iq4_xs"
    match = "ffn_(up|gate)"         # a regular expression, searched in the tensor's name
    layers = {first = 0.25, last = 0.25}    # fractions of all layers, or a list: [0, 1, 31]

    [[rule]]
    type = "f16"
    tensors = ["blk.0.attn_v.weight"]

`addition = 0.15` is for recipes that stand for a size: where types are measured (--calibrate), the rules give way to
those that are best for the size of the file type that the recipe extends and 15 % more.

A rule without conditions is for every matrix; one that names tensors or layers has to meet some. Outputs are called by
`name = "..."`, or by the file's name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ggufsmith.container.documents import YAML_SUFFIXES, Document, Keys, parse_document, read_document
from ggufsmith.container.errors import Failure, Malformed, Usage
from ggufsmith.container.formats import format_of
from ggufsmith.quantize.recipes.assign import Layers, Override, Recipe
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES, file_type_of, shown, unknown
from ggufsmith.quantize.recipes.rules import ROLES

SHIPPED = ".toml"
SUFFIXES = (SHIPPED, *YAML_SUFFIXES)
NAME = re.compile(r"\w+")
MAX_DEPTH = 8  # files that extend one another


def recipe_of(text: str, folder: Path | None = None, depth: int = 0) -> Recipe:
    """The recipe called `text`: a file type, a shipped recipe, or the path of a recipe file, by its ending.

    folder: what a path is relative to. Usage, with the nearest names, if there is none.
    """
    if text.lower().endswith(SUFFIXES):
        return read_recipe((folder or Path()) / text, depth)
    file_type = file_type_of(text)
    if file_type is not None:
        return Recipe(file_type.name, file_type)
    name = text.upper()
    if name in shipped():
        return _recipe(name, parse_document(shipped()[name], Path(name.lower() + SHIPPED)), depth)
    raise unknown(text, [*FILE_TYPES, *shipped()])


def recipe_files(text: str, folder: Path | None = None) -> list[Path]:
    """The files behind the recipe called `text`: its own, and those of the recipes that it extends. Raises as
    `recipe_of` does for those that cannot be read.
    """
    found: list[Path] = []
    while text.lower().endswith(SUFFIXES) and len(found) <= MAX_DEPTH:
        found.append((folder or Path()) / text)
        folder = found[-1].parent
        text = str(read_document(found[-1]).data.get("extends", ""))
    return found


def recipe_name(text: str) -> str | None:
    """The name of the recipe called `text` as help writes it, or the path of a recipe file; None if it is neither."""
    file_type = file_type_of(text)
    if text.lower().endswith(SUFFIXES):
        return text
    if file_type is not None:
        return file_type.shown
    return shown(text.upper()) if text.upper() in shipped() else None


@cache
def shipped() -> Mapping[str, str]:
    """The recipe files that come with the package: name -> text."""
    entries = sorted(files(__package__).iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(SHIPPED).upper(): entry.read_text(encoding="utf-8")
        for entry in entries
        if entry.name.endswith(SHIPPED)
    }


def read_recipe(path: Path, depth: int = 0) -> Recipe:
    """Read a recipe file. Malformed, with the line, for what is wrong in it; Failure if it cannot be read."""
    if depth > MAX_DEPTH:
        raise Malformed(f"more than {MAX_DEPTH} recipes extend one another, perhaps in a circle", where=path)
    return _recipe(path.stem, read_document(path), depth)


def _recipe(name: str, document: Document, depth: int) -> Recipe:
    table, path = document.data, document.path
    source = _Source(document)
    source.expect(table, {"name": str, "description": str, "extends": str, "rule": list, "addition": (int, float)}, ())
    if not NAME.fullmatch(table.get("name", "name")):
        raise Malformed(
            "a name may contain only letters, digits and _, because files are named after it",
            where=document.place("name"),
        )
    if "extends" not in table:
        raise Malformed('a recipe must say what it extends, for example extends = "q4_K_M"', where=path)
    try:
        base = recipe_of(table["extends"], path.parent, depth + 1)
    except Usage as error:
        raise Malformed(error.what, where=document.place("extends"), fix=error.fix) from None
    overrides = tuple(source.rule(rule, index) for index, rule in enumerate(table.get("rule", [])))
    if base.file_type.base is None and overrides:
        raise Malformed("COPY keeps every tensor; extend another recipe", where=document.place("extends"))
    addition = table.get("addition", 0.0)
    if not 0 <= addition <= 1:
        raise Malformed("addition is a part of the size, from 0 to 1", where=document.place("addition"))
    name = table.get("name", name)
    return Recipe(name, base.file_type, (*overrides, *base.overrides), table.get("description", ""), float(addition))


@dataclass(frozen=True)
class _Source:
    """The rules of a recipe file; errors say their place in it."""

    document: Document

    def expect(self, table: Mapping[str, Any], types: Mapping[str, Any], at: Keys) -> None:
        """Malformed for a key of the table at `at` that is not known, or whose value has another type."""
        for key, value in table.items():
            where = self.document.place(*at, key)
            if key not in types:
                raise Malformed(f"unknown key {key!r}", where=where, fix=f"Known: {', '.join(types)}.")
            if not isinstance(value, types[key]):
                raise Malformed(f"{key} cannot be {value!r}", where=where)

    def rule(self, table: Any, index: int) -> Override:
        if not isinstance(table, dict):
            raise Malformed(f"a rule is a table, not {table!r}", where=self.document.place("rule", index))
        known = {"type": str, "match": str, "role": (str, list), "tensors": list, "layers": (list, dict)}
        self.expect(table, known, ("rule", index))
        if "type" not in table:
            raise Malformed("a rule must have a type", where=self.document.place("rule", index))
        try:
            format = format_of(table["type"])
            match = re.compile(table["match"], re.IGNORECASE) if "match" in table else None
        except Failure as error:
            raise Malformed(error.what, where=self.document.place("rule", index, "type"), fix=error.fix) from None
        except re.error as error:
            raise Malformed(
                f"the pattern is not a valid regular expression: {error}",
                where=self.document.place("rule", index, "match"),
            ) from None
        roles = self._strings(table, "role", index)
        if strange := sorted(roles - set(ROLES)):
            where = self.document.place("rule", index, "role")
            raise Malformed(f"there is no role {strange[0]!r}", where=where, fix=f"Roles: {', '.join(ROLES)}.")
        names = self._strings(table, "tensors", index)
        layers = self._layers(table["layers"], index) if "layers" in table else None
        return Override(format, match, roles, names, layers, self.document.place("rule", index))

    def _strings(self, table: Mapping[str, Any], key: str, index: int) -> frozenset[str]:
        value = table.get(key, [])
        values = [value] if isinstance(value, str) else value
        if not all(isinstance(each, str) for each in values) or (key in table and not values):
            raise Malformed(f"{key} must list at least one", where=self.document.place("rule", index, key))
        return frozenset(values)

    def _layers(self, value: list[Any] | dict[str, Any], index: int) -> Layers:
        where = self.document.place("rule", index, "layers")
        if isinstance(value, list):
            if not value or not all(type(each) is int and each >= 0 for each in value):
                raise Malformed("layers must be numbers of at least 0", where=where)
            return Layers(frozenset(value))
        fractions = {key: value.get(key, 0.0) for key in ("first", "last")}
        if value.keys() - fractions.keys() or not value:
            raise Malformed("layers = {first = F, last = F}, or one of them, or a list", where=where)
        if not all(type(each) in (int, float) and 0 <= each <= 1 for each in fractions.values()):
            raise Malformed("a fraction of the layers must be from 0 to 1", where=where)
        return Layers(first=float(fractions["first"]), last=float(fractions["last"]))


def format_recipe(name: str, extends: str, description: str, chosen: Mapping[str, str]) -> str:
    """A recipe file that gives every tensor named in `chosen` the format there."""
    said = {"name": name, "description": description, "extends": extends}
    lines = [f"{key} = {json.dumps(value)}" for key, value in said.items()]
    for format in sorted(set(chosen.values())):
        lines += ["", "[[rule]]", f'type = "{format.lower()}"', "tensors = ["]
        lines += [f"  {json.dumps(name)}," for name in chosen if chosen[name] == format]
        lines.append("]")
    return "\n".join(lines) + "\n"
