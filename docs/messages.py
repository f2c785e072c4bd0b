"""Every text of the product that a user may read, with its place, to be read from top to bottom.

    python docs/messages.py [--kind KIND]

Nothing is imported: the texts are found in the source. Kinds:

    error    what an error says is wrong; with `where`, `fix` and `also` for its other parts
    help     the text of an option or argument
    command  the docstring of a command, which its --help shows
    label    the short words on the left of a summary
    text     anything else that is written in words: notes, progress, examples, records, documents

What is inside braces is computed when the program runs.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from product import Module, modules

KINDS = ("error", "where", "fix", "also", "help", "command", "label", "text")
PARTS = ("where", "fix", "also")
WORDS = re.compile(r"[^\W\d_]{2,}[,;:]? +[^\W\d_]{2,}|[^\W\d_]{2,}[,;:]? +\{|\} [^\W\d_]{2,}")
# Calls whose texts are patterns, names or code, and no language.
SILENT = re.compile(r"(^|\.)(compile|fullmatch|search|sub|split|TypeVar|getenv|encode|get)$")


@dataclass(frozen=True)
class Message:
    """One text. kind: an item of KINDS."""

    path: Path
    line: int
    kind: str
    text: str


def name_of(node: ast.expr) -> str:
    """What is called, as it is written."""
    return ast.unparse(node)


def errors_of(found: list[Module]) -> set[str]:
    """The names of the classes of the error family."""
    bases = {
        node.name: {name_of(base).rpartition(".")[2] for base in node.bases}
        for module in found
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }
    family = {"Failure"}
    while more := {name for name, above in bases.items() if above & family} - family:
        family |= more
    return family


def text_of(node: ast.AST) -> str | None:
    """The text of a literal, with what is computed in braces."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return None


class Finder:
    """Walks one module. family: names of the classes of errors."""

    def __init__(self, module: Module, family: set[str]) -> None:
        self.module, self.family = module, family
        self.found: list[Message] = []

    def add(self, node: ast.AST, kind: str, text: str) -> None:
        """Take a text, if it is one in words or its kind says that it is shown."""
        if kind == "text" and not WORDS.search(text):
            return
        if kind in ("where", "label") and not re.search(r"[^\W\d_]{2,}", re.sub(r"\{.*?\}", "", text)):
            return
        self.found.append(Message(self.module.path, getattr(node, "lineno", 0), kind, " ".join(text.split())))

    def walk(self, node: ast.AST, kind: str = "text") -> None:
        """Find the texts below a node; `kind` is what the place around it makes of them."""
        text = text_of(node)
        if text is not None:
            self.add(node, kind, text)
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.FormattedValue):
                    self.walk(part.value)
        elif isinstance(node, ast.Call):
            self.call(node, kind)
        elif isinstance(node, ast.Expr) and text_of(node.value) is not None:
            pass  # a docstring
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.function(node)
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
            label, value = node.value.elts
            self.walk(label, "label" if self.module.path.parts[0] == "cli" else "text")
            self.walk(value, "text")
        elif isinstance(node, ast.Subscript):
            self.walk(node.value, kind)
            if name_of(node.value).rpartition(".")[2] == "Annotated":
                self.walk(node.slice, kind)
        elif isinstance(node, ast.Compare | ast.Assert | ast.Match):
            for part in ast.iter_child_nodes(node):
                if text_of(part) is None:
                    self.walk(part)
        else:
            for part in ast.iter_child_nodes(node):
                self.walk(part, kind)

    def call(self, node: ast.Call, kind: str) -> None:
        """The arguments of a call: parts of an error, help of an option, or what they are around it."""
        name = name_of(node.func)
        own = name.rpartition(".")[2]
        if not (isinstance(node.func, ast.Attribute) and text_of(node.func.value) is not None):  # not ", ".join
            self.walk(node.func, kind)
        if SILENT.search(name):
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                if text_of(argument) is None:
                    self.walk(argument, kind)
            return
        inside = "error" if own in self.family else kind
        for argument in node.args:
            self.walk(argument, inside)
        for keyword in node.keywords:
            if own in self.family and keyword.arg in PARTS:
                self.walk(keyword.value, str(keyword.arg))
            elif keyword.arg == "help" and text_of(keyword.value) is not None:
                self.walk(keyword.value, "help")
            else:
                self.walk(keyword.value, inside if text_of(keyword.value) is None else "text")

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """The docstring too, if it is a command's, which hands its work to `guarded`."""
        called = {name_of(part.func).rpartition(".")[2] for part in ast.walk(node) if isinstance(part, ast.Call)}
        docstring = ast.get_docstring(node)
        if docstring and self.module.path.parts[0] == "cli" and "guarded" in called:
            self.add(node.body[0], "command", docstring)
        for part in ast.iter_child_nodes(node):
            self.walk(part)


def messages() -> Iterator[Message]:
    """All texts, in the order of the files and lines."""
    found = list(modules())
    family = errors_of(found)
    for module in found:
        finder = Finder(module, family)
        finder.walk(module.tree)
        yield from sorted(finder.found, key=lambda message: message.line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these; may be given several times")
    kinds = parser.parse_args().kind or KINDS
    for message in messages():
        if message.kind in kinds:
            print(f"{message.path.as_posix()}:{message.line}: {message.kind}: {message.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
