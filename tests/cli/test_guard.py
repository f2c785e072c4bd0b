"""The guard around every command."""

import ast
from pathlib import Path

CLI = Path(__file__).resolve().parents[2] / "cli"


def test_no_command_imports_the_app() -> None:
    """The app imports the commands; the other way round would be a circle."""
    for path in sorted(CLI.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "ggufsmith.cli.app"), path.name
