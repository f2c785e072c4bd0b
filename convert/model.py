"""A model folder, or an adapter's, opened and planned: what every output of it is made from."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf.constants import Keys, LlamaFileType

from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.values import Metadata
from ggufsmith.convert import mtp
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.dequantize.detect import detect, offers
from ggufsmith.convert.lora.base import Origin, base_models, find_base, parse_adapter
from ggufsmith.convert.lora.export import plan_adapter
from ggufsmith.convert.lora.merge import check_used, merge
from ggufsmith.convert.lora.peft import is_adapter, open_adapter, without_dropped
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.modules import with_dense
from ggufsmith.convert.mtp_alone import apart
from ggufsmith.convert.numbers import read_lists, read_numbers
from ggufsmith.convert.plan import Plan, find_architecture, make_plan
from ggufsmith.convert.pooling import pooling_metadata
from ggufsmith.convert.projectors.opened import OpenedProjector
from ggufsmith.convert.projectors.plan import (
    CLIP,
    ProjectorPlan,
    find_projector,
    left_out_notes,
    plan_projector,
    processor_config,
    together_with,
)
from ggufsmith.convert.redundant import check_left_out
from ggufsmith.convert.rerank import ranks, with_prompt, with_scores
from ggufsmith.convert.stored import Checkpoint, LocalFiles, Opener
from ggufsmith.convert.targets import (
    check_fit,
    check_named,
    check_tokens,
    find_target,
    with_heads,
    with_mask,
    with_target,
)
from ggufsmith.naming.filename import SIDECARS, FileName, output_name
from ggufsmith.naming.identity import Parameters, model_folder_name
from ggufsmith.naming.metadata import BASE_MODELS, general_metadata, read_overrides
from ggufsmith.pipeline.request import Request, SourceOptions
from ggufsmith.quantize.resolve import refuse_unfit
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.stripping import fit_name
from ggufsmith.tokenizer.templates import template_notes

FILE_TYPES: Mapping[str, LlamaFileType] = MappingProxyType(
    {
        "F32": LlamaFileType.ALL_F32,
        "F16": LlamaFileType.MOSTLY_F16,
        "BF16": LlamaFileType.MOSTLY_BF16,
    }
)


@dataclass(frozen=True)
class FolderModel:
    """A folder, opened and planned; no tensor byte has been read.

    usual:     the outtype of an output that was given none.
    metadata:  the keys of an output whose matrices have this type.
    name:      the file name of an output with this encoding.
    folders:   whose small files were read, by what they are (see `inputs.input_files`).
    projector: what stands before the text model, if that was asked for.
    sidecar:   what names of files that go with another begin with (see `naming.filename`).
    """

    folder: Path
    origin: Origin
    checkpoint: Checkpoint
    plan: Plan
    notes: tuple[str, ...]
    usual: str
    metadata: Callable[[Format], Metadata]
    name: Callable[[str], str]
    folders: Mapping[str, Path]
    projector: OpenedProjector | None = None
    sidecar: str | None = None

    def format(self, outtype: str) -> Format:
        """The type of the matrices."""
        name = outtype.upper()
        if name == "AUTO":
            sizes = dict.fromkeys(FILE_TYPES, 0)
            for source in self.checkpoint.tensors.values():
                if source.nominal in sizes:
                    sizes[source.nominal] += math.prod(source.shape)
            name = max(sizes, key=lambda key: sizes[key]) if any(sizes.values()) else "F16"
        return BY_NAME[name]

    def layout(self, format: Format) -> Layout:
        """The unquantized file whose matrices have this type."""
        specs = [TensorSpec(output.name, output.shape, output.stored_as(format)) for output in self.plan.outputs]
        return lay_out(self.metadata(format), specs)


def open_folder(request: Request, open_files: Opener = LocalFiles) -> FolderModel:
    """Read headers, configs and vocabulary. Raises what is wrong with the input. open_files: see `Checkpoint`."""
    folder = Path(os.path.abspath(request.path))
    if not folder.is_dir():
        raise Usage("there is no such folder", where=request.path, fix="Pass the folder of a Hugging Face model.")
    return _adapter(request, folder, open_files) if is_adapter(folder) else _model(request, folder, open_files)


def _model(request: Request, folder: Path, open_files: Opener) -> FolderModel:
    source = request.source
    check_named(source.target)
    refuse_unfit(request, "model")
    if source.mtp not in (None, *mtp.CHOICES):
        raise Usage(
            f"--mtp is {source.mtp!r:.40}, but it can be keep, drop or only", fix="Leave it out to keep the blocks."
        )
    config, origin = open_config(folder), Origin.of_folder(folder)
    record = find_architecture(config)
    target = find_target(record, folder, source.target)
    config = with_target(config, target)
    checkpoint = Checkpoint(folder, {}) if source.vocab_only else detect(open_checkpoint(folder, open_files), config)
    if not source.vocab_only:
        checkpoint, config = with_dense(checkpoint, config, record, folder)
    changed: frozenset[str] = frozenset()
    wants_projector = request.make.mmproj
    encoders = find_projector(config) if wants_projector else None
    if encoders and source.vocab_only:
        raise Usage("a file that holds only the vocabulary has no projector beside it", fix="Leave out --mmproj.")
    taken = encoders.takes if encoders else None
    merged = adapters_of(source)
    if merged:
        if source.vocab_only:
            raise Usage("a file that holds only the vocabulary has nothing to merge into", fix="Leave out --lora.")
        opened = ((open_adapter(Path(os.path.abspath(path))), factor) for path, factor in merged.values())
        adapters = [(without_dropped(adapter, record, taken), factor) for adapter, factor in opened]
        origin = Origin.of_merged(folder, adapters)
        checkpoint, changed = merge(checkpoint, adapters)
    processor = processor_config(folder)
    with together_with(partial(plan_projector, config, processor, checkpoint.tensors) if wants_projector else None):
        plan = make_plan(
            config,
            None if source.vocab_only else checkpoint.tensors,
            drop_mtp=source.mtp == "drop",
            taken=taken,
        )
    check_fit(plan, config, target)
    judged = check_left_out(checkpoint, plan, changed)
    read = {**read_numbers(checkpoint, plan.numbers), **read_lists(checkpoint, plan.lists)}
    read = {key.format(arch=plan.architecture.name): value for key, value in read.items()}
    plan = replace(plan, metadata={**plan.metadata, **read})
    plan = with_heads(plan)
    check_tokens(checkpoint, plan.outputs, plan.dims.vocab)
    vocabulary = read_vocabulary(
        target.folder if target else origin.tokenizer,
        config=target.config.replaced({"vocab_size": plan.dims.vocab}) if target else config,
        size=plan.dims.vocab,
        pre=source.pre,
        architecture=(target.record if target else record).classes[0],
        model=target.folder if target else folder,
        base=origin.under,
    )
    vocabulary = with_mask(vocabulary, plan.metadata)
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    if ranks(folder, config, plan):
        vocabulary = with_prompt(vocabulary)
        plan = plan if source.vocab_only else with_scores(plan, config, ids)
    seeing: ProjectorPlan | None = None
    if wants_projector:
        seeing = plan_projector(config, processor, checkpoint.tensors, ids.get)
    check_used(changed, plan, seeing.outputs if seeing else ())
    sidecar = SIDECARS[1] if source.mtp == "only" else None
    if sidecar:
        plan = apart(plan)
    notes: list[str] = [
        *checkpoint.notes,
        *offers(checkpoint.tensors.values()),
        *plan.notes,
        *(seeing.notes if seeing else left_out_notes(config, checkpoint.tensors)),
        *judged,
        *vocabulary.notes,
    ]
    parameters = Parameters.of((output.name, output.shape) for output in plan.outputs)
    overrides = _overrides(source)
    general = _general(source, folder, config, parameters, record.name, {**origin.general, **overrides}, notes)
    stated = bool(source.model_name) or Keys.General.NAME in overrides
    notes += fit_name(general(BY_NAME["F16"]), vocabulary, stated=stated)[1]
    pooling = pooling_metadata(folder, record)
    notes += () if pooling else template_notes(vocabulary)  # embedding models do not chat
    folders = {"": folder, **{name: path for name, (path, _) in merged.items()}, "tokenizer": origin.tokenizer}
    folders |= {"target": target.folder} if target else {}

    def name(encoding: str) -> str:
        return (
            FileName(origin.name, type="vocab").format()
            if source.vocab_only
            else output_name(origin.name, encoding, sidecar)
        )

    def metadata(format: Format) -> Metadata:
        named, _ = fit_name(general(format), vocabulary, stated=stated)
        return {**named, **pooling, **plan.metadata, **vocabulary.metadata()}

    def of_projector(parameters: Parameters, file_type: int) -> Metadata:
        return _keys(source, folder, config, parameters, CLIP, {**origin.general, **overrides}, file_type)

    projector = OpenedProjector(seeing, origin.name, of_projector) if seeing else None
    return FolderModel(
        folder, origin, checkpoint, plan, tuple(notes), "f16", metadata, name, folders, projector, sidecar
    )


def _adapter(request: Request, folder: Path, open_files: Opener) -> FolderModel:
    """The adapter as a GGUF adapter. It has no vocabulary, and of its base only the config is read."""
    source = request.source
    if source.lora or source.vocab_only:
        raise Usage(
            "this folder holds an adapter, not a model",
            where=folder,
            fix="Pass the folder of its base model, and the adapter with --lora.",
        )
    refuse_unfit(request, "adapter")
    adapter = open_adapter(folder)
    base = find_base(adapter, source.base)
    plan = plan_adapter(adapter, base, open_config(base))
    sources = {source.name: source for output in plan.outputs for source in output.sources}
    checkpoint = Checkpoint(folder, sources, open_files=open_files)
    origin = Origin(model_folder_name(folder), folder, folder, {BASE_MODELS: base_models(adapter, base)})
    notes = list(plan.notes)
    overrides = {**origin.general, **_overrides(source)}
    general = _general(source, folder, {}, Parameters(), plan.architecture.name, overrides, notes)

    def name(encoding: str) -> str:
        return FileName(origin.name.strip().replace(" ", "-"), encoding=encoding, type="LoRA").format()

    def metadata(format: Format) -> Metadata:
        return {**general(format), **plan.metadata}

    return FolderModel(
        folder, origin, checkpoint, plan, tuple(notes), "f32", metadata, name, {"": folder, "base": base}
    )


def adapters_of(source: SourceOptions) -> dict[str, tuple[Path, float]]:
    """The folders of the adapters to merge, and their factors; by the names that records of a run give them."""
    adapters = (parse_adapter(each) if isinstance(each, str) else each for each in source.lora)
    return {f"lora-{number}": adapter for number, adapter in enumerate(adapters, 1)}


def _overrides(source: SourceOptions) -> Mapping[str, Any]:
    """What the file of --metadata says."""
    return read_overrides(source.metadata) if source.metadata else {}


def _general(
    source: SourceOptions,
    folder: Path,
    config: Mapping[str, Any],
    parameters: Parameters,
    architecture: str,
    overrides: Mapping[str, Any],
    notes: list[str],
) -> Callable[[Format], Metadata]:
    """The general.* keys of an output whose matrices have a type; what is noted is the same for all of them."""

    def general(format: Format, note: Callable[[str], None] = lambda text: None) -> Metadata:
        return _keys(source, folder, config, parameters, architecture, overrides, FILE_TYPES[format.name], note)

    general(BY_NAME["F16"], notes.append)
    return general


def _keys(
    source: SourceOptions,
    folder: Path,
    config: Mapping[str, Any],
    parameters: Parameters,
    architecture: str,
    overrides: Mapping[str, Any],
    file_type: int,
    note: Callable[[str], None] = lambda text: None,
) -> Metadata:
    return general_metadata(
        folder,
        config,
        parameters,
        architecture=architecture,
        file_type=file_type,
        name=source.model_name,
        overrides=overrides,
        note=note,
    )
