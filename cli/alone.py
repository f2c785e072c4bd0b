"""The programs gguf-convert and gguf-quant: without all other commands, each of which takes milliseconds to import."""

from typing import Any

import typer

from ggufsmith.cli.convert import convert
from ggufsmith.cli.guard import start
from ggufsmith.cli.help import Command, epilog
from ggufsmith.cli.quant import quant

OPTIONS: dict[str, Any] = {"add_completion": False, "rich_markup_mode": "rich", "pretty_exceptions_enable": False}


def add(program: typer.Typer, command: Any) -> None:
    """Make a function a command of a program."""
    title = command.__name__
    program.command(title, cls=Command, epilog=epilog(title), no_args_is_help=True)(command)


convert_app, quant_app = typer.Typer(**OPTIONS), typer.Typer(**OPTIONS)
add(convert_app, convert)
add(quant_app, quant)


def convert_main() -> None:
    """The program `gguf-convert`."""
    start(convert_app)


def quant_main() -> None:
    """The program `gguf-quant`."""
    start(quant_app)
