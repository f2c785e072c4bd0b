"""Runs one command function in this process, as the `ggufsmith` program would."""

from collections.abc import Callable
from typing import Any

import typer
from click.testing import Result
from typer.testing import CliRunner


def run(command: Callable[..., None], *arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    result: Any = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result
