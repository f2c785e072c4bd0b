"""Adapters on the command line of gguf-convert."""

from pathlib import Path
from typing import Annotated

import typer

Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FOLDER[:FACTOR]", help="A PEFT adapter to merge; may be given several times."),
]
Base = Annotated[
    Path | None,
    typer.Option("--base", metavar="FOLDER", help="The base model of an adapter, if not where the adapter says."),
]


def model_of(model: str | None, adapters: tuple[tuple[Path, float], ...], base: Path | None) -> str:
    """The model to convert: the given one, or the base of the adapters. Usage if there is none."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.convert.lora.base import find_base
    from ggufsmith.convert.lora.peft import open_adapter

    if model is None and not adapters:
        raise Usage("no model was given", fix="Pass the folder of a model, or its name on a hub.")
    if model is None:
        return str(find_base(open_adapter(adapters[0][0].absolute()), base))
    return model
