"""Requests with a budget: the model is opened and measured once, and every budget becomes a recipe."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from ggufsmith.pipeline.option import INPUTS
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import MakeOptions, Request
from ggufsmith.quantize.budget import PLACEHOLDER, Budget, Solved, fit_budget
from ggufsmith.quantize.outputs import QuantizedFile
from ggufsmith.quantize.recipes.assign import Recipe, TypeOptions
from ggufsmith.quantize.resolve import Making, resolved
from ggufsmith.quantize.sensitivity import Sensitivity, read_sensitivity

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

    With a table of sensitivities, recipes that stand for a size (`Recipe.addition`) get their types in the same way,
    unless options change types; they keep their names, and are not among the recipes that are returned.

    open_pass: opens a request. progress: shows the measuring of so many weights; gives what is told of them.
    budgets:   instead of those that the request has.

    Raises what `fit_budget` and `read_sensitivity` raise, and what planning a recipe to match raises.
    """
    recipes, grown = tuple[Recipe, ...](), list[Recipe]()
    if not budgets:
        making = resolved(request, *INPUTS)[0]
        recipes, grown = making.recipes, stand_for_sizes(making, request.make.sensitivity)
        budgets = making.budgets or [size_of(recipe) for recipe in grown]
    if not budgets:
        return request, ()
    table = read_sensitivity(request.make.sensitivity) if request.make.sensitivity else None
    plain = replace(request.make, target_size=(), target_bpw=(), match=(), sensitivity=None, save_recipe=None)
    probe = replace(
        request,
        make=replace(plain, recipes=(PLACEHOLDER,), strict=False, mmproj=False, mmproj_outtype=None),
        write=replace(request.write, outfile=None),  # which one budget of several cannot have
    )
    solved = []
    budgets = [_sized(budget, probe, open_pass) for budget in budgets]
    with open_pass(probe) as planned:
        output = planned.outputs[0]
        if not isinstance(output, QuantizedFile):
            raise TypeError("the plan of a recipe is not a QuantizedFile")
        for budget in budgets:
            with progress(planned.weights) as advance:
                found = fit_budget(
                    planned.tensors_of(output),
                    output,
                    budget,
                    sensitivity=table,
                    threads=request.write.threads,
                    advance=advance,
                )
                solved.append(_told(found, table, request.make))
    if not grown:
        return replace(request, make=replace(plain, recipes=tuple(each.recipe for each in solved))), tuple(solved)
    named = {recipe.name: replace(each.recipe, name=recipe.name) for recipe, each in zip(grown, solved, strict=True)}
    recipes = tuple(named.get(recipe.name, recipe) for recipe in recipes)
    return replace(request, make=replace(plain, recipes=recipes)), ()


def _told(found: Solved, table: Sensitivity | None, make: MakeOptions) -> Solved:
    """With a remark on a table that was measured for other bytes than those that are made."""
    plain = not make.method
    if table is None or plain == (table.effort == "none"):
        return found
    made = "as without calibration" if plain else "calibrated"
    remark = f"the table was measured with effort {table.effort}, and the bytes here are {made}: expect another loss"
    return replace(found, recipe=replace(found.recipe, description=f"{found.recipe.description}; {remark}"))


def stand_for_sizes(making: Making, sensitivity: Path | None) -> list[Recipe]:
    """The recipes of a request whose types are to be measured: those that stand for a size, if there is a table."""
    if sensitivity is None or making.types != TypeOptions():
        return []
    return [recipe for recipe in making.recipes if recipe.addition]


def size_of(recipe: Recipe) -> Budget:
    """The size that a recipe stands for."""
    return Budget(match=Recipe(recipe.file_type.name, recipe.file_type), addition=recipe.addition)


def _sized(budget: Budget, probe: Request, open_pass: Callable[[Request], Pass]) -> Budget:
    """A budget for the size of a recipe's file in bytes; any other as it is."""
    if budget.match is None:
        return budget
    with open_pass(replace(probe, make=replace(probe.make, recipes=(budget.match,)))) as planned:
        return Budget(int(planned.outputs[0].size * (1 + budget.addition)))
