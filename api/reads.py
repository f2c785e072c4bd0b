"""Which files the options of a run name for reading. None of them may be written over by any file that it writes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufsmith.pipeline.request import Request


def files_read(request: "Request", texts: Sequence[Path] = ()) -> Iterator[Path]:
    """Every file that a request names, all that count of every folder that it names, and the texts.

    What a `Pass` has as its inputs is what decides the bytes: less, as the weights of a tokenizer's folder do not, and
    more, as a base model that an adapter names.
    """
    from ggufsmith.convert.inputs import files_of
    from ggufsmith.pipeline.request import AUTO
    from ggufsmith.quantize.recipes.files import recipe_files

    source, make = request.source, request.make
    folders = [request.path, source.base, source.tokenizer, source.target, *_adapters(request)]
    for path in (*folders, source.metadata, make.imatrix, make.sensitivity, make.tensor_type_file):
        if path is not None and path != AUTO:
            yield from files_of(path)
    for recipe in (*make.recipes, *make.match):
        if isinstance(recipe, str):
            yield from recipe_files(recipe)
    if named := [path for path in (*texts, *make.calibrate) if path != AUTO]:
        from ggufsmith.evaluate.texts import text_files

        yield from text_files(named)


def _adapters(request: "Request") -> list[Path]:
    if not request.source.lora:
        return []
    from ggufsmith.convert.model import adapters_of

    return [folder for folder, _ in adapters_of(request.source).values()]
