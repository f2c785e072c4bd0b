"""A pass over a model file: GGUF, its shards, or a Llama file from before GGUF, into any number of GGUF files."""

from collections.abc import Sequence
from dataclasses import replace

from gguf.constants import GGUFType

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.ggml import is_ggml
from ggufsmith.container.shards import GgufSet, Limits
from ggufsmith.container.values import Metadata, string
from ggufsmith.naming.suggest import name_of
from ggufsmith.pipeline.passes import Pass, SourceInfo
from ggufsmith.pipeline.request import MakeOptions, Request
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.model_check import check_model, kind_of
from ggufsmith.quantize.opened import OpenedModel
from ggufsmith.quantize.outputs import Quantizable, check_names, fit_importance, output_paths, plan_outputs
from ggufsmith.quantize.overrides import overrides_of
from ggufsmith.quantize.prune import fewer_layers, parse_layers, prune_layers, without_layers
from ggufsmith.quantize.recipes.assign import Recipe, Stored, TypeOptions, facts_of, file_order
from ggufsmith.quantize.recipes.files import recipe_of
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from ggufsmith.quantize.remarks import remarks
from ggufsmith.quantize.resolve import Making, imatrix_of, resolved, signed
from ggufsmith.quantize.source import open_model
from ggufsmith.quantize.tensors import FileOpening, GgufTensor


def open_file_pass(request: Request, vocabulary: Metadata | None = None, notes: Sequence[str] = ()) -> Pass:
    """Read headers and the importance matrix; decide every byte's place. Raises what is wrong with the input.

    vocabulary: `tokenizer.*` keys instead of those of the file. notes: what else the report should say.
    """
    making, limits = resolved(request, "file")
    model = open_model(request.path, vocabulary)
    try:
        return _plan(request, making, limits, model, notes)
    except BaseException:
        model.files.close()
        raise


def _plan(request: Request, making: Making, limits: Limits, model: OpenedModel, notes: Sequence[str]) -> Pass:
    source, make, write = model.files, request.make, request.write
    if not source.tensors:
        raise Malformed("this file has no tensors", where=request.path, fix="Pass a model; this may be a vocabulary.")
    check_model(source.metadata, list(source.tensors), request.path)
    if kind_of(source.metadata, ()) == GGUFType.MMPROJ:
        _refuse_measurements(request)
    plain, recipes = _unquantized(make), _recipes(request, making, source)
    keys = overrides_of(request.source.override_kv)
    if request.source.model_name is not None:
        keys = {"general.name": string(request.source.model_name), **keys}
    pruned = parse_layers(request.source.prune_layers)
    imatrix = imatrix_of(make)
    facts = facts_of({**source.metadata, **keys}, importance=imatrix is not None)
    held = facts_of({**keys, **source.metadata})  # layers are pruned by the numbers that they have in the file
    renamed = prune_layers(source.tensors, pruned, held.blocks)
    order = _shard_order(source) if write.keep_split else file_order(source.tensors)
    infos = [source.tensors[name] for name in order]
    tensors = tuple(GgufTensor(source, info, renamed[info.name]) for info in infos if info.name in renamed)
    everything = [Stored(info.name, info.shape, info.format) for info in source.tensors.values()]
    importance = fit_importance(imatrix, everything, facts, renamed) if imatrix else None
    metadata = without_layers(source.metadata, pruned, held)
    keys = fewer_layers(keys, pruned, held)
    name = model.name
    if write.strict_name:
        name = name_of({**metadata, **keys}, {tensor.name: tensor.info.shape for tensor in tensors}, strict=True)
    quantizable = Quantizable(
        [tensor.stored for tensor in tensors],
        metadata,
        facts,
        importance,
        counts=lambda layout: (
            _shard_counts(source, tensors) if write.keep_split else limits.counts(layout.tensors, source.alignment)
        ),
        alignment=source.alignment,
        overrides=keys,
    )
    paths = output_paths(name, (*plain, *recipes), write.outfile, write.outdir or request.path.parent)
    outputs = [
        *plan_outputs(
            replace(quantizable, importance=None),
            plain,
            TypeOptions(),
            paths[: len(plain)],
            strict=make.strict,
            allow_requantize=True,
        ),
        *plan_outputs(
            replace(quantizable, overrides={**signed(make), **keys}),
            recipes,
            making.types,
            paths[len(plain) :],
            strict=make.strict,
            allow_requantize=make.allow_requantize,
        ),
    ]
    check_names(outputs)
    return Pass(
        info=SourceInfo(tuple(source.paths), source.size, facts.architecture, metadata),
        source=source,
        tensors=tensors,
        outputs=tuple(outputs),
        inputs={path.name: path for path in (*source.paths, *([make.imatrix] if make.imatrix else []))},
        notes=(*notes, *model.told(keys), *(importance.coverage.notes() if importance else ()), *remarks(outputs)),
        opening=FileOpening.of(source, tensors),
        encoder=GGML,
        importance=importance.coverage.summary() if importance else None,
    )


def _refuse_measurements(request: Request) -> None:
    """Usage if the types or bytes of a projector are to follow from what a text model did with a text."""
    make = request.make
    given = {"--imatrix": make.imatrix, "--sensitivity": make.sensitivity, "--calibrate": make.calibrate}
    if named := [flag for flag, value in given.items() if value]:
        raise Usage(
            f"{' and '.join(named)} cannot be used with a projector: a text measures the text model, and a projector "
            "reads images or sound",
            where=request.path,
            fix="Leave it out. q8_0 and the other recipes, --target-size, --target-bpw and --match work without.",
        )


def _unquantized(make: MakeOptions) -> tuple[Recipe, ...]:
    """The recipes of unquantized files, which may be made of quantized ones."""
    if "auto" in map(str.lower, make.outtypes):
        raise Usage(
            "--outtype auto means the type that most weights of a checkpoint have, but this is a file",
            fix="Choose f32, f16 or bf16, or keep the file's types with --recipe copy.",
        )
    return tuple(map(recipe_of, make.outtypes))


def _recipes(request: Request, making: Making, source: GgufSet) -> tuple[Recipe, ...]:
    """The recipes that were asked for, or, of an old GGML file, that of a GGUF file with the same weights."""
    if making.recipes or request.make.outtypes:
        return making.recipes
    if is_ggml(request.path):
        return (_as_it_is(source),)
    raise Usage(
        "this is already a GGUF file",
        where=request.path,
        fix="Choose the new type with --recipe or --outtype. `ggufsmith recipes` prints all recipes, and "
        "`ggufsmith to-hf` turns the file back into a checkpoint.",
    )


def _as_it_is(source: GgufSet) -> Recipe:
    """A copy, under the name of the types that an old file has."""
    copy, number = recipe_of("copy"), source.metadata.get("general.file_type")
    names = [kind.name for kind in FILE_TYPES.values() if number is not None and kind.number == number.data]
    return replace(copy, name=names[0]) if names else copy


def _shard_order(source: GgufSet) -> list[str]:
    """As the shards have them: file by file, by place."""
    return [info.name for file in source.files for info in sorted(file.tensors.values(), key=lambda info: info.offset)]


def _shard_counts(source: GgufSet, tensors: Sequence[GgufTensor]) -> tuple[int, ...]:
    """How many of these tensors each file of the source holds."""
    return tuple(sum(source.file_of(tensor.info) is file for tensor in tensors) for file in source.files)
