"""What a run learns of the activations on the way: `--imatrix auto` and `--calibrate`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.pipeline.passes import Pass
    from ggufsmith.pipeline.request import Request
    from ggufsmith.quantize.measured import Progress as Measuring

PROMISED = (
    "an importance matrix would first be made of the calibration text; the sizes here are exact, and the types too"
)


def running(display: Display) -> "Measuring":
    """Shows the run of the model."""
    return lambda weights: display.progress("running the model", weights)


@contextmanager
def with_calibration(
    request: "Request", open_pass: "Callable[[Request], Pass]", display: Display, *, dry_run: bool
) -> Iterator[tuple["Request", "Callable[[Request], Pass]"]]:
    """The request with what it leaves to us to calibrate, and what opens it; any other as it is.

    A dry run makes none, unless a budget needs it to choose types. Otherwise the whole request is planned before the
    model is run, which can take long.
    """
    from ggufsmith.pipeline.option import INPUTS
    from ggufsmith.pipeline.request import AUTO
    from ggufsmith.quantize.resolve import resolved

    if request.make.calibrate:
        from ggufsmith.calibrate.run import calibrated

        with calibrated(request, open_pass, progress=running(display)) as (ready, opener):
            yield ready, opener
        return
    if request.make.imatrix != AUTO:
        yield request, open_pass
        return
    from ggufsmith.calibrate.auto import AutoImatrix
    from ggufsmith.calibrate.make import shipped_imatrix
    from ggufsmith.calibrate.ready import text_names

    budgets = resolved(request, *INPUTS)[0].budgets
    with AutoImatrix(partial(shipped_imatrix, threads=request.write.threads), text_names()) as auto:
        if not budgets:
            promised = auto.promised(request, open_pass)
            if dry_run:
                yield promised, lambda wanted: noting(open_pass(wanted), PROMISED)
                return
            with open_pass(promised) as planned:
                planned.check_apart()
        yield auto.made(request, open_pass, progress=running(display)), open_pass


def noting(planned: "Pass", note: str) -> "Pass":
    """The pass with a note more."""
    return replace(planned, notes=(note, *planned.notes))
