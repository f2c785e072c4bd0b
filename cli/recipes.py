"""`ggufsmith recipes`: what there is, and what it makes of a model."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ggufsmith.cli.options import AsJson, with_records
from ggufsmith.pipeline.request import SourceOptions


@with_records("model", "file", only="target revision token")
def recipes(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model in any form that gguf-convert accepts; the size of every recipe is computed for it.",
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", "-r", metavar="NAME", help="Show only these recipes, and the type of every tensor."),
    ] = None,
    *,
    options: SourceOptions,
    as_json: AsJson = False,
) -> None:
    """Print every recipe with its bits per weight; for a given model, also the size of the file and the tensors' types.

    Without a model, the numbers are for the shape of Llama 3.1 8B. Some recipes choose other types if there is an
    importance matrix; the numbers are for none.
    """
    from ggufsmith.cli.guard import guarded

    guarded(lambda: show(model, options, recipe or [], as_json), as_json)


def show(model: str | None, options: SourceOptions, names: Sequence[str], machine: bool) -> None:
    """Print what recipes make of a model, or of the shape of Llama 3.1 8B. Raises what is wrong with the model."""
    from ggufsmith.cli import render
    from ggufsmith.quantize.recipes.files import recipe_of, shipped
    from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
    from ggufsmith.recipe_sizes import llama_8b, recipe_entry, shape_of

    shape = shape_of(model, options, render.display(machine)) if model is not None else llama_8b()
    chosen = [recipe_of(name) for name in (names or (*FILE_TYPES, *shipped()))]
    entries = [recipe_entry(recipe, shape, bool(names)) for recipe in chosen]
    if not names:
        entries.sort(key=lambda entry: -(entry["bits_per_weight"] or 0))
    if machine:
        render.as_json({"model": model or "shape of Llama 3.1 8B", "recipes": entries})
        return
    render.table(map(_row, entries), HEADS)
    for entry in entries:
        rows = ((tensor["name"], tensor["type"], tensor["reason"]) for tensor in entry.get("tensors", ()))
        render.table(rows, ("tensor", "type", "reason"), entry["shown"])


HEADS = ("recipe", "bits ", "size ", "tensors", "notes")


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    from ggufsmith.cli import render
    from ggufsmith.container.text import counted

    if entry["bits_per_weight"] is None:
        return entry["shown"], "", "", "", f"not possible: {entry['problem']}"
    exact = entry["bytes"] is not None
    kinds = [f"{number} {name}" for name, number in entry["types"].items()] if exact else list(entry["types"])
    notes = [f"also {', '.join(entry['aliases'])}"] if entry["aliases"] else []
    notes += ["needs --imatrix"] if entry["needs_importance"] else []
    if number := entry["fallbacks"]:
        notes.append(f"{counted(number, 'tensor')} with another type, because the rows do not fit")
    notes += [entry["description"]] if entry["description"] else []
    size = render.size(entry["bytes"]) if exact else ""
    return entry["shown"], f"{entry['bits_per_weight']:.2f}", size, ", ".join(kinds), "; ".join(notes)
