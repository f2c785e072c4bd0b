"""One pass over a model of a job: everything wanted of it that is not there yet, read once, written side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ggufsmith.container.layout import rows_of
from ggufsmith.convert.batch.job import JobModel, WantedOutput
from ggufsmith.convert.dequantize import store
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.hub.ahead import BLOCK, KEPT
from ggufsmith.convert.lora.merge import Updated
from ggufsmith.convert.lora.steps import LowRank
from ggufsmith.convert.open import open_pass
from ggufsmith.convert.tensors import ConvertedTensor
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request
from ggufsmith.pipeline.stream import CHUNK, RowSource
from ggufsmith.quantize.measured import silently, size_of, with_budgets
from ggufsmith.quantize.recipes.assign import TypeOptions
from ggufsmith.quantize.resolve import type_options

# Memory, measured as peaks of whole processes: the interpreter with numpy and the loaded kernels; what the
# kernels and samples of all types take where a budget chooses among them; what is read ahead of a stream; and, of what
# a vocabulary takes while it is read and held, the share of the header that it becomes.
PROCESS = 200 * 10**6
MEASURING = 200 * 10**6
STREAMING = KEPT * BLOCK
PER_HEADER_BYTE = 40
# What a model takes that is run to be calibrated: torch and transformers; matrices of the size of H; windows
# and tokens.
TORCH = 700 * 10**6
MATRICES = 4
WINDOWS, CONTEXT = 300, 512
STATES = 1 << 30  # see evaluate.forward.MEMORY


@dataclass(frozen=True)
class JobPass:
    """A pass, and what each of its outputs is for the job, in the same order."""

    made: Pass
    wanted: tuple[WantedOutput, ...]


def plan_model(
    model: JobModel,
    wanted: Sequence[WantedOutput],
    opener: Callable[[Request], Pass] = open_pass,
    *,
    threads: int | None = None,
) -> JobPass:
    """Plan these outputs of a model. Raises what is wrong with it. opener: plans a request (see `located`).

    threads: that measure weights, where a budget chooses the recipe.
    """
    wanted = [_solved(model, each, opener, threads) for each in wanted]
    projectors = [each for each in wanted if each.projector]
    plain = [each for each in wanted if each.recipe is None and not each.projector]
    recipes = [each for each in wanted if each.recipe is not None]
    request = _asking(model.request, plain, recipes, projectors)
    planned = opener(request)
    ordered = (*plain, *recipes, *projectors)
    made = planned.outputs[-len(ordered) :]  # a projector alone is planned with a text model, and made without it
    outputs = tuple(replace(output, path=each.path) for each, output in zip(ordered, made, strict=True))
    return JobPass(replace(planned, outputs=outputs), ordered)


def _asking(
    request: Request,
    plain: Sequence[WantedOutput],
    recipes: Sequence[WantedOutput],
    projectors: Sequence[WantedOutput],
) -> Request:
    """The request for these outputs."""
    make = replace(
        request.make,
        outtypes=tuple(each.label for each in plain),
        recipes=tuple(each.recipe for each in recipes if each.recipe),
        sensitivity=None,  # it has chosen
        mmproj=bool(projectors),
        mmproj_outtype=projectors[0].projector if projectors else None,
    )
    return replace(request, make=make)


def _solved(
    model: JobModel, wanted: WantedOutput, opener: Callable[[Request], Pass], threads: int | None
) -> WantedOutput:
    """With the recipe that fits its budget best, if it has one and no recipe yet; with a table of sensitivities, so are
    recipes that stand for a size.
    """
    make, budget = model.request.make, wanted.budget
    if wanted.recipe is not None:
        measured = make.sensitivity and wanted.recipe.addition and type_options(make) == TypeOptions()
        budget = size_of(wanted.recipe) if measured else None
    if budget is None:
        return wanted
    request = replace(model.request, write=replace(model.request.write, threads=threads))
    (solved,) = with_budgets(request, opener, silently, budgets=(budget,))[1]
    name = wanted.recipe.name if wanted.recipe else wanted.label
    return replace(wanted, recipe=replace(solved.recipe, name=name))


def memory(planned: JobPass, model: JobModel, threads: int) -> int:
    """About the bytes that a pass needs at its peak, besides PROCESS: the buffers of a chunk in each thread, the header
    with its vocabulary, the importance matrix, the factors of adapters.
    """
    made = planned.made
    chunk = max(max(CHUNK, tensor.granule * rows_of(tensor.shape)[1]) for tensor in made.tensors)
    header = max(len(output.shards.whole.header) for output in made.outputs)
    imatrix = model.request.make.imatrix
    importance = imatrix.stat().st_size if imatrix else 0
    return (
        threads * chunk * 4 * (3 + len(made.outputs))
        + PER_HEADER_BYTE * header
        + 3 * importance
        + _factors(made.tensors, threads)
        + _learning(model, made.tensors)
        + fixed(model, planned.wanted)
    )


def fixed(model: JobModel, wanted: Sequence[WantedOutput]) -> int:
    """The part of `memory` that is known before anything is planned."""
    measuring = MEASURING if any(each.budget for each in wanted) else 0
    return measuring + (STREAMING if model.hub and model.request.source.stream else 0)


def _learning(model: JobModel, tensors: Sequence[RowSource]) -> int:
    """What calibrating takes besides: torch, a block of the model, H and its factor for every width of its inputs, and
    the hidden states of the text.
    """
    if not model.request.make.calibrate:
        return 0
    blocks: dict[str, list[tuple[int, ...]]] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1 and tensor.name.startswith("blk."):
            blocks.setdefault(tensor.name.split(".")[1], []).append(tensor.shape)
    matrices = [
        sum(8 * math.prod(shape) for shape in shapes)
        + sum(MATRICES * 4 * math.prod(key[:-1]) * key[-1] ** 2 for key in {(*s[:-2], s[-1]) for s in shapes})
        for shapes in blocks.values()
    ]
    hidden = max((min(shape) for shapes in blocks.values() for shape in shapes), default=0)
    windows = model.request.make.calibrate_chunks or WINDOWS
    states = min(4 * windows * CONTEXT * hidden, STATES)
    return TORCH + max(matrices, default=0) + states


def _factors(tensors: Sequence[RowSource], threads: int) -> int:
    """What the low-rank factors of a merge take: some stay, as float32, and each thread may be at another one."""
    updates = (
        step.update
        for tensor in tensors
        if isinstance(tensor, ConvertedTensor)
        for source in tensor.output.sources
        if isinstance(source, DequantizedTensor) and isinstance(source.weights, Updated)
        for step in source.weights.steps
        if isinstance(step, LowRank)
    )
    sizes = [4 * math.prod(factor.shape) for update in updates for factor in (update.down, update.up)]
    return min(sum(sizes), store.KEPT) + threads * max(sizes, default=0)
