"""Public names of the product without a docstring: lists them, and fails when there are more than there were.

    python docs/docstrings.py [--list]

Counted are modules, and classes, functions and methods without a leading underscore. A method that a documented method
of a base class explains needs none of its own, as `help` shows that one.
"""

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator

from product import modules

# How many there may be. It only ever goes down: whoever documents names lowers it.
ALLOWED = 0

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """The public definitions of a module or class, those under `if` and `try` too."""
    for node in body:
        if isinstance(node, Definition):
            if not node.name.startswith("_"):
                yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from definitions([*node.body, *node.orelse])


def inherited(classes: dict[str, list[ast.ClassDef]], owner: ast.ClassDef, method: str, seen: set[str]) -> bool:
    """Whether a base class, known by its name, has a docstring for the method."""
    for base in owner.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if name in seen:
            continue
        seen.add(name)
        for node in classes[name]:
            documented = any(found.name == method and ast.get_docstring(found) for found in definitions(node.body))
            if documented or inherited(classes, node, method, seen):
                return True
    return False


def missing() -> Iterator[str]:
    """One line "file:line: name" for each name without a docstring."""
    found = list(modules())
    classes: dict[str, list[ast.ClassDef]] = defaultdict(list)
    for module in found:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(node)
    for module in found:
        if not ast.get_docstring(module.tree):
            yield f"{module.path}:1: {module.name}"
        for node in definitions(module.tree.body):
            if not ast.get_docstring(node):
                yield f"{module.path}:{node.lineno}: {node.name}"
            if isinstance(node, ast.ClassDef):
                for method in definitions(node.body):
                    if not ast.get_docstring(method) and not inherited(classes, node, method.name, set()):
                        yield f"{module.path}:{method.lineno}: {node.name}.{method.name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the names even if they are not too many")
    listed = parser.parse_args().list
    names = list(missing())
    if listed or len(names) > ALLOWED:
        print("\n".join(names))
    if len(names) > ALLOWED:
        print(
            f"{len(names)} public names have no docstring, and {ALLOWED} may be without. Give the new ones a docstring "
            "that says what they do, with shapes, units and errors where there are any.",
            file=sys.stderr,
        )
        return 1
    if len(names) < ALLOWED:
        print(f"{len(names)} public names have no docstring: lower ALLOWED in docs/docstrings.py, which is {ALLOWED}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
