"""The shape of the house: imports go down only, the documents are true, start-up is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A package may import from packages with a lower number, and from itself.
FLOORS = {"cli": 4, "convert": 3, "tokenizer": 2, "quantize": 2, "naming": 1, "container": 0}


def imports(path: Path) -> set[str]:
    """The packages of ggufsmith that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, f"{path}: relative import"
        found |= {name.split(".")[1] for name in names if name.startswith("ggufsmith.")}
    return found


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_down_only(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for other in imports(path) - {package}:
            assert FLOORS[other] < FLOORS[package], f"{path.relative_to(ROOT)} imports ggufsmith.{other}"


def test_all_packages_are_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in FLOORS:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            name = "ggufsmith." + ".".join(folder.relative_to(ROOT).parts)
            assert f'"{name}"' in text, f"{name} is missing in pyproject.toml's packages"
        marker = ROOT / package / "py.typed"
        assert marker.is_file(), f"{marker.relative_to(ROOT)} is missing: type checkers would ignore the package's types"


def test_help_needs_nothing_heavy() -> None:
    """No timing here: what makes start-up slow is what is imported."""
    code = (
        "import sys; sys.argv = ['gguf-convert', '--help']\n"
        "from ggufsmith.cli.app import convert_main\n"
        "try: convert_main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'gguf', 'torch', 'transformers', 'tokenizers', 'sentencepiece', 'safetensors'}\n"
        "sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "gguf-convert ./TinyLlama-1.1B" in done.stdout


def test_the_changelog_knows_the_version() -> None:
    version = next(
        line.split('"')[1]
        for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
        if line.startswith("version")
    )
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
