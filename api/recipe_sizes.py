"""What recipes make of a model: types, sizes, bits per weight, without reading a weight."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.container.layout import TensorSpec
    from ggufsmith.container.values import Metadata
    from ggufsmith.pipeline.request import SourceOptions
    from ggufsmith.quantize.recipes.assign import Assignment, Recipe, Stored
    from ggufsmith.quantize.recipes.rules import Facts


@dataclass(frozen=True)
class Shape:
    """A model as far as recipes and sizes depend on it. metadata: None for one that is not there, but for its shape.

    stored: the tensors in the types that the source has, if some of them are quantized.
    """

    tensors: Sequence["Stored"]
    facts: "Facts"
    metadata: "Metadata | None" = None
    alignment: int = 32
    headers: dict[bool, int] = field(default_factory=dict)
    stored: Sequence["Stored"] = ()

    def file_size(self, recipe: "Recipe", found: Sequence["Assignment"]) -> int | None:
        """Bytes of the file. Laying out a header takes long; all have one length but COPY, which sets no file type."""
        from ggufsmith.container.layout import padded
        from ggufsmith.quantize.plan import lay_out_file

        if self.metadata is None:
            return None
        copied = recipe.file_type.number is None
        if copied not in self.headers:
            layout = lay_out_file(recipe, found, self.metadata, alignment=self.alignment)
            self.headers[copied] = len(layout.header)
        return self.headers[copied] + sum(padded(each.nbytes, self.alignment) for each in found)


def recipe_entry(recipe: "Recipe", shape: Shape, listed: bool = False) -> dict[str, Any]:
    """What a recipe makes of a model, or the problem that prevents it. listed: with every tensor."""
    from ggufsmith.container.errors import Unsupported, Usage
    from ggufsmith.quantize.recipes.assign import assign
    from ggufsmith.quantize.recipes.filetypes import ALIASES, shown

    entry: dict[str, Any] = {
        "name": recipe.name,
        "shown": shown(recipe.name),
        "aliases": [shown(alias) for alias, name in ALIASES.items() if name == recipe.name],
        "description": recipe.description,
        "bits_per_weight": None,
    }
    try:
        found = assign(recipe, shape.tensors, shape.facts)
    except (Unsupported, Usage) as error:
        return {**entry, "problem": error.what}
    weights = sum(math.prod(each.tensor.shape) for each in found)
    if not weights:
        return {**entry, "problem": "the file has no weights"}
    size = sum(each.nbytes for each in found)
    entry |= {
        "bytes": shape.file_size(recipe, found),
        "tensor_bytes": size,
        "bits_per_weight": 8 * size / weights,
        "types": dict(Counter(each.format.name for each in found).most_common()),
        "fallbacks": sum(each.fallback for each in found),
        "needs_importance": any(each.needs_importance for each in found),
    }
    if listed:
        entry["tensors"] = list(_tensors(found))
    return entry


def _tensors(found: Sequence["Assignment"]) -> Iterator[dict[str, Any]]:
    for each in found:
        yield {"name": each.tensor.name, "type": each.format.name, "bytes": each.nbytes, "reason": each.reason}


def shape_of(name: str, options: "SourceOptions", display: Display) -> Shape:
    """That of a model file, or of what a model folder would be converted to. Usage for an adapter."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.opened import opened_source
    from ggufsmith.quantize.recipes.assign import Stored, facts_of, file_order

    def ordered(specs: "Sequence[TensorSpec]") -> list[Stored]:
        stored = {spec.name: Stored(spec.name, spec.shape, spec.format) for spec in specs}
        return [stored[each] for each in file_order(stored)]

    with opened_source(name, options, "auto", display) as source:
        kind = source.metadata.get("general.type")
        if kind is not None and kind.data == "adapter":
            raise Usage("recipes apply to models, but this is an adapter", where=name, fix="Pass the model itself.")
        copied = ordered(source.copied) if any(not each.format.plain for each in source.copied) else []
        metadata = source.metadata
        return Shape(ordered(source.specs), facts_of(metadata), metadata, source.alignment, stored=copied)


def llama_8b() -> Shape:
    """The shape of Llama 3.1 8B."""
    from ggufsmith.container.formats import BY_NAME
    from ggufsmith.quantize.recipes.assign import Stored, file_order
    from ggufsmith.quantize.recipes.rules import Facts

    blocks, embd, inner, kv = 32, 4096, 14336, 1024
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (128256, embd), "output.weight": (128256, embd)}
    for block in range(blocks):
        for name, rows, width in (
            ("attn_q", embd, embd),
            ("attn_k", kv, embd),
            ("attn_v", kv, embd),
            ("attn_output", embd, embd),
            ("ffn_gate", inner, embd),
            ("ffn_up", inner, embd),
            ("ffn_down", embd, inner),
        ):
            shapes[f"blk.{block}.{name}.weight"] = (rows, width)
    stored = [Stored(name, shapes[name], BY_NAME["BF16"]) for name in file_order(shapes)]
    return Shape(stored, Facts("llama", blocks, heads=32, kv_heads=8))
