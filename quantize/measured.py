"""Requests with a budget: the model is opened and measured once, and every budget becomes a recipe."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from ggufsmith.pipeline.option import INPUTS
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize.budget import PLACEHOLDER, Budget, Solved, fit_budget
from ggufsmith.quantize.outputs import QuantizedFile
from ggufsmith.quantize.resolve import resolved

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def silently(weights: int) -> AbstractContextManager[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda weights: None)


def with_budgets(
    request: Request,
    open_pass: Callable[[Request], Pass],
    progress: Progress,
    budgets: Sequence[Budget] = (),
) -> tuple[Request, tuple[Solved, ...]]:
    """The request with the recipe that fits each budget best (see `budget.fit_budget`), and those recipes.

    open_pass: opens a request. progress: shows the measuring of so many weights; gives what is told of them.
    budgets:   instead of those that the request has.
    """
    budgets = budgets or resolved(request, *INPUTS)[0].budgets
    if not budgets:
        return request, ()
    plain = replace(request.make, target_size=(), target_bpw=(), save_recipe=None)
    probe = replace(
        request,
        make=replace(plain, recipes=(PLACEHOLDER,), strict=False, mmproj=False, mmproj_outtype=None),
        write=replace(request.write, outfile=None),  # which one budget of several cannot have
    )
    solved = []
    with open_pass(probe) as planned:
        output = planned.outputs[0]
        if not isinstance(output, QuantizedFile):
            raise TypeError("the plan of a recipe is not a QuantizedFile")
        for budget in budgets:
            with progress(planned.weights) as advance:
                solved.append(
                    fit_budget(
                        planned.tensors_of(output), output, budget, threads=request.write.threads, advance=advance
                    )
                )
    return replace(request, make=replace(plain, recipes=tuple(each.recipe for each in solved))), tuple(solved)
