"""The command line: gguf-convert, gguf-quant, and ggufsmith with both as subcommands.

Everything heavy is imported inside the command that needs it: `--help` must answer at once.
"""

from typing import Any

import typer

from ggufsmith.cli.batch import EXAMPLES as BATCH_EXAMPLES
from ggufsmith.cli.batch import batch
from ggufsmith.cli.card import card
from ggufsmith.cli.convert import convert
from ggufsmith.cli.eval import evaluate
from ggufsmith.cli.guard import start
from ggufsmith.cli.help import Command, Group, epilog
from ggufsmith.cli.imatrix import imatrix
from ggufsmith.cli.inspect import inspect
from ggufsmith.cli.modelfile import modelfile
from ggufsmith.cli.name import name
from ggufsmith.cli.options import Version
from ggufsmith.cli.push import push
from ggufsmith.cli.quant import quant
from ggufsmith.cli.recipes import recipes
from ggufsmith.cli.split import merge, split
from ggufsmith.cli.tohf import to_hf
from ggufsmith.cli.verify import verify
from ggufsmith.cli.which import which

options: dict[str, Any] = {"add_completion": False, "rich_markup_mode": "rich", "pretty_exceptions_enable": False}
app = typer.Typer(cls=Group, no_args_is_help=True, **options)
convert_app, quant_app = typer.Typer(**options), typer.Typer(**options)


@app.callback()
def common(version: Version = False) -> None:
    """Hugging Face checkpoints to GGUF files: convert, quantize, look at, check and publish them."""


for command, alone in ((convert, convert_app), (quant, quant_app)):
    for program in (app, alone):
        title = command.__name__
        program.command(title, cls=Command, epilog=epilog(title), no_args_is_help=True)(command)
app.command(cls=Command, epilog=BATCH_EXAMPLES, no_args_is_help=True)(batch)
for command in (imatrix, recipes, inspect, verify, name, split, merge, card, push, modelfile, which, to_hf):
    title = command.__name__.replace("_", "-")
    app.command(title, cls=Command, epilog=epilog(title), no_args_is_help=command is not recipes)(command)

app.command("eval", cls=Command, epilog=epilog("eval"), no_args_is_help=True)(evaluate)


def main() -> None:
    """The program `ggufsmith`."""
    start(app)


def convert_main() -> None:
    """The program `gguf-convert`."""
    start(convert_app)


def quant_main() -> None:
    """The program `gguf-quant`."""
    start(quant_app)


if __name__ == "__main__":
    main()
