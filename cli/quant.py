"""`gguf-quant`: options, what is shown, the report."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufsmith.cli.fromfile import AllowRequantize, OverrideKv, Tokenizer, vocabulary_for
from ggufsmith.cli.options import (
    AsJson,
    MaxSize,
    MaxTensors,
    NoOverwrite,
    NoSync,
    NoTensorFirst,
    Quiet,
    Resume,
    Scheduler,
    Threads,
    Version,
    check_places,
    limits_of,
)
from ggufsmith.cli.publish import Card, Hashes, Provenance, StrictName, Wishes, publish, small_files

if TYPE_CHECKING:
    from ggufsmith.convert import quantized
    from ggufsmith.convert.run import Job as ConvertJob
    from ggufsmith.pipeline.outputs import Written
    from ggufsmith.quantize import requantize
    from ggufsmith.quantize.budget import Budget
    from ggufsmith.quantize.outputs import QuantizedFile
    from ggufsmith.quantize.recipes.assign import Recipe, TypeOptions
    from ggufsmith.quantize.requantize import Job

Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", "-r", metavar="NAME", help="A file type or a recipe file; may be given several times."),
]
Imatrix = Annotated[Path | None, typer.Option("--imatrix", metavar="FILE", help="Importance matrix, GGUF or .dat.")]
Include = Annotated[
    list[str] | None, typer.Option("--include-weights", metavar="NAME", help="Use it only for these tensors.")
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude-weights", metavar="NAME", help="Do not use it for these tensors.")
]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mixture.")]
LeaveOutput = Annotated[bool, typer.Option("--leave-output-tensor", help="Keep output.weight as it is.")]
OutputType = Annotated[str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="For output.weight.")]
EmbeddingType = Annotated[
    str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="For the token embeddings.")
]
TensorTypes = Annotated[
    list[str] | None, typer.Option("--tensor-type", metavar="REGEX=TYPE", help="For tensors with such names.")
]
TensorTypeFile = Annotated[
    Path | None, typer.Option("--tensor-type-file", metavar="FILE", help="A file of REGEX=TYPE.")
]
TargetSize = Annotated[
    str | None, typer.Option("--target-size", metavar="SIZE", help="Choose the types for a file of this size: 4.5GiB.")
]
TargetBpw = Annotated[
    float | None, typer.Option("--target-bpw", metavar="BITS", help="Choose the types for these bits per weight.")
]
SaveRecipe = Annotated[
    Path | None, typer.Option("--save-recipe", metavar="FILE.toml", help="Where the chosen types go.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail if a tensor cannot have the type of its rule.")]


def quant(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="The model; of several shards, any one.")],
    recipe: Recipes = None,
    outfile: Annotated[Path | None, typer.Option("--outfile", "-o", help="The output, for a single recipe.")] = None,
    outdir: Annotated[Path | None, typer.Option(help="Folder for outputs named after the model.")] = None,
    imatrix: Imatrix = None,
    include_weights: Include = None,
    exclude_weights: Exclude = None,
    pure: Pure = False,
    leave_output_tensor: LeaveOutput = False,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    tensor_type: TensorTypes = None,
    tensor_type_file: TensorTypeFile = None,
    prune_layers: Annotated[str | None, typer.Option(metavar="L,L,…", help="Leave out these layers.")] = None,
    override_kv: OverrideKv = None,
    tokenizer: Tokenizer = None,
    keep_split: Annotated[bool, typer.Option("--keep-split", help="As many shards as the input has.")] = False,
    split_max_size: MaxSize = None,
    split_max_tensors: MaxTensors = None,
    no_tensor_first_split: NoTensorFirst = False,
    allow_requantize: AllowRequantize = False,
    target_size: TargetSize = None,
    target_bpw: TargetBpw = None,
    save_recipe: SaveRecipe = None,
    strict: Strict = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show types and exact sizes; write nothing.")] = False,
    threads: Threads = None,
    scheduler: Scheduler = None,
    no_sync: NoSync = False,
    no_overwrite: NoOverwrite = False,
    resume: Resume = False,
    strict_name: StrictName = False,
    sha256: Hashes = False,
    provenance: Provenance = False,
    card: Card = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Quantize a GGUF file, or a GGML file from before it, by any number of recipes, in one pass.

    The bytes are those of llama-quantize. Outputs appear under their names only when complete and verified.
    """
    from ggufsmith.cli.app import guarded

    def work() -> None:
        from ggufsmith.quantize.recipes.options import layers_of
        from ggufsmith.quantize.requantize import Job, parse_override

        check_places(outfile, outdir)
        recipes, options = choose(
            recipe,
            pure=pure,
            leave_output=leave_output_tensor,
            output_type=output_tensor_type,
            embedding_type=token_embedding_type,
            types=tensor_type,
            types_file=tensor_type_file,
        )
        vocabulary, notes = vocabulary_for(model, tokenizer)
        job = Job(
            source=model,
            recipes=recipes,
            output=outfile,
            outdir=outdir,
            options=options,
            imatrix=imatrix,
            include=tuple(include_weights or ()),
            exclude=tuple(exclude_weights or ()),
            prune=layers_of(prune_layers) if prune_layers is not None else (),
            metadata=dict(map(parse_override, override_kv or ())),
            vocabulary=vocabulary,
            notes=notes,
            allow_requantize=allow_requantize,
            strict=strict,
            split=keep_split,
            limits=limits_of(split_max_size, split_max_tensors, no_tensor_first_split),
            threads=threads,
            sync=not no_sync,
            overwrite=not no_overwrite,
            resume=resume,
            strict_name=strict_name,
            scheduler=scheduler,
        )
        budget = target(target_size, target_bpw, recipes, options, save_recipe)
        wishes = Wishes(sha256, provenance, card, not no_overwrite, as_json, quiet)
        run_quant(job, budget, wishes, dry_run=dry_run)

    guarded(work, as_json)


def choose(
    names: list[str] | None,
    *,
    pure: bool = False,
    leave_output: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
    types: list[str] | None = None,
    types_file: Path | None = None,
) -> tuple[tuple["Recipe", ...], "TypeOptions"]:
    """Recipes and type options from their texts. Usage for what does not exist or fit together."""
    from ggufsmith.container.errors import Unsupported, Usage
    from ggufsmith.container.formats import format_of
    from ggufsmith.quantize.recipes.assign import TypeOptions
    from ggufsmith.quantize.recipes.files import recipe_of
    from ggufsmith.quantize.recipes.options import check_options, override_of, overrides_of_file

    recipes = tuple(map(recipe_of, names or ()))
    try:
        output = format_of(output_type) if output_type else None
        embedding = format_of(embedding_type) if embedding_type else None
    except Unsupported as error:
        raise Usage(error.what, fix=error.fix) from None
    overrides = [*map(override_of, types or ()), *(overrides_of_file(types_file) if types_file else ())]
    options = TypeOptions(pure, leave_output, output, embedding, tuple(overrides))
    check_options(options, list(recipes))
    return recipes, options


@dataclass(frozen=True)
class BudgetRequest:
    """A budget, and where the recipe that fits it goes; by default beside the output, under its name."""

    budget: "Budget"
    save: Path | None


def target(
    size: str | None, bits: float | None, recipes: tuple["Recipe", ...], options: "TypeOptions", save: Path | None
) -> BudgetRequest | None:
    """The budget that the options ask for. Usage for options that it contradicts."""
    from ggufsmith.container.errors import Usage
    from ggufsmith.quantize.budget import budget_of
    from ggufsmith.quantize.recipes.assign import TypeOptions

    budget = budget_of(size, bits)
    if save is not None and save.suffix != ".toml":
        raise Usage("recipe files are known by their names", where=save, fix=f"Write --save-recipe {save}.toml.")
    if budget is None:
        if save is not None:
            raise Usage("--save-recipe saves what --target-size or --target-bpw chooses", fix="Give one of them.")
        return None
    if recipes or options != TypeOptions():
        raise Usage(
            "--target-size and --target-bpw choose every type; recipes and types cannot be given as well",
            fix="Leave one of the two out; the recipe that is chosen can be edited and used again.",
        )
    return BudgetRequest(budget, save)


def run_quant(job: "Job", budget: BudgetRequest | None, wishes: Wishes, *, dry_run: bool) -> None:
    """gguf-quant: plan, show, run, sum up."""
    from ggufsmith.cli import render
    from ggufsmith.quantize import requantize

    text = None
    if budget:
        with render.progress("measuring", _weights_of(job.source), wishes.silent) as advance:
            job, solved = requantize.with_budget(job, budget.budget, advance)
        text = solved.text
    with requantize.prepare(job) as prepared:
        inputs = {"input": [str(path) for path in prepared.source.paths], "source_bytes": prepared.source.size}
        saved = _saved(text, budget, prepared.outputs[0].path, dry_run, job.overwrite)
        files = [*prepared.source.paths, *_given(job.imatrix)]
        _work(prepared, requantize.run, inputs, wishes, files, dry_run=dry_run)
        _save(text, saved, wishes.silent)


def run_convert_quant(
    job: "ConvertJob",
    quantization: "quantized.Quantization",
    budget: BudgetRequest | None,
    wishes: Wishes,
    *,
    dry_run: bool,
) -> None:
    """gguf-convert --recipe: the same from a checkpoint."""
    from ggufsmith.cli import render
    from ggufsmith.convert import quantized

    text = None
    if budget:
        with render.progress("measuring", None, wishes.silent) as advance:
            quantization, solved = quantized.with_budget(job, quantization, budget.budget, advance)
        text = solved.text
    prepared = quantized.prepare(job, quantization)
    converted = prepared.converted
    inputs = {
        "input": str(converted.checkpoint.folder),
        "architecture": converted.plan.architecture.name,
        "source_bytes": converted.source_bytes,
    }
    folder = converted.checkpoint.folder
    files = [*converted.checkpoint.files, *small_files(folder), *_given(quantization.imatrix)]
    saved = _saved(text, budget, prepared.outputs[0].path, dry_run, job.overwrite)
    _work(prepared, quantized.run, inputs, wishes, files, dry_run=dry_run)
    _save(text, saved, wishes.silent)


def _given(path: Path | None) -> list[Path]:
    return [] if path is None else [path]


def _weights_of(path: Path) -> int:
    from ggufsmith.quantize.source import open_model

    with open_model(path).files as source:
        return sum(math.prod(info.shape) for info in source.tensors.values())


def _saved(text: str | None, budget: BudgetRequest | None, output: Path, dry_run: bool, overwrite: bool) -> Path | None:
    """Where the recipe that was found goes; a dry run writes it only where it was asked for.

    OutputConflict if it may not replace what is there, Usage if its folder is not there.
    """
    from ggufsmith.container.errors import OutputConflict, Usage

    if text is None or budget is None or (dry_run and budget.save is None):
        return None
    path = budget.save or output.with_name(f"{output.name.removesuffix('.gguf')}.toml")
    if budget.save and not path.parent.is_dir():
        raise Usage(
            "the folder of the recipe does not exist", where=path.parent, fix="Name another with --save-recipe."
        )
    if not overwrite and path.exists():
        raise OutputConflict("the recipe exists already", where=path, fix="Name another with --save-recipe.")
    return path


def _save(text: str | None, path: Path | None, silent: bool) -> None:
    """Write the recipe that was found (see `replace_text`)."""
    from ggufsmith.cli import render
    from ggufsmith.container.replace import replace_text

    if text is None or path is None:
        return
    replace_text(path, text)
    if not silent:
        render.lines(iter([("recipe", str(path))]))


def _work(
    prepared: "requantize.Prepared | quantized.Prepared",
    run: Callable[..., "Written"],
    inputs: dict[str, Any],
    wishes: Wishes,
    files: list[Path],
    *,
    dry_run: bool,
) -> None:
    from ggufsmith.cli import render

    for output in prepared.outputs:
        output.check_apart(prepared.inputs)
    if dry_run:
        _show_plan(prepared, inputs, wishes.machine)
        return
    wishes.check(prepared.outputs)
    silent = wishes.silent
    if not silent:
        for note in prepared.notes:
            render.line(f"note: {note}", render.err)
    title = ", ".join(output.path.name for output in prepared.outputs)
    with render.progress(title, prepared.weights, silent) as advance:
        written = run(prepared, advance, (lambda seconds: None) if silent else render.kernels)
    report, rate = _report(prepared, inputs), prepared.weights / written.seconds
    lines = list(publish(wishes, prepared.outputs, files, report["outputs"]))
    if wishes.machine:
        more = {"found": list(written.notes), "seconds": written.seconds, "weights_per_second": rate}
        render.as_json({**report, **more})
    elif not wishes.quiet:
        render.lines(chain(_summary(prepared, written), lines))


# ---- what is shown ----


def _types(output: "QuantizedFile") -> dict[str, int]:
    return dict(Counter(each.format.name for each in output.plan.assignments).most_common())


def _report(prepared: "requantize.Prepared | quantized.Prepared", inputs: dict[str, Any]) -> dict[str, Any]:
    coverage = prepared.importance.coverage if prepared.importance else None
    return {
        **inputs,
        "parameters": prepared.weights,
        "notes": list(prepared.notes),
        "importance": coverage and {"covered": coverage.covered, "missing": coverage.missing},
        "outputs": [
            {
                "recipe": output.plan.recipe.name,
                "output": [str(path) for path in output.paths],
                "bytes": output.size,
                "bits_per_weight": output.plan.bits_per_weight,
                "tensor_count": len(output.plan.assignments),
                "types": _types(output),
                "fallbacks": [each.tensor.name for each in output.plan.fallbacks],
                "requantized": [each.tensor.name for each in output.plan.requantized],
                "notes": list(output.plan.notes()),
            }
            for output in prepared.outputs
        ],
    }


def _tensors(output: "QuantizedFile") -> Iterator[dict[str, Any]]:
    for each, offset in zip(output.plan.assignments, output.shards.whole.offsets, strict=True):
        yield {
            "name": each.tensor.name,
            "shape": list(each.tensor.shape),
            "source_type": each.tensor.format.name,
            "type": each.format.name,
            "wanted_type": each.wanted.name,
            "reason": each.reason,
            "bytes": each.nbytes,
            "offset": offset,
        }


def _show_plan(prepared: "requantize.Prepared | quantized.Prepared", inputs: dict[str, Any], machine: bool) -> None:
    from ggufsmith.cli import render

    if machine:
        report = _report(prepared, inputs)
        for entry, output in zip(report["outputs"], prepared.outputs, strict=True):
            entry["tensors"] = list(_tensors(output))
        render.as_json(report)
        return
    for output in prepared.outputs:
        rows = [
            (
                t["name"],
                " x ".join(map(str, t["shape"])),
                t["source_type"],
                t["type"],
                render.size(t["bytes"]),
                t["reason"],
            )
            for t in _tensors(output)
        ]
        render.table(rows)
        render.lines(_facts(output))
    for note in prepared.notes:
        render.line(f"note: {note}")


def _facts(output: "QuantizedFile") -> Iterator[tuple[str, str]]:
    from ggufsmith.cli import render

    plan = output.plan
    for path in output.paths:
        yield "output", str(path)
    yield "size", f"{render.size(output.size)} ({output.size} bytes)"
    types = ", ".join(f"{number} {name}" for name, number in _types(output).items())
    yield "tensors", f"{len(plan.assignments)} ({types}), {plan.bits_per_weight:.2f} bits per weight"
    for note in plan.notes():
        yield "note", note


def _summary(prepared: "requantize.Prepared | quantized.Prepared", written: "Written") -> Iterator[tuple[str, str]]:
    from ggufsmith.cli import render

    for output in prepared.outputs:
        yield from _facts(output)
    for note in written.notes:
        yield "note", note
    rate = prepared.weights / max(written.seconds, math.ulp(1.0))
    yield "done", f"verified, in {written.seconds:.1f} s ({render.count(rate)} weights/s)"
