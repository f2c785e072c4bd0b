"""A pass over a model folder: unquantized files, and quantized ones without a 16-bit file in between.

Each quantized file equals converting to the checkpoint's own precision and quantizing that with `quantize.file_pass`;
the file in between is planned, and never written. Each tensor is read and transformed once for all outputs.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gguf.constants import Keys

from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import Layout
from ggufsmith.container.shards import Limits, plan_shards
from ggufsmith.container.values import Metadata, u32
from ggufsmith.convert.inputs import input_files
from ggufsmith.convert.lora.peft import is_adapter
from ggufsmith.convert.model import FILE_TYPES, FolderModel, adapters_of, open_folder
from ggufsmith.convert.plan import Plan, TensorPlan
from ggufsmith.convert.projectors.opened import OpenedProjector
from ggufsmith.convert.stored import Checkpoint, LocalFiles, Opener
from ggufsmith.convert.tensors import CheckpointOpening, ConvertedTensor, OpenCheckpoint, exact_format, tensors_of
from ggufsmith.naming.filename import SIDECARS, FileName
from ggufsmith.naming.suggest import name_of
from ggufsmith.pipeline.option import CHECKPOINT
from ggufsmith.pipeline.outputs import OutputFile
from ggufsmith.pipeline.passes import Pass, SourceInfo, in_order
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.outputs import (
    Quantizable,
    QuantizedFile,
    check_names,
    fit_importance,
    output_paths,
    plan_outputs,
)
from ggufsmith.quantize.plan import Importance
from ggufsmith.quantize.recipes.assign import Stored, facts_of, file_order
from ggufsmith.quantize.recipes.filetypes import file_type_of
from ggufsmith.quantize.remarks import remarks
from ggufsmith.quantize.resolve import Making, imatrix_of, resolved, signed


def open_checkpoint_pass(request: Request, open_files: Opener = LocalFiles) -> Pass:
    """Plan the conversion and every recipe. Raises what is wrong with the input or the recipes.

    open_files: how the weights are read (see `stored.Checkpoint`).
    """
    making, limits = resolved(request, *CHECKPOINT)
    if making.quantizes and is_adapter(request.path):
        raise Usage(
            "an adapter is converted unchanged and cannot be quantized",
            where=request.path,
            fix="Leave out --recipe, or merge the adapter: pass the folder of its base model, and the adapter with "
            "--lora.",
        )
    model = open_folder(request, open_files)
    outtypes = request.make.outtypes or (() if making.quantizes else (model.usual,))
    outputs: list[OutputFile] = [*_plain(request, model, outtypes, limits)]
    importance: Importance | None = None
    if making.recipes:
        quantized, importance = _quantized(request, making, model, limits)
        outputs += quantized
    tensors = tensors_for(model.checkpoint, model.plan, outputs)
    if model.projector is not None:
        outputs.append(_projector(request, model, model.projector))
        tensors += tuple(tensors_of(model.checkpoint, model.projector.plan.outputs))
    check_names(outputs)
    names = [tensor.name for tensor in tensors]
    imatrix = request.make.imatrix
    return Pass(
        info=SourceInfo(
            (model.folder,),
            sum(source.nbytes for source in model.checkpoint.tensors.values()),
            model.plan.architecture.name,
            outputs[0].shards.whole.metadata,
            {name: factor for name, (_, factor) in adapters_of(request.source).items()},
        ),
        source=OpenCheckpoint(model.checkpoint, tensors),
        tensors=tensors,
        outputs=tuple(in_order(output, names) for output in outputs),
        inputs=input_files(
            model.checkpoint.files, model.folders, {"imatrix": imatrix, "metadata": request.source.metadata}
        ),
        notes=(*model.notes, *(importance.coverage.notes() if importance else ()), *remarks(outputs)),
        opening=CheckpointOpening(model.checkpoint, tensors),
        encoder=GGML,
        importance=importance.coverage.summary() if importance else None,
    )


def _plain(request: Request, model: FolderModel, outtypes: Sequence[str], limits: Limits) -> list[OutputFile]:
    """One unquantized file for each type."""
    write = request.write
    outputs = []
    for format in map(model.format, outtypes):
        layout = model.layout(format)
        name = model.name(format.name)
        if write.strict_name:
            shapes = {spec.name: spec.shape for spec in layout.tensors}
            named = name_of(layout.metadata, shapes, encoding=format.name, strict=True)
            name = replace(named, sidecar=model.sidecar).format()
        path = write.outfile or (write.outdir or model.origin.home) / name
        shards = plan_shards(layout, limits.counts(layout.tensors, layout.alignment))
        outputs.append(OutputFile(shards, path, format.name))
    return outputs


def _projector(request: Request, model: FolderModel, projector: OpenedProjector) -> OutputFile:
    """The file of the encoders. It is in one piece: llama.cpp reads no other."""
    write = request.write
    format = projector.format(request.make.mmproj_outtype)
    layout = projector.layout(format)
    name = projector.name(format.name)
    if write.strict_name:
        text = model.layout(format)  # whose size the name has
        shapes = {spec.name: spec.shape for spec in text.tensors}
        named = name_of(text.metadata, shapes, encoding=format.name, strict=True)
        name = replace(named, sidecar=SIDECARS[0]).format()
    folder = write.outfile.parent if write.outfile else write.outdir or model.origin.home
    return OutputFile(plan_shards(layout, (len(layout.tensors),)), folder / name, f"mmproj-{format.name}")


def _quantized(
    request: Request, making: Making, model: FolderModel, limits: Limits
) -> tuple[list[QuantizedFile], Importance | None]:
    """One file for each recipe, and the importance matrix that steers them."""
    make, write = request.make, request.write
    imatrix = imatrix_of(make)
    layout = model.layout(model.format("auto"))
    facts = facts_of(layout.metadata, importance=imatrix is not None)
    by_name = {spec.name: Stored(spec.name, spec.shape, spec.format) for spec in layout.tensors}
    tensors = [by_name[name] for name in file_order(by_name)]
    importance = fit_importance(imatrix, tensors, facts) if imatrix else None
    name = FileName(model.origin.name.strip().replace(" ", "-"))
    if write.strict_name:
        name = name_of(layout.metadata, {tensor.name: tensor.shape for tensor in tensors}, strict=True)
    name = replace(name, sidecar=model.sidecar)
    outputs = plan_outputs(
        Quantizable(
            tensors,
            layout.metadata,
            facts,
            importance,
            counts=lambda planned: limits.counts(planned.tensors, layout.alignment),
            alignment=layout.alignment,
            exact=as_they_are(tensors, model.plan, layout),
            overrides=signed(make),
        ),
        making.recipes,
        making.types,
        output_paths(name, making.recipes, write.outfile, write.outdir or model.origin.home),
        strict=make.strict,
        allow_requantize=False,
    )
    return outputs, importance


def as_they_are(tensors: Sequence[Stored], plan: Plan, layout: Layout) -> tuple[list[Stored], Metadata]:
    """The tensors in the types that hold each of them without loss, and metadata with the file type that most have.

    layout: of the conversion to the type that most weights have.
    """
    own = {output.name: own_format(output) for output in plan.outputs}
    kept = [replace(tensor, format=own[tensor.name] or tensor.format) for tensor in tensors]
    sizes: Counter[str] = Counter()
    for tensor in kept:
        sizes[tensor.format.name] += math.prod(tensor.shape)
    file_type = file_type_of(sizes.most_common(1)[0][0])
    blocks = any(not tensor.format.plain for tensor in kept)
    if not blocks or file_type is None or file_type.number is None:
        return kept, layout.metadata
    return kept, {**layout.metadata, Keys.General.FILE_TYPE: u32(file_type.number)}


def own_format(output: TensorPlan) -> Format | None:
    """The type that holds a tensor's weights as its sources have them; None if its sources do not say.

    Sources of different types meet in float32, which holds them all.
    """
    if output.op.integers or output.keep_f32:
        return output.stored_as(BY_NAME["F32"])
    exact = exact_format(output)
    if exact is not None:
        return exact
    names = {source.nominal for source in output.sources if source.nominal in FILE_TYPES}
    if not names:
        return None
    return BY_NAME[names.pop() if len(names) == 1 else "F32"]


def tensors_for(checkpoint: Checkpoint, plan: Plan, outputs: Sequence[OutputFile]) -> tuple[ConvertedTensor, ...]:
    """The plan's tensors, in the order of the last output, exact where an output has the sources' own format."""
    wanted: dict[str, set[Format]] = {}
    for output in outputs:
        for spec in output.shards.whole.tensors:
            wanted.setdefault(spec.name, set()).add(spec.format)
    by_name = {tensor.name: tensor for tensor in tensors_of(checkpoint, plan.outputs, wanted)}
    return tuple(by_name[spec.name] for spec in outputs[-1].shards.whole.tensors)
