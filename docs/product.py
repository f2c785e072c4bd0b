"""The product's own modules, for the scripts that check them: what pyproject.toml installs, read but never imported."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
# Import name -> folder, of the packages directly below `ggufsmith`.
PACKAGES: dict[str, str] = _SETTINGS["package-dir"]
# Import names of all packages that are installed, those inside others too.
INSTALLED: list[str] = _SETTINGS["packages"]


@dataclass(frozen=True)
class Module:
    """One source file. name: what it is imported as; path: relative to the repository."""

    name: str
    path: Path
    tree: ast.Module


def modules() -> Iterator[Module]:
    """Every module of every package, in the order of their paths."""
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            text = path.read_text(encoding="utf-8")
            yield Module(name, path.relative_to(ROOT), ast.parse(text, filename=str(path)))
