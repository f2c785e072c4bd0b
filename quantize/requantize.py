"""GGUF in, any number of quantized GGUF files out, in one pass over the weights."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from ggufsmith.container.disk import make_folder
from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.formats import Format
from ggufsmith.container.layout import rows_of
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import GgufSet, Limits, plan_shards
from ggufsmith.container.values import Metadata, Value, boolean, f32, i32, string, u32
from ggufsmith.naming.suggest import name_of
from ggufsmith.pipeline.outputs import ClusterWork, Written, write_outputs
from ggufsmith.pipeline.stream import Array, Scratch
from ggufsmith.quantize.budget import PLACEHOLDER, Budget, Solved, fit_budget
from ggufsmith.quantize.checks import nonfinite
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.imatrix import open_imatrix
from ggufsmith.quantize.outputs import QuantizedFile, fit_importance, output_paths
from ggufsmith.quantize.plan import Importance, plan_file
from ggufsmith.quantize.recipes.assign import Recipe, Stored, TypeOptions, facts_of, file_order
from ggufsmith.quantize.recipes.rules import BLOCK, Facts, block_of
from ggufsmith.quantize.source import OpenedModel, open_model

MAX_U32 = 2**32 - 1


@dataclass(frozen=True)
class Job:
    """One run of gguf-quant.

    output:   the file, for a single recipe; else outputs are named after the source, in `outdir` or beside it.
    imatrix:  an importance matrix; include, exclude: see `open_imatrix`.
    prune:    layers to leave out.
    metadata: keys to set in the outputs; the rules see them too. vocabulary: `tokenizer.*` keys instead of the file's.
    notes:    what to report besides, of whoever made the job.
    limits:   where a new shard begins; split: as many shards as the source instead.
    threads:  None takes every core this process may use.
    sync:     False leaves flushing to the operating system.
    scheduler: of the Dask cluster that does the work; None does it here.
    resume:   go on from what an interrupted run of the same job left.
    strict_name: outputs are named by the letter of the convention, with a size and a version.
    """

    source: Path
    recipes: tuple[Recipe, ...]
    output: Path | None = None
    outdir: Path | None = None
    options: TypeOptions = field(default_factory=TypeOptions)
    imatrix: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prune: tuple[int, ...] = ()
    metadata: Metadata = field(default_factory=dict)
    vocabulary: Metadata | None = None
    notes: tuple[str, ...] = ()
    allow_requantize: bool = False
    strict: bool = False
    limits: Limits = field(default_factory=Limits)
    split: bool = False
    threads: int | None = None
    sync: bool = True
    overwrite: bool = True
    scheduler: str | None = None
    resume: bool = False
    strict_name: bool = False


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of an opened model, to be streamed (see `stream.RowSource`). name: what the output calls it."""

    source: GgufSet
    info: TensorInfo
    name: str

    granule = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """A vector in blocks is one row."""
        vector = len(self.info.shape) == 1 and not self.info.format.plain
        return (1, *self.info.shape) if vector else self.info.shape

    @property
    def held(self) -> Format:
        return self.info.format

    @property
    def origin(self) -> str:
        return f"{self.source.file_of(self.info).path}: {self.info.name}"

    @property
    def stored(self) -> Stored:
        return Stored(self.name, self.info.shape, self.info.format)

    def rows(self, start: int, stop: int, scratch: Scratch) -> Array:
        count, width = rows_of(self.shape)
        size = self.info.nbytes // count
        buffer = scratch.take((stop - start) * size)
        self.source.read_into(self.info, start * size, buffer)
        if self.held.plain:
            return buffer.view(self.held.dtype["x"]).reshape(stop - start, width)
        _check_scales(self.held, buffer, self.origin)
        return buffer.reshape(stop - start, size)


def _check_scales(format: Format, blocks: NDArray[np.uint8], origin: str) -> None:
    """Malformed if the scale of a block is NaN or infinite, as ggml_validate_row_data has it."""
    if bad := nonfinite(format, blocks):
        raise Malformed(
            f"{bad} blocks have a scale that is NaN or infinite",
            where=origin,
            fix="The model is damaged; get it again.",
        )


@dataclass(frozen=True)
class Prepared:
    """Everything decided, nothing written: what a dry run shows. Close the source, or use this in a `with`."""

    job: Job
    source: GgufSet
    tensors: tuple[GgufTensor, ...]
    outputs: tuple[QuantizedFile, ...]
    importance: Importance | None
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        return self.outputs[0].plan.weights

    @property
    def inputs(self) -> tuple[Path, ...]:
        return (*self.source.paths, *([self.job.imatrix] if self.job.imatrix else []))

    def __enter__(self) -> "Prepared":
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()


def prepare(job: Job) -> Prepared:
    """Read headers and the importance matrix; decide every byte's place. Raises what is wrong with the input."""
    model = open_model(job.source, job.vocabulary)
    try:
        return _prepare(job, model)
    except BaseException:
        model.files.close()
        raise


def _prepare(job: Job, model: OpenedModel) -> Prepared:
    source = model.files
    if not source.tensors:
        raise Malformed("this file has no tensors", where=job.source, fix="Pass a model; it may be a vocabulary only.")
    if not job.recipes:
        raise Usage("name a recipe", fix="For example --recipe q4_K_M; `ggufsmith recipes` prints them all.")
    if "general.architecture" not in source.metadata:
        raise Malformed("general.architecture is missing: this is no model", where=job.source)
    imatrix = open_imatrix(job.imatrix, job.include, job.exclude) if job.imatrix else None
    if (job.include or job.exclude) and imatrix is None:
        raise Usage(
            "--include-weights and --exclude-weights choose entries of an importance matrix", fix="Add --imatrix FILE."
        )
    if job.split and job.limits != Limits():
        raise Usage("--keep-split takes the shards of the input", fix="Drop it, or the other options for splitting.")
    facts = facts_of({**source.metadata, **job.metadata}, importance=imatrix is not None)
    held = facts_of({**job.metadata, **source.metadata})  # layers are pruned by the numbers that they have in the file
    renamed = prune_layers(source.tensors, job.prune, held.blocks)
    infos = [source.tensors[name] for name in (_split_order(source) if job.split else file_order(source.tensors))]
    tensors = tuple(GgufTensor(source, info, renamed[info.name]) for info in infos if info.name in renamed)
    everything = [Stored(info.name, info.shape, info.format) for info in source.tensors.values()]
    importance = fit_importance(imatrix, everything, facts, renamed) if imatrix else None
    metadata = _without_layers(source.metadata, job.prune, held)
    overrides = dict(job.metadata)
    if job.prune:
        count = Keys.LLM.BLOCK_COUNT.format(arch=facts.architecture)
        overrides.pop(count, None)
        overrides[count] = u32(held.blocks - len(set(job.prune)))
    name = model.name
    if job.strict_name:
        name = name_of({**metadata, **overrides}, {tensor.name: tensor.info.shape for tensor in tensors}, strict=True)
    paths = output_paths(name, job.recipes, job.output, job.outdir or job.source.parent)
    outputs = []
    for recipe, path in zip(job.recipes, paths, strict=True):
        plan = plan_file(
            recipe,
            [tensor.stored for tensor in tensors],
            metadata,
            facts,
            job.options,
            overrides=overrides,
            importance=importance,
            alignment=source.alignment,
            allow_requantize=job.allow_requantize,
            strict=job.strict,
        )
        counts = _counts(source, tensors) if job.split else job.limits.counts(plan.layout.tensors, source.alignment)
        outputs.append(QuantizedFile(plan_shards(plan.layout, counts), path, plan))
    notes = (*job.notes, *model.told(job.metadata), *(importance.coverage.notes() if importance else ()))
    return Prepared(job, source, tensors, tuple(outputs), importance, notes)


def with_budget(job: Job, budget: Budget, advance: Callable[[int], None] = lambda weights: None) -> tuple[Job, Solved]:
    """The job with the recipe that fits the budget best (see `budget.fit_budget`)."""
    with prepare(replace(job, recipes=(PLACEHOLDER,), strict=False)) as prepared:
        solved = fit_budget(prepared.tensors, prepared.outputs[0], budget, threads=job.threads, advance=advance)
    return replace(job, recipes=(solved.recipe,)), solved


def run(
    prepared: Prepared,
    advance: Callable[[int], None] = lambda weights: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Written:
    """Quantize, verify, and give the files their names (see `write_outputs`)."""
    job = prepared.job
    if job.outdir is not None and job.output is None:
        make_folder(job.outdir)
    return write_outputs(
        prepared.tensors,
        prepared.outputs,
        encoder=GGML,
        inputs=prepared.inputs,
        threads=job.threads,
        sync=job.sync,
        overwrite=job.overwrite,
        resume=job.resume,
        cluster=ClusterWork(job.scheduler, elsewhere(prepared)) if job.scheduler else None,
        advance=advance,
        loaded=loaded,
    )


@dataclass(frozen=True)
class FileOpening:
    """Tensors of a file, with their new names, to be opened in another process (see `stream.Opening`)."""

    inputs: tuple[Path, ...]
    tensors: tuple[tuple[TensorInfo, str], ...]

    @contextmanager
    def __call__(self) -> Iterator[Sequence[GgufTensor]]:
        with open_model(self.inputs[0]).files as source:
            yield [GgufTensor(source, info, name) for info, name in self.tensors]


def elsewhere(prepared: Prepared) -> FileOpening:
    """Its tensors, for workers of a cluster."""
    return FileOpening(
        tuple(map(Path.absolute, prepared.source.paths)), tuple((each.info, each.name) for each in prepared.tensors)
    )


# ---- options that change the model ----


def prune_layers(names: Mapping[str, object], layers: Sequence[int], blocks: int) -> dict[str, str]:
    """New names without these layers, the layers behind them moved up; a tensor of such a layer has none.

    Usage for a layer that the model does not have, and for all layers; Unsupported for an encoder and a decoder, each
    with layers of its own.
    """
    gone = sorted(set(layers))
    stacked = next((name for name in names if gone and BLOCK.search(name) and block_of(name) is None), None)
    if stacked is not None:
        raise Unsupported(
            "--prune-layers: this model has more than one stack of layers",
            where=stacked,
            fix="Quantize it without --prune-layers.",
        )
    if gone and (gone[0] < 0 or gone[-1] >= blocks):
        bad = next(layer for layer in gone if not 0 <= layer < blocks)
        raise Usage(f"--prune-layers {bad}: there is no such layer", fix=f"The model has layers 0 to {blocks - 1}.")
    if len(gone) == blocks and gone:
        raise Usage("--prune-layers leaves no layer of the model", fix="Name fewer layers.")
    renamed = {}
    for name in names:
        block = block_of(name)
        if block is None or block not in gone:
            lower = 0 if block is None else bisect_left(gone, block)
            renamed[name] = BLOCK.sub(f"blk.{block - lower}.", name, count=1) if block and lower else name
    return renamed


def parse_override(text: str) -> tuple[str, Value]:
    """KEY=TYPE:VALUE, the way llama.cpp writes overrides: types int, float, bool and str. Usage if it is not that."""
    match_ = re.fullmatch(r"([^=]+)=(int|float|bool|str):(.*)", text, re.DOTALL)
    if not match_:
        raise Usage(f"{text!r} is no override", fix="Write KEY=TYPE:VALUE, with a type of int, float, bool or str.")
    key, kind, value = match_.groups()
    try:
        if kind == "int":
            number = int(value)
            return key, u32(number) if 0 <= number <= MAX_U32 else i32(number)
        if kind == "float":
            return key, f32(float(value))
    except ValueError:
        raise Usage(f"{text!r}: {value!r} is no {kind}", fix=f"Write {key}={kind}:1, or another type.") from None
    if kind == "bool":
        if value not in ("true", "false"):
            raise Usage(f"{text!r}: {value!r} is no bool", fix="It is true or false.")
        return key, boolean(value == "true")
    return key, string(value)


def _without_layers(metadata: Metadata, layers: Sequence[int], facts: Facts) -> Metadata:
    """The keys of a model without these layers: of arrays with one value per layer, those of the others."""
    if not layers:
        return metadata

    def pruned(key: str, value: Value) -> Value:
        per_layer = isinstance(value.data, np.ndarray) and len(value.data) == facts.blocks
        if per_layer and key.startswith(f"{facts.architecture}."):
            return replace(value, data=np.delete(value.data, sorted(set(layers))))
        return value

    return {key: pruned(key, value) for key, value in metadata.items()}


def _split_order(source: GgufSet) -> list[str]:
    """As the shards have them: file by file, by place."""
    return [info.name for file in source.files for info in sorted(file.tensors.values(), key=lambda info: info.offset)]


def _counts(source: GgufSet, tensors: Sequence[GgufTensor]) -> tuple[int, ...]:
    """How many of these tensors each file of the source holds."""
    return tuple(sum(source.file_of(tensor.info) is file for tensor in tensors) for file in source.files)
