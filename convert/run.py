"""From a model folder to a finished GGUF file: open, plan, lay out (`prepare`), then execute and verify (`run`)."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf.constants import Keys, LlamaFileType

from ggufsmith.container.disk import make_folder
from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.shards import Limits, plan_shards
from ggufsmith.container.values import Metadata
from ggufsmith.convert.checkpoint import Checkpoint, LocalFiles, Opener, open_checkpoint
from ggufsmith.convert.config import Config
from ggufsmith.convert.execute import Converted, Elsewhere, read_ahead, tensors_of
from ggufsmith.convert.lora.base import Origin, base_models, find_base
from ggufsmith.convert.lora.export import plan_adapter
from ggufsmith.convert.lora.merge import check_used, merge
from ggufsmith.convert.lora.peft import is_adapter, open_adapter
from ggufsmith.convert.plan import Plan, find_architecture, make_plan
from ggufsmith.convert.pooling import pooling_metadata
from ggufsmith.convert.sources.recognise import offers, recognise
from ggufsmith.naming.filename import FileName, output_name
from ggufsmith.naming.identity import Parameters, model_folder_name
from ggufsmith.naming.metadata import BASE_MODELS, general_metadata, read_overrides
from ggufsmith.naming.suggest import name_of
from ggufsmith.quantize.outputs import Cluster, Output, Written, write_outputs
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.stripping import fit_name

FILE_TYPES: Mapping[str, LlamaFileType] = MappingProxyType(
    {
        "F32": LlamaFileType.ALL_F32,
        "F16": LlamaFileType.MOSTLY_F16,
        "BF16": LlamaFileType.MOSTLY_BF16,
    }
)
OUTTYPES = (*(name.lower() for name in FILE_TYPES), "auto")


@dataclass(frozen=True)
class Job:
    """One conversion as the user asks for it.

    folder:   of a model, or of a PEFT adapter alone.
    outtype:  f32, f16, bf16, or auto: the type that most of the checkpoint's weights have. None: f16, adapters f32.
    outfile:  the output; else it is named after the model, in `outdir`, else in its folder, merged in the adapter's.
    lora:     adapters to merge into the model, each under a factor.
    base:     the folder of an adapter's base model, if the adapter does not find it.
    pre:      the pre-tokenizer, when its structure is not recognised.
    metadata: a JSON file of general.* keys that overrides what is found.
    limits:   where a new shard begins.
    threads:  None takes every core this process may use.
    sync:     False leaves flushing to the operating system.
    resume:   go on from what an interrupted run of the same job left.
    strict_name: outputs are named by the letter of the convention, with a size and a version.
    open_files: how the weights are read; see `checkpoint.Checkpoint`.
    scheduler: of the Dask cluster that does the work; None does it here.
    """

    folder: Path
    outtype: str | None = None
    outfile: Path | None = None
    outdir: Path | None = None
    vocab_only: bool = False
    lora: tuple[tuple[Path, float], ...] = ()
    base: Path | None = None
    pre: str | None = None
    model_name: str | None = None
    metadata: Path | None = None
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    sync: bool = True
    overwrite: bool = True
    resume: bool = False
    strict_name: bool = False
    open_files: Opener = LocalFiles
    scheduler: str | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything decided, nothing written: what a dry run shows."""

    job: Job
    origin: Origin
    checkpoint: Checkpoint
    plan: Plan
    output: Output
    notes: tuple[str, ...]

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (self.output,)

    @property
    def inputs(self) -> tuple[Path, ...]:
        return self.checkpoint.files

    @property
    def layout(self) -> Layout:
        return self.output.shards.whole

    @property
    def weights(self) -> int:
        return sum(math.prod(output.shape) for output in self.plan.outputs)

    @property
    def source_bytes(self) -> int:
        return sum(source.nbytes for source in self.checkpoint.tensors.values())


def prepare(job: Job) -> Prepared:
    """Read headers, configs and vocabulary; decide every byte's place. Raises what is wrong with the input."""
    folder = Path(os.path.abspath(job.folder))
    if not folder.is_dir():
        raise Malformed("there is no such folder", where=job.folder, fix="Pass the folder of a Hugging Face model.")
    if is_adapter(folder):
        return _prepare_adapter(job, folder)
    if job.base is not None:
        raise Usage("--base is of an adapter, and this is a model", where=folder, fix="Leave one of the two out.")
    config, origin = Config.of_folder(folder), Origin.of_folder(folder)
    record = find_architecture(config)
    checkpoint = (
        Checkpoint(folder, {}) if job.vocab_only else recognise(open_checkpoint(folder, job.open_files), config)
    )
    changed: frozenset[str] = frozenset()
    if job.lora:
        if job.vocab_only:
            raise Usage("a file that holds the vocabulary only has nothing to merge into", fix="Drop --lora.")
        adapters = [(open_adapter(Path(os.path.abspath(path))), factor) for path, factor in job.lora]
        origin = Origin.of_merged(folder, adapters)
        checkpoint, changed = merge(checkpoint, adapters)
    plan = make_plan(config, None if job.vocab_only else checkpoint.tensors)
    check_used(changed, plan)
    kind = _output_format(job.outtype or "f16", checkpoint)
    vocabulary = read_vocabulary(
        origin.tokenizer,
        config=config,
        size=plan.dims.vocab,
        pre=job.pre,
        architecture=record.classes[0],
        model=folder,
        base=origin.under,
    )
    notes: list[str] = [*checkpoint.notes, *offers(checkpoint.tensors.values()), *plan.notes, *vocabulary.notes]
    parameters = Parameters.of((output.name, output.shape) for output in plan.outputs)
    general = _general(job, folder, config, parameters, record.name, kind, origin, notes)
    general, said = fit_name(general, vocabulary, stated=_is_named(job))
    notes += said
    model = origin.name
    name = FileName(model, type="vocab").format() if job.vocab_only else output_name(model, kind.name)
    metadata = {**general, **plan.metadata, **pooling_metadata(folder, record), **vocabulary.metadata()}
    return _laid_out(job, origin, checkpoint, plan, kind, metadata, name, notes)


def _prepare_adapter(job: Job, folder: Path) -> Prepared:
    """The adapter as a GGUF adapter. It has no vocabulary, and of its base only the config is read."""
    if job.lora or job.vocab_only:
        raise Usage(
            "this folder holds an adapter, and no model to merge into or to take a vocabulary from",
            where=folder,
            fix="Pass the folder of its base model, and the adapter with --lora.",
        )
    adapter = open_adapter(folder)
    base = find_base(adapter, job.base)
    plan = plan_adapter(adapter, base, Config.of_folder(base))
    sources = {source.name: source for output in plan.outputs for source in output.sources}
    checkpoint = Checkpoint(folder, sources, open_files=job.open_files)
    kind = _output_format(job.outtype or "f32", checkpoint)
    origin = Origin(model_folder_name(folder), folder, folder, {BASE_MODELS: base_models(adapter, base)})
    notes: list[str] = []
    general = _general(job, folder, {}, Parameters(), plan.architecture.name, kind, origin, notes)
    name = FileName(origin.name.strip().replace(" ", "-"), encoding=kind.name, type="LoRA").format()
    return _laid_out(job, origin, checkpoint, plan, kind, {**general, **plan.metadata}, name, notes)


def _general(
    job: Job,
    folder: Path,
    config: Mapping[str, Any],
    parameters: Parameters,
    architecture: str,
    kind: Format,
    origin: Origin,
    notes: list[str],
) -> Metadata:
    return general_metadata(
        folder,
        config,
        parameters,
        architecture=architecture,
        file_type=FILE_TYPES[kind.name],
        name=job.model_name,
        overrides={**origin.general, **(read_overrides(job.metadata) if job.metadata else {})},
        note=notes.append,
    )


def _is_named(job: Job) -> bool:
    """Whether the user says what general.name is."""
    return bool(job.model_name) or (job.metadata is not None and Keys.General.NAME in read_overrides(job.metadata))


def _laid_out(
    job: Job,
    origin: Origin,
    checkpoint: Checkpoint,
    plan: Plan,
    kind: Format,
    metadata: Metadata,
    name: str,
    notes: Sequence[str],
) -> Prepared:
    specs = [
        TensorSpec(output.name, output.shape, BY_NAME["F32"] if output.keep_f32 else kind) for output in plan.outputs
    ]
    if job.strict_name:
        shapes = {spec.name: spec.shape for spec in specs}
        name = name_of(metadata, shapes, encoding=kind.name, strict=True).format()
    layout = lay_out(metadata, specs)
    shards = plan_shards(layout, job.limits.counts(specs, layout.alignment))
    path = job.outfile or (job.outdir or origin.home) / name
    return Prepared(job, origin, checkpoint, plan, Output(shards, path), tuple(notes))


def run(
    prepared: Prepared,
    advance: Callable[[int], None] = lambda weights: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Written:
    """Convert, verify, and give the files their names (see `write_outputs`)."""
    with prepared.checkpoint as checkpoint:
        tensors = tensors_of(checkpoint, prepared.plan.outputs)
        return write(
            prepared.job,
            checkpoint,
            tensors,
            prepared.outputs,
            inputs=prepared.inputs,
            advance=advance,
            loaded=loaded,
        )


def write(
    job: Job,
    checkpoint: Checkpoint,
    tensors: Sequence[Converted],
    outputs: Sequence[Output],
    *,
    inputs: Sequence[Path],
    advance: Callable[[int], None],
    loaded: Callable[[float], None],
) -> Written:
    """Outputs from an open checkpoint, as the job has it (see `write_outputs`)."""
    if job.outdir is not None and job.outfile is None:
        make_folder(job.outdir)
    read_ahead(checkpoint, tensors)
    return write_outputs(
        tensors,
        outputs,
        inputs=inputs,
        threads=job.threads,
        sync=job.sync,
        overwrite=job.overwrite,
        resume=job.resume,
        identity=repr(job.lora),
        cluster=Cluster(job.scheduler, Elsewhere(checkpoint, tuple(tensors))) if job.scheduler else None,
        advance=advance,
        loaded=loaded,
    )


def _output_format(outtype: str, checkpoint: Checkpoint) -> Format:
    name = outtype.upper()
    if name == "AUTO":
        sizes = dict.fromkeys(FILE_TYPES, 0)
        for source in checkpoint.tensors.values():
            if source.nominal in sizes:
                sizes[source.nominal] += math.prod(source.shape)
        name = max(sizes, key=lambda key: sizes[key]) if any(sizes.values()) else "F16"
    if name not in FILE_TYPES:
        raise Usage(f"unknown output type {outtype!r}", fix=f"Choose one of {', '.join(OUTTYPES)}.")
    return BY_NAME[name]
