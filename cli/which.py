"""`ggufsmith which`: which recipe of a model fits into a memory."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ggufsmith.cli.options import AsJson, with_records
from ggufsmith.pipeline.request import SourceOptions

if TYPE_CHECKING:
    from ggufsmith.fitting import Fitting, RecipeFit


@with_records("model", "file", only="target revision token")
def which(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model in any form that gguf-convert accepts.")],
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="The memory that there is, such as 12GiB.")],
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="NUMBER",
            min=1,
            help="How many tokens the cache holds (default: 8192, or the model's).",
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--cache-type", metavar="TYPE", help="The type of the cache: f16, q8_0, q4_0 and others.")
    ] = "f16",
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="FILE.csv", help="Show the losses in a table of `ggufsmith eval --csv`."),
    ] = None,
    *,
    options: SourceOptions,
    as_json: AsJson = False,
) -> None:
    """Show which recipes of a model fit into a memory, with the cache of keys and values.

    The sizes of files and cache are exact; the buffers of the program that runs them are estimated. Of a model on a hub
    only the headers are read. Without a table of measured losses, the largest usual type that fits is recommended.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.fitting import fitting_of

        display = render.display(as_json)
        found = fitting_of(model, memory, options, display, context=context, kind=kind, table=table)
        if as_json:
            render.as_json(asdict(found))
            return
        render.table(map(_row, found.recipes), ("recipe", "bits ", "file ", "needs ", "divergence ", "notes"))
        render.lines(_summary(found))

    guarded(work, as_json)


def _row(fit: "RecipeFit") -> tuple[str, ...]:
    from ggufsmith.cli import render

    notes = ["the best that fits"] if fit.best else ["fits"] if fit.fits else []
    notes += ["no smaller than the quantized source"] if fit.pointless else []
    notes += ["needs --imatrix"] if fit.needs_importance else []
    loss = "" if fit.divergence is None else f"{fit.divergence:.3g}"
    size = render.size
    return fit.recipe, f"{fit.bits_per_weight:.2f}", size(fit.file), size(fit.needed), loss, "; ".join(notes)


def _summary(found: "Fitting") -> Iterator[tuple[str, str]]:
    from ggufsmith.cli import render

    yield "memory", f"{render.size(found.memory)} ({found.memory} bytes)"
    yield "cache", f"{render.size(found.cache)} for {found.context} tokens in {found.cache_type}"
    yield "buffers", f"about {render.size(found.buffers)}"
    if found.measured:
        yield "table", f"divergences of {', '.join(found.measured)}"
    if found.best is None:
        yield "answer", "no recipe fits; a shorter --context or a smaller --cache-type takes less"
        return
    weighted = " with an importance matrix" if found.best.needs_importance else ""
    kept = " (the types that the source has)" if found.best.recipe == "copy" else ""
    yield "answer", f"{found.best.recipe}{kept}{weighted}, which needs {render.size(found.best.needed)}"
    if found.quantized and not kept:
        yield "note", "the source is quantized; a file of that size loses less if it is made of the original model"
