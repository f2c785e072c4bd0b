"""Which recipe fits into a memory: exact sizes of files, the cache of keys and values, and buffers."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.kvcache import cache_bytes, cache_type
from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.pipeline.request import SourceOptions

BATCH = 512  # tokens that programs compute together
# Made for models that were trained for them, or older than what replaced them: shown, but not recommended unmeasured.
SPECIAL = ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "COPY", "F32")
MAX_TABLE = 2**24  # bytes
OTHER = 0.1  # a file of one model and recipe may be so much larger or smaller, as others mix types


@dataclass(frozen=True)
class RecipeFit:
    """One recipe beside the memory that there is. All sizes in bytes.

    divergence: from the source, if it was measured. fits: with cache and buffers. best: of those that fit.
    needs_importance: the recipe cannot be made without an importance matrix.
    pointless: the source is quantized, and no larger than this, which cannot have more of the model.
    """

    recipe: str
    bits_per_weight: float
    file: int
    needed: int
    fits: bool
    divergence: float | None
    needs_importance: bool
    best: bool = False
    pointless: bool = False


@dataclass(frozen=True)
class Fitting:
    """The answer. context: tokens. cache, buffers: bytes beside the weights; buffers are an estimate.

    quantized: the source is, so that COPY keeps what it has, and every other recipe loses more.
    measured: the models that the files in the table of losses are named after.
    """

    model: str
    memory: int
    context: int
    cache_type: str
    cache: int
    buffers: int
    recipes: Sequence[RecipeFit]
    quantized: bool = False
    measured: tuple[str, ...] = ()

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
    Raises what is wrong with the model; Usage for a memory, a context or a type that is none; Malformed for a table
    that is damaged, or of a model of another size.
    """
    from ggufsmith.container.units import parse_size
    from ggufsmith.quantize.model_check import other_kind
    from ggufsmith.quantize.recipes.files import recipe_of, shipped
    from ggufsmith.quantize.recipes.filetypes import FILE_TYPES, shown
    from ggufsmith.recipe_sizes import recipe_entry, shape_of

    there, cache_format = parse_size(memory), cache_type(kind)
    losses = read_losses(table) if table is not None else {}
    divergences = {name: loss.divergence for name, loss in losses.items()}
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
    own: int | None = None  # bytes of a file with the types of a quantized source
    for name in ("COPY", *FILE_TYPES, *shipped()):
        if name == "COPY" and (own is not None or not shape.stored):
            continue
        entry = recipe_entry(recipe_of(name), replace(shape, tensors=shape.stored) if name == "COPY" else shape)
        if "problem" in entry:
            continue
        if name == "COPY":
            own = entry["bytes"]
        needed = entry["bytes"] + cache + buffers
        found.append(
            RecipeFit(
                shown(name),
                entry["bits_per_weight"],
                entry["bytes"],
                needed,
                needed <= there,
                divergences.get(shown(name).upper()),
                entry["needs_importance"],
                pointless=own is not None and name != "COPY" and entry["bytes"] >= own,
            )
        )
    if table is not None:
        _check_sizes(table, losses, found)
    ranked = sorted(found, key=lambda fit: (-fit.file, fit.recipe))
    named = tuple(sorted({loss.model for loss in losses.values() if loss.model}))
    return Fitting(
        model, there, wanted, kind, cache, buffers, list(_marked(ranked)), quantized=own is not None, measured=named
    )


def _check_sizes(table: Path, losses: Mapping[str, "MeasuredLoss"], fits: Sequence[RecipeFit]) -> None:
    """Malformed for a table of files whose sizes are not those of this model's."""
    sizes = {fit.recipe.upper(): fit.file for fit in fits}
    other = [
        f"{loss.name} has {loss.bytes} bytes; {name} of this model has {sizes[name]}"
        for name, loss in losses.items()
        if name in sizes and abs(loss.bytes - sizes[name]) > OTHER * sizes[name]
    ]
    if other:
        fix = "Measure this model with `ggufsmith eval`, by its option --csv, or leave out --table."
        raise Malformed("the table is of another model", where=table, also=other[:20], fix=fix)


def _marked(fits: Sequence[RecipeFit]) -> Iterator[RecipeFit]:
    """The best marked: what a quantized source is, the least measured loss, or else the largest of the usual types."""
    there = [fit for fit in fits if fit.fits and not fit.pointless]
    measured = [fit for fit in there if fit.divergence is not None]
    usual = [fit for fit in there if fit.recipe.upper() not in SPECIAL] or there
    copied = next((fit for fit in there if fit.recipe.upper() == "COPY"), None)
    best = min(measured, key=lambda fit: (fit.divergence or 0.0, fit.file)) if measured else next(iter(usual), None)
    best = copied or best
    for fit in fits:
        yield replace(fit, best=fit is best)


def buffer_bytes(metadata: Mapping[str, object]) -> int:
    """About what programs take to compute BATCH tokens: logits in float32, and the widest activations, a few times."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    words = len(getattr(tokens, "data", ()) or ())
    widest = max(_number(metadata, "feed_forward_length"), _number(metadata, "embedding_length"))
    return 4 * BATCH * (words + 6 * widest)


@dataclass(frozen=True)
class MeasuredLoss:
    """What a table says of one file. model: what the file is named after; empty for a recipe. bytes: its size."""

    name: str
    model: str
    bytes: int
    divergence: float


def read_losses(path: Path) -> dict[str, MeasuredLoss]:
    """Recipe in capitals -> its mean divergence over all domains, of a table of `ggufsmith eval --csv`.

    Malformed if it is none.
    """
    from ggufsmith.naming.filename import parse
    from ggufsmith.quantize.recipes.files import recipe_name

    if not path.is_file():
        raise Usage("there is no such table", where=path, fix="Write one with `ggufsmith eval`, by its option --csv.")
    if path.stat().st_size > MAX_TABLE:
        raise Malformed(f"a table of more than {MAX_TABLE} bytes is not read", where=path)
    found: dict[str, MeasuredLoss] = {}
    try:
        for row in csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()):
            base = row["name"].rpartition("/")[2]  # of files of equal name, the folders are there
            words = base.removesuffix(".gguf").split("-")
            known = next((name for word in (base, *reversed(words)) if (name := recipe_name(word))), None)
            value, size = float(row["divergence"]), int(row["bytes"])
            file = base.endswith(".gguf")
            name = replace(parse(base), encoding=None, shard=None).format() if file else ""
            if known and math.isfinite(value):  # the first row of a file is that over all domains
                loss = MeasuredLoss(row["name"], name.removesuffix(".gguf"), size, value)
                found.setdefault(known.upper(), loss)
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
