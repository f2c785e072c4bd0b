"""`gguf-convert FILE`: a model that is a GGUF file or an old GGML file already, by the engine of gguf-quant."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ggufsmith.container.values import Metadata
    from ggufsmith.quantize.recipes.assign import Recipe

OverrideKv = Annotated[
    list[str] | None, typer.Option("--override-kv", metavar="KEY=TYPE:VALUE", help="Set a metadata key.")
]
AllowRequantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Quantize what is quantized already; the errors add up.")
]
Tokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="Its vocabulary, instead of that in the file.")
]


PARTS = (
    "*.safetensors *.safetensors.index.json pytorch_model*.bin consolidated.*.pth *config.json tokenizer.model "
    "tokenizer.json".split()
)
FOLDERS = ("config.json", "params.json", "adapter_config.json")  # a folder with one of them is converted as a whole


def file_of(model: str | None) -> Path | None:
    """The file, if a model is one: named itself, or the only model in a folder that is no checkpoint or adapter.

    Usage for a folder with several, for a file of a checkpoint, and for an empty name, which is a variable not set.
    """
    from ggufsmith.container.errors import Usage
    from ggufsmith.container.shards import SHARD, SUFFIX

    if model is None:
        return None
    if not model:
        raise Usage("the name of the model is empty", fix="Pass a folder, a file or a name; '.' is the current folder.")
    path = Path(model)
    if path.is_file():
        if any(path.match(pattern) for pattern in PARTS):
            what = "this is one file of a checkpoint, which is converted as a whole"
            raise Usage(what, where=path, fix=f"gguf-convert '{path.parent}'")
        return path
    if not path.is_dir() or any((path / name).is_file() for name in FOLDERS):
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    models = {SHARD.sub("", file.name.removesuffix(SUFFIX)): file for file in reversed(files)}
    if len(models) > 1:
        raise Usage(
            f"{len(models)} models are in this folder: {', '.join(sorted(models))}",
            where=path,
            fix="Name the file to convert.",
        )
    return next(iter(models.values()), None)


def recipes_of(file: Path, recipes: tuple["Recipe", ...], outtype: str | None) -> tuple["Recipe", ...]:
    """What to make of a file: the recipes, the type, or, of an old GGML file, a GGUF with the same weights.

    Usage for both, an unknown type, and for a GGUF file without either; Malformed for a file that is no model.
    """
    from ggufsmith.container.errors import Usage
    from ggufsmith.container.ggml import is_ggml
    from ggufsmith.quantize.recipes.files import recipe_of
    from ggufsmith.quantize.source import open_model

    types = ("f16", "bf16", "f32")
    if outtype is not None and recipes:
        raise Usage("--outtype and --recipe both say what to make of this file", fix="Leave one of the two out.")
    if outtype is not None and outtype.lower() not in types:
        raise Usage(f"{outtype!r} is no type to make of this file", fix=f"Choose one of {', '.join(types)}.")
    if outtype is not None:
        return (recipe_of(outtype),)
    if recipes:
        return recipes
    if is_ggml(file):
        return (_as_it_is(file),)
    open_model(file).files.close()
    raise Usage(
        "this is a GGUF file already",
        where=file,
        fix="Say what to make of it, with --recipe or --outtype; `ggufsmith to-hf` turns it back into a checkpoint.",
    )


def _as_it_is(file: Path) -> "Recipe":
    """A copy, under the name of the types that an old file has."""
    from ggufsmith.quantize.recipes.files import recipe_of
    from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
    from ggufsmith.quantize.source import open_model

    with open_model(file).files as model:
        number = model.metadata.get("general.file_type")
    copy = recipe_of("copy")
    names = [kind.name for kind in FILE_TYPES.values() if number is not None and kind.number == number.data]
    return replace(copy, name=names[0]) if names else copy


def refuse(given: Mapping[str, object]) -> None:
    """Usage if an option has a value that has no meaning for this kind of input."""
    from ggufsmith.container.errors import Usage

    named = [name for name, value in given.items() if value]
    if named:
        raise Usage(f"{' and '.join(named)} cannot be used with this input", fix="Leave it out.")


def vocabulary_for(file: Path, folder: Path | None) -> tuple["Metadata | None", tuple[str, ...]]:
    """The `tokenizer.*` keys of a folder for the model in `file`, and sentences for the report; None without a folder.

    Malformed and Unsupported as `vocabulary_of`.
    """
    if folder is None:
        return None, ()
    from ggufsmith.convert.vocabulary import vocabulary_of

    return vocabulary_of(file, folder)
