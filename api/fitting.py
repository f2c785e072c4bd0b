"""Which recipe fits into a memory: exact sizes of files, the cache of keys and values, and buffers."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufsmith.kvcache import cache_bytes, cache_type
from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.pipeline.request import SourceOptions

BATCH = 512  # tokens that programs compute together
# Made for models that were trained for them, or older than what replaced them: shown, but not recommended unmeasured.
SPECIAL = ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "COPY", "F32")
MAX_TABLE = 2**24  # bytes


@dataclass(frozen=True)
class RecipeFit:
    """One recipe beside the memory that there is. All sizes in bytes.

    divergence: from the source, if it was measured. fits: with cache and buffers. best: of those that fit.
    needs_importance: the recipe cannot be made without an importance matrix.
    """

    recipe: str
    bits_per_weight: float
    file: int
    needed: int
    fits: bool
    divergence: float | None
    needs_importance: bool
    best: bool = False


@dataclass(frozen=True)
class Fitting:
    """The answer. context: tokens. cache, buffers: bytes beside the weights; buffers are an estimate."""

    model: str
    memory: int
    context: int
    cache_type: str
    cache: int
    buffers: int
    recipes: Sequence[RecipeFit]

    @property
    def best(self) -> RecipeFit | None:
        """The recommended recipe; None if none fits."""
        return next((fit for fit in self.recipes if fit.best), None)


def fitting_of(
    model: str,
    memory: str,
    options: "SourceOptions",
    display: Display,
    *,
    context: int | None = None,
    kind: str = "f16",
    table: Path | None = None,
) -> Fitting:
    """Which recipes of a model fit into a memory, the largest first. context: None is that of the model, 8192 at most.

    table: of `ggufsmith eval --csv`; a recipe is found in it by the end of a file's name, or by its own.
    Raises what is wrong with the model; Usage for a memory, a context or a type that is none; Malformed for a table.
    """
    from ggufsmith.container.errors import Usage
    from ggufsmith.container.units import parse_size
    from ggufsmith.quantize.model_check import other_kind
    from ggufsmith.quantize.recipes.files import recipe_of, shipped
    from ggufsmith.quantize.recipes.filetypes import FILE_TYPES, shown
    from ggufsmith.recipe_sizes import recipe_entry, shape_of

    there, cache_format = parse_size(memory), cache_type(kind)
    losses = read_losses(table) if table is not None else {}
    shape = shape_of(model, options, display)
    metadata = shape.metadata or {}
    if failure := other_kind(metadata, (), model):
        raise failure
    longest = _number(metadata, "context_length")
    wanted = context or min(longest or 8192, 8192)
    if longest and wanted > longest:
        raise Usage(
            f"the model has a context of {longest} tokens at most, and {wanted} were asked for",
            where="--context",
            fix=f"Choose {longest} or less.",
        )
    cache, buffers = cache_bytes(metadata, wanted, cache_format), buffer_bytes(metadata)
    found = []
    for name in (*FILE_TYPES, *shipped()):
        if name == "COPY":
            continue
        entry = recipe_entry(recipe_of(name), shape)
        if "problem" in entry:
            continue
        needed = entry["bytes"] + cache + buffers
        found.append(
            RecipeFit(
                shown(name),
                entry["bits_per_weight"],
                entry["bytes"],
                needed,
                needed <= there,
                losses.get(shown(name).upper()),
                entry["needs_importance"],
            )
        )
    ranked = sorted(found, key=lambda fit: (-fit.file, fit.recipe))
    return Fitting(model, there, wanted, kind, cache, buffers, list(_marked(ranked)))


def _marked(fits: Sequence[RecipeFit]) -> Iterator[RecipeFit]:
    """The best marked: the least measured loss, or else the largest of the usual types."""
    from dataclasses import replace

    there = [fit for fit in fits if fit.fits]
    measured = [fit for fit in there if fit.divergence is not None]
    usual = [fit for fit in there if fit.recipe.upper() not in SPECIAL] or there
    best = min(measured, key=lambda fit: (fit.divergence or 0.0, fit.file)) if measured else next(iter(usual), None)
    for fit in fits:
        yield replace(fit, best=fit is best)


def buffer_bytes(metadata: Mapping[str, object]) -> int:
    """About what programs take to compute BATCH tokens: logits in float32, and the widest activations, a few times."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    words = len(getattr(tokens, "data", ()) or ())
    widest = max(_number(metadata, "feed_forward_length"), _number(metadata, "embedding_length"))
    return 4 * BATCH * (words + 6 * widest)


def read_losses(path: Path) -> dict[str, float]:
    """Recipe in capitals -> mean divergence over all domains, of a table of `ggufsmith eval --csv`.

    Malformed if it is none.
    """
    from ggufsmith.container.errors import Malformed, Usage
    from ggufsmith.quantize.recipes.files import recipe_name

    if not path.is_file():
        raise Usage("there is no such table", where=path, fix="Write one with `ggufsmith eval`, by its option --csv.")
    if path.stat().st_size > MAX_TABLE:
        raise Malformed(f"a table of more than {MAX_TABLE} bytes is not read", where=path)
    found: dict[str, float] = {}
    try:
        for row in csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()):
            words = row["name"].removesuffix(".gguf").split("-")
            known = next((name for word in (row["name"], *reversed(words)) if (name := recipe_name(word))), None)
            value = float(row["divergence"])
            if known and math.isfinite(value):
                found.setdefault(known.upper(), value)  # the first row of a file is that over all domains
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError, AttributeError):
        fix = "Write one with `ggufsmith eval`, by its option --csv."
        raise Malformed("this is not a table of ggufsmith eval", where=path, fix=fix) from None
    return found


def _number(metadata: Mapping[str, object], key: str) -> int:
    name = getattr(metadata.get("general.architecture"), "data", "")
    value = getattr(metadata.get(f"{name}.{key}"), "data", None)
    if isinstance(value, int):
        return value
    return max(map(int, value), default=0) if value is not None and not isinstance(value, str | float) else 0
