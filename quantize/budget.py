"""Types for a given size: measure what each type costs each tensor, then spend the bytes where they help most.

The cost is what a table says that the predictions of the model lose (see `sensitivity`), or an error of the weights.
The error of a type for a tensor is its mean squared error relative to the mean square of the weights, weighted by the
importance of the columns where there is any, on rows spread evenly over the tensor; it counts as often as the tensor
has weights. The choice with the least sum under the budget is a multiple-choice knapsack, solved by dynamic programming
over the sizes that the file really has (padding included), in units of the budget's 2**15th part or finer; what the
rounding leaves is spent afterwards. Everything is deterministic: same input, same types.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heapreplace

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME, FLOATS, Format
from ggufsmith.container.layout import padded, rows_of
from ggufsmith.container.parallel import parallel_for
from ggufsmith.container.units import parse_size
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.pipeline.stream import Array, RowSource, Scratch
from ggufsmith.quantize.outputs import QuantizedFile
from ggufsmith.quantize.recipes.assign import BUDGET, Override, Recipe, Stored, assign, facts_of
from ggufsmith.quantize.recipes.files import format_recipe
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES, shown
from ggufsmith.quantize.recipes.rules import Facts, kept, needs_importance
from ggufsmith.quantize.rows import decode, encode
from ggufsmith.quantize.sensitivity import Sensitivity

SAMPLE = 1 << 17  # weights per tensor
PIECES = 32  # runs of rows that they are taken from
UNITS = 1 << 15
COMPARED = 8  # tensors
TABLE = 1 << 26  # bytes of picks that are kept at a time; beyond, they are made twice, piece by piece
F32 = BY_NAME["F32"]
CANDIDATES = (
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S Q2_K IQ3_XXS Q3_K IQ3_S IQ4_XS Q4_K Q4_0 IQ4_NL Q4_1 Q5_K Q5_0 Q5_1 Q6_K Q8_0"
).split()


@dataclass(frozen=True)
class Budget:
    """Bytes of the file, or bits per weight of its tensors, or a recipe whose file may not be smaller.

    addition: a part of the recipe's file that it may be larger.
    """

    size: int | None = None
    bits_per_weight: float | None = None
    match: Recipe | None = None
    addition: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """One format for one tensor: bytes in the file, padding included, and error (see the head of the module)."""

    format: Format
    nbytes: int
    error: float


@dataclass(frozen=True)
class Solved:
    """recipe: gives every tensor its type; text: the same as a recipe file.

    error: mean relative squared error; with a table, the KL divergence that it predicts, in nats per token.
    """

    recipe: Recipe
    text: str
    size: int
    error: float


PLACEHOLDER = Recipe("Q8_0", FILE_TYPES["Q8_0"])  # any recipe will do for the plan that `fit_budget` starts from


def budget_of(size: str | None, bits_per_weight: float | None) -> Budget | None:
    """From the options' texts: 4.5GiB, 500M (decimal), bytes; or bits. None if neither is given."""
    if size is not None and bits_per_weight is not None:
        raise Usage("--target-size and --target-bpw cannot be used together", fix="Leave out one of the two.")
    if bits_per_weight is not None:
        if not 0 < bits_per_weight <= 32:
            raise Usage(
                f"{bits_per_weight} is not a valid number of bits per weight",
                fix="Pass a positive number, for example --target-bpw 4.25.",
            )
        return Budget(bits_per_weight=bits_per_weight)
    if size is None:
        return None
    return Budget(parse_size(size))


def fit_budget(
    tensors: Sequence[RowSource],
    output: QuantizedFile,
    budget: Budget,
    *,
    sensitivity: Sensitivity | None = None,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda weights: None,
) -> Solved:
    """The best types for `tensors` under the budget, which is not a recipe.

    output: of any recipe for the same tensors, for what does not depend on types: its shards have as many headers.
    advance: told of weights, tensor by tensor.
    sensitivity: what the types cost; without it, their errors are measured.
    Usage for a budget below the smallest possible. Malformed for a weight that is NaN or infinite, and for a table that
    is that of another model.
    """
    plan = output.plan
    stored = [each.tensor for each in plan.assignments]
    importance = plan.importance
    facts = facts_of(plan.layout.metadata, importance=any(weights is not None for weights in importance))

    choices: list[list[Choice]] = [[] for _ in stored]
    alignment = plan.layout.alignment
    free = [index for index, each in enumerate(stored) if kept(each.name, each.shape, facts.architecture) is None]
    chosen_freely = frozenset(free)
    known = tabled([stored[index] for index in free], sensitivity)

    def measured(index: int) -> None:
        tensor = stored[index]
        if index not in chosen_freely:
            choices[index] = [Choice(tensor.format, padded(tensor.format.nbytes(tensor.shape), alignment), 0.0)]
        elif tensor.name in known:
            choices[index] = useful(tensor, known[tensor.name], alignment, importance[index] is not None)
        else:
            choices[index] = measure(tensors[index], tensor, importance[index], alignment)
        advance(math.prod(tensor.shape))

    parallel_for(lambda stop: measured, range(len(stored)), threads or available_cores())
    if known:
        _like_the_table(choices, tensors, output, free, known)
    headers = output.size - sum(padded(each.nbytes, alignment) for each in plan.assignments)
    limit = (budget.size or 0) - headers
    if budget.bits_per_weight is not None:
        limit = int(budget.bits_per_weight * plan.weights / 8)
    smallest = sum(min(choice.nbytes for choice in each) for each in choices)
    if limit < smallest:
        hint = "" if facts.importance else " (an --imatrix allows smaller types)"
        raise Usage(
            f"the smallest file possible has {smallest + headers} bytes, {8 * smallest / plan.weights:.2f} bits per "
            f"weight{hint}",
            fix="Raise the budget.",
        )
    picked = [each[k] for each, k in zip(choices, solve(choices, limit), strict=True)]
    size = sum(choice.nbytes for choice in picked)
    bits = 8 * size / plan.weights
    chosen = {
        tensor.name: choice.format.name
        for tensor, choice, each in zip(stored, picked, choices, strict=True)
        if len(each) > 1 or choice.format is not tensor.format
    }
    base = _file_type(stored, [choice.format for choice in picked], facts)
    error = sum(choice.error for choice in picked)
    if known:
        cost = f"predicted KL divergence {error:.3g}"
    else:
        error /= plan.weights
        cost = f"relative squared error {error:.3g}"
    description = f"{bits:.3f} bits per weight, {cost}"
    overrides = tuple(
        Override(BY_NAME[format], names=frozenset(name for name in chosen if chosen[name] == format), origin=BUDGET)
        for format in sorted(set(chosen.values()))
    )
    name = f"Q{bits:.2f}BPW".replace(".", "_")
    text = format_recipe(name, shown(base), description, chosen)
    return Solved(Recipe(name, FILE_TYPES[base], overrides, description), text, headers + size, error)


def measure(tensor: RowSource, stored: Stored, importance: NDArray[np.float32] | None, alignment: int) -> list[Choice]:
    """What each type would cost this tensor, the smallest first; types no better than a smaller one are left out."""
    rows, columns, pieces = _sample(tensor, importance)
    energy = sum(float((weights * x.astype(np.float64) ** 2).sum()) for x, weights, _ in pieces)
    found = []
    for format in candidates(stored, importance is not None):
        error = 0.0
        if format is not stored.format:
            error = sum(_error(format, *piece) for piece in pieces)
        share = error / energy if energy > 0 else 0.0
        found.append(Choice(format, padded(format.nbytes(stored.shape), alignment), share * rows * columns))
    return steps(found)


def useful(stored: Stored, losses: Mapping[str, float], alignment: int, importance: bool) -> list[Choice]:
    """As `measure`, of what a table says that types cost. Its own type costs nothing."""
    formats = {BY_NAME[name]: loss for name, loss in losses.items()}
    allowed = {format: formats[format] for format in candidates(stored, importance) if format in formats}
    if stored.format is not F32 or not allowed:
        allowed[stored.format] = 0.0
    return steps(
        [Choice(format, padded(format.nbytes(stored.shape), alignment), loss) for format, loss in allowed.items()]
    )


def steps(found: list[Choice]) -> list[Choice]:
    """The smallest first, without those that are no better than a smaller one."""
    best = math.inf
    better: list[Choice] = []
    for choice in sorted(found, key=lambda choice: (choice.nbytes, choice.error, choice.format.id)):
        if choice.error < best or not better:
            better.append(choice)
            best = choice.error
    return better


def tabled(stored: Sequence[Stored], sensitivity: Sensitivity | None) -> dict[str, Mapping[str, float]]:
    """What the table says of these tensors, by name. Malformed if it is that of another model."""
    if sensitivity is None:
        return {}
    found = {}
    for tensor in stored:
        known = sensitivity.tensors.get(tensor.name)
        if known is not None and _trimmed(known.shape) != _trimmed(tensor.shape):
            raise _of_another(f"{tensor.name} has the shape {list(tensor.shape)}, but {list(known.shape)} in the table")
        if known is not None and known.losses:
            found[tensor.name] = known.losses
    if stored and not found:
        raise _of_another("it has none of the tensors of this model")
    return found


def _of_another(why: str) -> Malformed:
    return Malformed(
        f"the table of sensitivities is that of another model: {why}",
        where="--sensitivity",
        fix="Make one of this model with `ggufsmith sensitivity`, or leave it out and use --calibrate.",
    )


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _like_the_table(
    choices: list[list[Choice]],
    tensors: Sequence[RowSource],
    output: QuantizedFile,
    free: Sequence[int],
    known: Mapping[str, Mapping[str, float]],
) -> None:
    """Turn the errors of tensors that the table lacks into losses: as if they were as sensitive as the others.

    The factor is the median of loss over error, of a few tensors that are in the table.
    """
    plan = output.plan
    missing = [index for index in free if plan.assignments[index].tensor.name not in known]
    there = [index for index in free if plan.assignments[index].tensor.name in known]
    if not missing:
        return
    ratios = []
    for index in there[:: -(-len(there) // COMPARED)]:
        tensor = plan.assignments[index].tensor
        errors = measure(tensors[index], tensor, plan.importance[index], plan.layout.alignment)
        losses = known[tensor.name]
        ratios += [
            losses[each.format.name] / each.error for each in errors if each.error > 0 and each.format.name in losses
        ]
    factor = float(np.median(ratios)) if ratios else 0.0
    for index in missing:
        choices[index] = [replace(each, error=each.error * factor) for each in choices[index]]


def solve(choices: Sequence[Sequence[Choice]], limit: int) -> list[int]:
    """For each tensor the index of its choice, so that the sum of errors is least and that of bytes at most `limit`.

    choices: by size. The smallest ones must fit. Exact in units of bytes that the sizes share, as long as those are at
    least a 2**15th of the room above the smallest; else a little less than the best.
    """
    extra = [[choice.nbytes - each[0].nbytes for choice in each] for each in choices]
    room = limit - sum(each[0].nbytes for each in choices)
    unit = max(math.gcd(*(size for each in extra for size in each)), -(-room // UNITS), 1)
    slots = room // unit
    units = [[-(-size // unit) for size in each] for each in extra]
    each = max(TABLE // (slots + 1), 1)  # tensors whose picks are kept at a time
    starts = range(0, len(choices), each)
    before = [np.zeros(slots + 1)]  # what is best without the tensors from each of `starts` on
    for start in starts[:-1]:
        before.append(_best(before[-1], choices[start : start + each], units[start : start + each]))
    picks = np.zeros((min(each, len(choices)), slots + 1), np.uint8)
    at, chosen = slots, [0] * len(choices)
    for start in reversed(starts):
        picks[:] = 0
        _best(before.pop(), choices[start : start + each], units[start : start + each], picks)
        for index in reversed(range(start, min(start + each, len(choices)))):
            chosen[index] = int(picks[index - start, at])
            at -= units[index][chosen[index]]
    _spend(choices, chosen, limit)
    return chosen


def _best(
    best: NDArray[np.float64],
    choices: Sequence[Sequence[Choice]],
    units: Sequence[Sequence[int]],
    picks: NDArray[np.uint8] | None = None,
) -> NDArray[np.float64]:
    """The least error for every number of units, of the tensors in `best` and of these.

    units: what each choice takes. picks: gets, for each of these tensors, the choice at every number of units.
    """
    for index, (each, sizes) in enumerate(zip(choices, units, strict=True)):
        total = best + each[0].error
        for k, shift in enumerate(sizes[1:], 1):
            if shift >= len(best):
                break
            other = best[: len(best) - shift] + each[k].error
            better = other < total[shift:]
            total[shift:][better] = other[better]
            if picks is not None:
                picks[index, shift:][better] = k
        best = total
    return best


def _spend(choices: Sequence[Sequence[Choice]], chosen: list[int], limit: int) -> None:
    """Use what rounding to units has left: the best improvement per byte that still fits, until none does."""
    left = limit - sum(each[k].nbytes for each, k in zip(choices, chosen, strict=True))

    def gain(index: int) -> tuple[float, int, int] | None:
        """The best improvement of one tensor, as (less is better, tensor, choice)."""
        each, now = choices[index], choices[index][chosen[index]]
        fitting = (
            ((each[k].error - now.error) / step, index, -k)
            for k in range(chosen[index] + 1, len(each))
            if 0 < (step := each[k].nbytes - now.nbytes) <= left
        )
        return min(fitting, default=None)

    gains = [found for index in range(len(choices)) if (found := gain(index))]
    heapify(gains)
    while gains:
        index = gains[0][1]
        found = gain(index)  # `left` may have become too small for what was best
        if found == gains[0]:
            k = -found[2]
            left -= choices[index][k].nbytes - choices[index][chosen[index]].nbytes
            chosen[index] = k
            found = gain(index)
        if found:
            heapreplace(gains, found)
        else:
            heappop(gains)


def candidates(stored: Stored, importance: bool) -> list[Format]:
    """What this tensor could be: types whose blocks fit its rows and make sense for it, and its own."""
    width = stored.shape[-1]
    formats = [BY_NAME[name] for name in CANDIDATES]
    fitting = [
        format
        for format in formats
        if width % format.weights == 0 and (importance or not needs_importance(stored.name, format.name, ""))
    ]
    if stored.format not in fitting and stored.format is not F32:
        fitting.append(stored.format)
    return fitting or [BY_NAME["F16"]]


Piece = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]


def _sample(tensor: RowSource, importance: NDArray[np.float32] | None) -> tuple[int, int, list[Piece]]:
    """Rows, columns, and pieces of rows: (weights, importance or ones, importance or None), spread evenly."""
    rows, columns = rows_of(tensor.shape)
    groups = -(-rows // tensor.granule)
    wanted = min(max(SAMPLE // (columns * tensor.granule), 1), groups)
    count = min(PIECES, wanted)
    pieces = []
    for k in range(count):
        start = (k * groups // count) * tensor.granule
        stop = min(start + (wanted // count) * tensor.granule, rows)
        slice_ = importance
        if importance is not None and importance.ndim == 2:
            slice_ = np.ascontiguousarray(importance[start * len(importance) // rows])
            stop = min(stop, -(-(start + 1) * len(importance) // rows) * rows // len(importance))
        x = _wide(tensor, start, stop)
        weights = np.ones(columns, np.float32) if slice_ is None or not slice_.any() else slice_
        pieces.append((x, weights, slice_))
    return rows, columns, pieces


def _wide(tensor: RowSource, start: int, stop: int) -> NDArray[np.float32]:
    held = tensor.held
    raw: Array = np.ascontiguousarray(tensor.rows(start, stop, Scratch()))
    wide = np.empty((stop - start, rows_of(tensor.shape)[1]), np.float32)
    if held.name in FLOATS:
        encode(F32, raw, wide.view(np.uint8), source=held)
    else:
        decode(held, raw, wide)
    if not np.isfinite(wide).all():
        raise Malformed(
            f"weights are NaN or infinite, among rows {start} to {stop - 1}",
            where=tensor.origin,
            fix="The model is damaged. Download it again.",
        )
    return wide


def _error(
    format: Format, x: NDArray[np.float32], weights: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> float:
    block = np.empty((len(x), format.nbytes((x.shape[1],))), np.uint8)
    encode(format, x, block, importance=importance)
    back = np.empty_like(x)
    decode(format, block, back)
    return float((weights * (x.astype(np.float64) - back) ** 2).sum())


def _file_type(stored: Sequence[Stored], picked: Sequence[Format], facts: Facts) -> str:
    """What general.file_type will say: of the mixtures on the format of most weights, the one nearest in size."""
    bases = {kind.base for kind in FILE_TYPES.values()}
    weights: Counter[Format] = Counter({F32: 0})
    for tensor, format in zip(stored, picked, strict=True):
        if format in bases:
            weights[format] += math.prod(tensor.shape)
    most = max(weights, key=lambda format: (weights[format], -format.id))
    size = sum(format.nbytes(tensor.shape) for tensor, format in zip(stored, picked, strict=True))

    def distance(name: str) -> float:
        try:
            mixture = assign(Recipe(name, FILE_TYPES[name]), stored, facts)
        except Unsupported:  # some widths fit no block of it; the rules of this mixture are not needed
            return math.inf
        return abs(sum(each.nbytes for each in mixture) - size)

    return min((name for name, kind in FILE_TYPES.items() if kind.base is most), key=distance)
