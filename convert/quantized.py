"""From a checkpoint straight to quantized files: each tensor is read and transformed once, for all recipes.

Each file equals converting to the checkpoint's own precision and quantizing that with `quantize.requantize`; the file
in between is planned, and never written.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gguf.constants import Keys

from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import Format
from ggufsmith.container.shards import Limits, plan_shards
from ggufsmith.container.values import Metadata, u32
from ggufsmith.convert import run as conversion
from ggufsmith.convert.checkpoint import Checkpoint
from ggufsmith.convert.lora.peft import is_adapter
from ggufsmith.convert.plan import Plan
from ggufsmith.convert.tensors import ConvertedTensor, exact_format, tensors_of
from ggufsmith.naming.filename import FileName
from ggufsmith.naming.suggest import name_of
from ggufsmith.pipeline.outputs import OutputFile, Written
from ggufsmith.quantize.budget import PLACEHOLDER, Budget, Solved, fit_budget
from ggufsmith.quantize.imatrix import open_imatrix
from ggufsmith.quantize.outputs import QuantizedFile, fit_importance, output_paths
from ggufsmith.quantize.plan import Importance, plan_file
from ggufsmith.quantize.recipes.assign import Recipe, Stored, TypeOptions, facts_of, file_order
from ggufsmith.quantize.recipes.filetypes import file_type_of


@dataclass(frozen=True)
class Quantization:
    """What to quantize to; see `quantize.requantize.Job`."""

    recipes: tuple[Recipe, ...]
    options: TypeOptions = field(default_factory=TypeOptions)
    imatrix: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True)
class Prepared:
    """Everything decided, nothing written. converted: the conversion to the checkpoint's own precision."""

    converted: conversion.Prepared
    quantization: Quantization
    outputs: tuple[QuantizedFile, ...]
    importance: Importance | None
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        return self.converted.weights

    @property
    def inputs(self) -> tuple[Path, ...]:
        imatrix = self.quantization.imatrix
        return (*self.converted.inputs, *([imatrix] if imatrix else []))


def prepare(job: conversion.Job, quantization: Quantization) -> Prepared:
    """Plan the conversion and every recipe. Raises what is wrong with the input or the recipes."""
    if job.vocab_only:
        raise Usage("a file that holds the vocabulary only has nothing to quantize", fix="Drop --recipe.")
    if not quantization.imatrix and (quantization.include or quantization.exclude):
        raise Usage(
            "--include-weights and --exclude-weights choose entries of an importance matrix", fix="Add --imatrix FILE."
        )
    if is_adapter(job.folder):
        raise Usage(
            "an adapter is converted as it is, and not quantized",
            where=job.folder,
            fix="Drop --recipe, or merge it: pass the folder of its base model, and the adapter with --lora.",
        )
    converted = conversion.prepare(replace(job, outtype="auto", limits=Limits()))
    imatrix = None
    if quantization.imatrix:
        imatrix = open_imatrix(quantization.imatrix, quantization.include, quantization.exclude)
    layout = converted.layout
    facts = facts_of(layout.metadata, importance=imatrix is not None)
    by_name = {spec.name: Stored(spec.name, spec.shape, spec.format) for spec in layout.tensors}
    tensors = [by_name[name] for name in file_order(by_name)]
    as_they_are = _as_they_are(tensors, converted)
    importance = fit_importance(imatrix, tensors, facts) if imatrix else None
    name = FileName(converted.origin.name.strip().replace(" ", "-"))
    if job.strict_name:
        name = name_of(layout.metadata, {tensor.name: tensor.shape for tensor in tensors}, strict=True)
    outputs = []
    paths = output_paths(name, quantization.recipes, job.outfile, job.outdir or converted.origin.home)
    for recipe, path in zip(quantization.recipes, paths, strict=True):
        copied = recipe.file_type.base is None
        plan = plan_file(
            recipe,
            *(as_they_are if copied else (tensors, layout.metadata)),
            facts,
            quantization.options,
            importance=importance,
            alignment=layout.alignment,
            strict=quantization.strict,
        )
        counts = job.limits.counts(plan.layout.tensors, layout.alignment)
        outputs.append(QuantizedFile(plan_shards(plan.layout, counts), path, plan))
    notes = (*converted.notes, *(importance.coverage.notes() if importance else ()))
    return Prepared(converted, quantization, tuple(outputs), importance, notes)


def _as_they_are(tensors: Sequence[Stored], converted: conversion.Prepared) -> tuple[list[Stored], Metadata]:
    """The tensors in the block types that hold them without loss, and metadata with the file type that most have."""
    exact = {output.name: exact_format(output) for output in converted.plan.outputs}
    kept = [replace(tensor, format=exact[tensor.name] or tensor.format) for tensor in tensors]
    sizes: Counter[str] = Counter()
    for tensor in kept:
        sizes[tensor.format.name] += math.prod(tensor.shape)
    file_type = file_type_of(sizes.most_common(1)[0][0])
    if not any(exact.values()) or file_type is None or file_type.number is None:
        return kept, converted.layout.metadata
    return kept, {**converted.layout.metadata, Keys.General.FILE_TYPE: u32(file_type.number)}


def with_budget(
    job: conversion.Job,
    quantization: Quantization,
    budget: Budget,
    advance: Callable[[int], None] = lambda weights: None,
) -> tuple[Quantization, Solved]:
    """With the recipe that fits the budget best (see `budget.fit_budget`)."""
    prepared = prepare(job, replace(quantization, recipes=(PLACEHOLDER,), strict=False))
    with prepared.converted.checkpoint as checkpoint:
        solved = fit_budget(
            _tensors(prepared, checkpoint), prepared.outputs[0], budget, threads=job.threads, advance=advance
        )
    return replace(quantization, recipes=(solved.recipe,)), solved


def tensors_for(checkpoint: Checkpoint, plan: Plan, outputs: Sequence[OutputFile]) -> tuple[ConvertedTensor, ...]:
    """The plan's tensors, in the order of the last output, exact where an output has the sources' own format."""
    wanted: dict[str, set[Format]] = {}
    for output in outputs:
        for spec in output.shards.whole.tensors:
            wanted.setdefault(spec.name, set()).add(spec.format)
    by_name = {tensor.name: tensor for tensor in tensors_of(checkpoint, plan.outputs, wanted)}
    return tuple(by_name[spec.name] for spec in outputs[-1].shards.whole.tensors)


def _tensors(prepared: Prepared, checkpoint: Checkpoint) -> tuple[ConvertedTensor, ...]:
    return tensors_for(checkpoint, prepared.converted.plan, prepared.outputs)


def run(
    prepared: Prepared,
    advance: Callable[[int], None] = lambda weights: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Written:
    """Convert, quantize, verify, and give the files their names (see `write_outputs`)."""
    with prepared.converted.checkpoint as checkpoint:
        return conversion.write(
            prepared.converted.job,
            checkpoint,
            _tensors(prepared, checkpoint),
            prepared.outputs,
            inputs=prepared.inputs,
            advance=advance,
            loaded=loaded,
        )
