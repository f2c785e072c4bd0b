"""One pass over a model: everything wanted of it that is not there yet, read once, written side by side."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gguf.constants import Keys

from ggufsmith.container.layout import rows_of
from ggufsmith.container.values import string
from ggufsmith.convert import quantized
from ggufsmith.convert import run as conversion
from ggufsmith.convert.batch.jobfile import JobModel, WantedOutput
from ggufsmith.convert.checkpoint import Checkpoint, LocalFiles, Opener
from ggufsmith.convert.dequantize import store
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.hub.ahead import BLOCK, KEPT
from ggufsmith.convert.lora.merge import Updated
from ggufsmith.convert.lora.steps import LowRank
from ggufsmith.convert.tensors import CheckpointOpening, ConvertedTensor, read_ahead
from ggufsmith.convert.vocabulary import vocabulary_of
from ggufsmith.pipeline.outputs import ClusterWork, OutputFile, Written, write_outputs
from ggufsmith.pipeline.stream import CHUNK, Opening, RowSource
from ggufsmith.quantize import requantize
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.outputs import QuantizedFile

# Memory, measured as peaks of whole processes: the interpreter with numpy, numba and the loaded kernels; what the
# kernels and samples of all types take where a budget chooses among them; what is read ahead of a stream; and, of what
# a vocabulary takes while it is read and held, the share of the header that it becomes.
PROCESS = 200 * 10**6
MEASURING = 200 * 10**6
STREAMING = KEPT * BLOCK
PER_HEADER_BYTE = 40


@dataclass(frozen=True)
class Pass:
    """Several outputs of one model, planned; use it in a `with`.

    outputs: in the order of `wanted`; all have the tensors in the same order.
    source:  the opened model; inputs: its files and the importance matrix.
    notes:   what is said of the model; those of an output are its own.
    opening: the tensors, for workers of a cluster.
    """

    model: JobModel
    wanted: tuple[WantedOutput, ...]
    outputs: tuple[OutputFile, ...]
    tensors: tuple[RowSource, ...]
    source: AbstractContextManager[Any]
    inputs: tuple[Path, ...]
    notes: tuple[str, ...]
    opening: Opening

    def __enter__(self) -> Self:
        self.source.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.__exit__(kind, error, trace)

    @property
    def weights(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of all outputs."""
        return sum(output.size for output in self.outputs)

    def memory(self, threads: int) -> int:
        """About the bytes that the pass needs at its peak, besides PROCESS: the buffers of a chunk in each thread, the
        header with its vocabulary, the importance matrix, the factors of adapters.
        """
        chunk = max(max(CHUNK, tensor.granule * rows_of(tensor.shape)[1]) for tensor in self.tensors)
        header = max(len(output.shards.whole.header) for output in self.outputs)
        importance = self.model.imatrix.stat().st_size if self.model.imatrix else 0
        return (
            threads * chunk * 4 * (3 + len(self.outputs))
            + PER_HEADER_BYTE * header
            + 3 * importance
            + _factors(self.tensors, threads)
            + fixed(self.model, self.wanted)
        )


def fixed(model: JobModel, wanted: Sequence[WantedOutput]) -> int:
    """The part of `Pass.memory` that is known before anything is planned."""
    measuring = MEASURING if any(each.budget for each in wanted) else 0
    return measuring + (STREAMING if model.hub and model.settings["stream"] else 0)


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


def prepare(
    model: JobModel, wanted: Sequence[WantedOutput], open_files: Opener = LocalFiles, *, threads: int | None = None
) -> Pass:
    """Plan these outputs of a model. Raises what is wrong with it. open_files: see `checkpoint.Checkpoint`.

    threads: that measure weights, where a budget chooses the recipe.
    """
    wanted = [_solved(model, each, open_files, threads) for each in wanted]
    planned = _of_checkpoint(model, wanted, open_files) if model.is_checkpoint else _of_file(model, wanted)
    names = [tensor.name for tensor in planned.tensors]
    outputs = tuple(
        replace(_ordered(output, names), path=each.path)
        for each, output in zip(planned.wanted, planned.outputs, strict=True)
    )
    return replace(planned, outputs=outputs)


def run(
    planned: Pass, *, threads: int, sync: bool, advance: Callable[[int], None], loaded: Callable[[float], None]
) -> Written:
    """Make, verify, and give the files their names (see `write_outputs`), going on from what an interrupted run left.

    The pass is open.
    """
    planned.model.folder.mkdir(parents=True, exist_ok=True)
    scheduler = planned.model.settings["scheduler"]
    if isinstance(planned.source, Checkpoint):
        read_ahead(planned.source, [tensor for tensor in planned.tensors if isinstance(tensor, ConvertedTensor)])
    return write_outputs(
        planned.tensors,
        planned.outputs,
        encoder=GGML,
        inputs=planned.inputs,
        threads=threads,
        sync=sync,
        resume=True,
        cluster=ClusterWork(scheduler, planned.opening) if scheduler else None,
        advance=advance,
        loaded=loaded,
    )


def types_of(output: OutputFile) -> dict[str, int]:
    """How many tensors have each format, the most frequent first."""
    return dict(Counter(spec.format.name for spec in output.shards.whole.tensors).most_common())


def bits_per_weight(output: OutputFile) -> float:
    specs = output.shards.whole.tensors
    return 8 * sum(spec.nbytes for spec in specs) / max(sum(math.prod(spec.shape) for spec in specs), 1)


def fallbacks_of(output: OutputFile) -> tuple[str, ...]:
    """Tensors that could not have the type of their rule."""
    return tuple(each.tensor.name for each in output.plan.fallbacks) if isinstance(output, QuantizedFile) else ()


def notes_of(output: OutputFile) -> tuple[str, ...]:
    return tuple(output.plan.notes()) if isinstance(output, QuantizedFile) else ()


def _solved(model: JobModel, wanted: WantedOutput, open_files: Opener, threads: int | None) -> WantedOutput:
    """With the recipe that fits its budget best, if it has one and no recipe yet."""
    if wanted.budget is None or wanted.recipe is not None:
        return wanted
    if model.is_checkpoint:
        job = replace(_conversion(model, open_files), threads=threads)
        _, solved = quantized.with_budget(job, _quantization(model, []), wanted.budget)
    else:
        _, solved = requantize.with_budget(replace(_requantization(model, []), threads=threads), wanted.budget)
    return replace(wanted, recipe=replace(solved.recipe, name=wanted.label))


def _conversion(model: JobModel, open_files: Opener) -> conversion.Job:
    said = model.settings
    return conversion.Job(
        folder=model.source,
        pre=said["pre"] or None,
        model_name=said["model_name"] or None,
        metadata=model.metadata,
        lora=model.lora,
        base=model.base,
        limits=model.limits,
        open_files=open_files,
    )


def _of_checkpoint(model: JobModel, wanted: Sequence[WantedOutput], open_files: Opener) -> Pass:
    job = _conversion(model, open_files)
    plain = [each for each in wanted if each.recipe is None]
    recipes = [each for each in wanted if each.recipe is not None]
    conversions = [conversion.prepare(replace(job, outtype=each.label)) for each in plain]
    outputs: list[OutputFile] = [each.output for each in conversions]
    notes: tuple[str, ...] = ()
    if recipes:
        prepared = quantized.prepare(job, _quantization(model, recipes))
        conversions.append(prepared.converted)
        outputs += prepared.outputs
        notes = prepared.notes
    last = conversions[-1]
    tensors = quantized.tensors_for(last.checkpoint, last.plan, outputs)
    return Pass(
        model,
        (*plain, *recipes),
        tuple(outputs),
        tensors,
        last.checkpoint,
        (*last.checkpoint.files, *([model.imatrix] if model.imatrix else [])),
        notes or last.notes,
        CheckpointOpening(last.checkpoint, tensors),
    )


def _quantization(model: JobModel, wanted: Sequence[WantedOutput]) -> quantized.Quantization:
    said = model.settings
    return quantized.Quantization(
        recipes=tuple(each.recipe for each in wanted if each.recipe),
        options=model.options,
        imatrix=model.imatrix,
        include=said["include_weights"],
        exclude=said["exclude_weights"],
        strict=said["strict"],
    )


def _requantization(model: JobModel, wanted: Sequence[WantedOutput]) -> requantize.Job:
    said = model.settings
    vocabulary, notes = vocabulary_of(model.source, model.tokenizer) if model.tokenizer else (None, ())
    named = {Keys.General.NAME: string(said["model_name"])} if said["model_name"] else {}
    return requantize.Job(
        source=model.source,
        recipes=tuple(each.recipe for each in wanted if each.recipe),
        options=model.options,
        imatrix=model.imatrix,
        include=said["include_weights"],
        exclude=said["exclude_weights"],
        prune=model.prune,
        metadata={**named, **model.overrides},
        vocabulary=vocabulary,
        notes=notes,
        allow_requantize=said["allow_requantize"],
        strict=said["strict"],
        limits=model.limits,
        split=said["keep_split"],
    )


def _of_file(model: JobModel, wanted: Sequence[WantedOutput]) -> Pass:
    prepared = requantize.prepare(_requantization(model, wanted))
    opening = requantize.elsewhere(prepared)
    return Pass(
        model,
        tuple(wanted),
        prepared.outputs,
        prepared.tensors,
        prepared.source,
        prepared.inputs,
        prepared.notes,
        opening,
    )


def _ordered(output: OutputFile, names: Sequence[str]) -> OutputFile:
    """The output with its layout listing the tensors in this order; every byte keeps its place in the files."""
    whole = output.shards.whole
    places = {spec.name: k for k, spec in enumerate(whole.tensors)}
    order = [places[name] for name in names]
    tensors, offsets = tuple(whole.tensors[k] for k in order), tuple(whole.offsets[k] for k in order)
    return replace(output, shards=replace(output.shards, whole=replace(whole, tensors=tensors, offsets=offsets)))
