"""From a model folder to a finished GGUF file: open, plan, lay out (`prepare`), then execute and verify (`run`)."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from gguf.constants import LlamaFileType

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.shards import Limits, plan_shards
from ggufsmith.container.values import Metadata
from ggufsmith.convert.checkpoint import Checkpoint, open_checkpoint
from ggufsmith.convert.config import Config
from ggufsmith.convert.execute import tensors_of
from ggufsmith.convert.plan import Plan, find_architecture, make_plan
from ggufsmith.convert.sources.recognise import recognise
from ggufsmith.naming.filename import FileName, output_name
from ggufsmith.naming.identity import Parameters, model_folder_name
from ggufsmith.naming.metadata import general_metadata, read_overrides
from ggufsmith.quantize.outputs import Output, Written, write_outputs
from ggufsmith.tokenizer.read import read_vocabulary

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

    outtype:  f32, f16, bf16, or auto: the type that most of the checkpoint's weights have.
    outfile:  the output; else it is named after the model, in `outdir`, else in the model folder.
    pre:      the pre-tokenizer, when its structure is not recognised.
    metadata: a JSON file of general.* keys that overrides what is found.
    limits:   where a new shard begins.
    threads:  None takes every core this process may use.
    sync:     False leaves flushing to the operating system.
    """

    folder: Path
    outtype: str = "f16"
    outfile: Path | None = None
    outdir: Path | None = None
    vocab_only: bool = False
    pre: str | None = None
    model_name: str | None = None
    metadata: Path | None = None
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    sync: bool = True
    overwrite: bool = True


@dataclass(frozen=True)
class Prepared:
    """Everything decided, nothing written: what a dry run shows."""

    job: Job
    checkpoint: Checkpoint
    plan: Plan
    output: Output
    notes: tuple[str, ...]

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (self.output,)

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
    config = Config.of_folder(folder)
    record = find_architecture(config)
    checkpoint = Checkpoint(folder, {}) if job.vocab_only else recognise(open_checkpoint(folder), config)
    plan = make_plan(config, None if job.vocab_only else checkpoint.tensors)
    kind = _output_format(job.outtype, checkpoint)
    vocabulary = read_vocabulary(
        folder, config=config, size=plan.dims.vocab, pre=job.pre, architecture=record.classes[0]
    )
    notes: list[str] = [*checkpoint.notes, *plan.notes, *vocabulary.notes]
    general = general_metadata(
        folder,
        config,
        Parameters.of((output.name, output.shape) for output in plan.outputs),
        architecture=record.name,
        file_type=FILE_TYPES[kind.name],
        name=job.model_name,
        overrides=read_overrides(job.metadata) if job.metadata else None,
        note=notes.append,
    )
    metadata: Metadata = {**general, **plan.metadata, **vocabulary.metadata()}
    specs = [
        TensorSpec(output.name, output.shape, BY_NAME["F32"] if output.keep_f32 else kind) for output in plan.outputs
    ]
    model = model_folder_name(folder)
    name = FileName(model, type="vocab").format() if job.vocab_only else output_name(model, kind.name)
    path = job.outfile or (job.outdir or folder) / name
    layout = lay_out(metadata, specs)
    shards = plan_shards(layout, job.limits.counts(specs, layout.alignment))
    return Prepared(job, checkpoint, plan, Output(shards, path), tuple(notes))


def run(
    prepared: Prepared,
    advance: Callable[[int], None] = lambda weights: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Written:
    """Convert, verify, and give the files their names (see `write_outputs`)."""
    job = prepared.job
    if job.outdir is not None and job.outfile is None:
        job.outdir.mkdir(parents=True, exist_ok=True)
    with prepared.checkpoint as checkpoint:
        return write_outputs(
            tensors_of(checkpoint, prepared.plan.outputs),
            prepared.outputs,
            inputs=checkpoint.files,
            threads=job.threads,
            sync=job.sync,
            overwrite=job.overwrite,
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
