"""The program ggufsmith, with gguf-convert and gguf-quant as two of its commands.

Everything heavy is imported inside the command that needs it: `--help` must answer at once.
"""

import typer

from ggufsmith.cli.alone import OPTIONS, add
from ggufsmith.cli.alone import convert_app as convert_app
from ggufsmith.cli.alone import convert_main as convert_main
from ggufsmith.cli.alone import quant_app as quant_app
from ggufsmith.cli.alone import quant_main as quant_main
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
from ggufsmith.cli.sensitivity import sensitivity
from ggufsmith.cli.split import merge, split
from ggufsmith.cli.tohf import to_hf
from ggufsmith.cli.verify import verify
from ggufsmith.cli.which import which

app = typer.Typer(cls=Group, no_args_is_help=True, **OPTIONS)


@app.callback()
def common(version: Version = False) -> None:
    """Hugging Face checkpoints to GGUF files: convert, quantize, look at, check and publish them."""


add(app, convert)
add(app, quant)
app.command(cls=Command, epilog=BATCH_EXAMPLES, no_args_is_help=True)(batch)
COMMANDS = (
    imatrix,
    sensitivity,
    recipes,
    inspect,
    verify,
    name,
    split,
    merge,
    card,
    push,
    modelfile,
    which,
    to_hf,
)
for command in COMMANDS:
    title = command.__name__.replace("_", "-")
    app.command(title, cls=Command, epilog=epilog(title), no_args_is_help=command is not recipes)(command)

app.command("eval", cls=Command, epilog=epilog("eval"), no_args_is_help=True)(evaluate)


def main() -> None:
    """The program `ggufsmith`."""
    start(app)


if __name__ == "__main__":
    main()
