"""From the texts of a request to recipes, types, budgets and limits. Usage for what does not exist or does not fit."""

from dataclasses import dataclass, replace

from gguf.constants import Keys

from ggufsmith.container.disk import check_folder
from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.formats import FLOATS, Format, format_of
from ggufsmith.container.output_names import check_name
from ggufsmith.container.shards import Limits
from ggufsmith.container.units import parse_size
from ggufsmith.container.values import Metadata, string
from ggufsmith.naming.local import is_path
from ggufsmith.pipeline.option import INPUTS, Input, unfit
from ggufsmith.pipeline.request import AUTO, MakeOptions, Request, WriteOptions
from ggufsmith.quantize.budget import Budget, budget_of
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import Imatrix
from ggufsmith.quantize.recipes.assign import Recipe, TypeOptions
from ggufsmith.quantize.recipes.files import recipe_of
from ggufsmith.quantize.recipes.options import check_options, override_of, overrides_of_file

EFFORTS = ("none", "fast", "normal", "best")  # see calibrate/run.py
PROJECTOR_TYPES = ("f16", "bf16", "f32", "q8_0")  # the first is that of a projector that was given none
OUTTYPES = (*(name.lower() for name in FLOATS), "auto")


@dataclass(frozen=True)
class Making:
    """What `MakeOptions` asks for. types: what applies on top of every recipe. budgets: each chooses a recipe."""

    recipes: tuple[Recipe, ...]
    types: TypeOptions
    budgets: tuple[Budget, ...]

    @property
    def quantizes(self) -> bool:
        """Whether a recipe or a budget was given."""
        return bool(self.recipes or self.budgets)


def resolved(request: Request, *kinds: Input) -> tuple[Making, Limits]:
    """What a request asks for, checked as far as that is possible before its source is opened.

    kinds: what the source may be. Usage for what is unknown, contradicts itself or has no meaning for such a source.
    """
    refuse_unfit(request, *kinds)
    making, limits = making_of(request.make), limits_of(request.write)
    if request.write.outfile is not None and len((*request.make.outtypes, *making.recipes, *making.budgets)) > 1:
        raise Usage(
            "--outfile names one file, but several recipes or types would each write one",
            fix="Leave out --outfile, or choose a folder with --outdir.",
        )
    if request.write.outfile is not None:
        check_folder(request.write.outfile.absolute().parent)
        check_name(request.write.outfile)
    if request.make.sensitivity is not None and request.source.prune_layers:
        raise Usage(
            "--prune-layers renumbers the layers, so --sensitivity cannot say what they cost",
            fix="Leave out one of the two, or prune first and measure the smaller file.",
        )
    if request.source.vocab_only and making.quantizes:
        raise Usage("a file that holds only the vocabulary has nothing to quantize", fix="Leave out --recipe.")
    return making, limits


def making_of(make: MakeOptions) -> Making:
    """Read recipes, types and budgets. Usage for what is unknown or contradicts itself."""
    recipes = tuple(each if isinstance(each, Recipe) else recipe_of(each) for each in make.recipes)
    unknown = [each for each in make.outtypes if each.lower() not in OUTTYPES]
    if unknown:
        raise Usage(f"unknown output type {unknown[0]!r}", fix=f"Choose one of {', '.join(OUTTYPES)}.")
    check_projector_type(make)
    types = type_options(make)
    check_options(types, list(recipes))
    budgets = budgets_of(make)
    if budgets and (recipes or make.outtypes or types != TypeOptions()):
        raise Usage(
            "--target-size, --target-bpw and --match choose all types, so recipes and types cannot be given as well",
            fix="Leave out one of the two. The recipe that is chosen can be edited and used again with --recipe.",
        )
    if make.save_recipe is not None and make.save_recipe.suffix != ".toml":
        raise Usage(
            "the name of a recipe file must end in .toml",
            where=make.save_recipe,
            fix=f"Use --save-recipe {make.save_recipe}.toml.",
        )
    if make.save_recipe is not None and len(budgets) != 1:
        raise Usage(
            "--save-recipe saves what one --target-size, --target-bpw or --match chooses",
            fix="Give exactly one of them.",
        )
    if make.sensitivity is not None and not budgets and not any(recipe.addition for recipe in recipes):
        raise Usage(
            "--sensitivity says what types cost, but nothing chooses among them",
            fix="Add --target-size, --target-bpw or --match.",
        )
    if (make.include_weights or make.exclude_weights) and make.imatrix is None:
        raise Usage(
            "--include-weights and --exclude-weights choose entries of an importance matrix, but none was given",
            fix="Add --imatrix FILE.",
        )
    if make.effort is not None and make.effort not in EFFORTS:
        raise Usage(f"unknown effort {make.effort!r}", where="--effort", fix=f"Choose one of {', '.join(EFFORTS)}.")
    if not make.calibrate:
        for flag, value in (
            ("--effort", make.effort),
            ("--calibrate-chunks", make.calibrate_chunks),
            ("--device", make.calibrate_device),
        ):
            if value is not None:
                raise Usage(f"{flag} is about calibrating, but --calibrate was not given", fix="Add --calibrate.")
    if make.keep_imatrix and make.imatrix != AUTO:
        raise Usage(
            "--keep-imatrix keeps what --imatrix auto makes, but that was not given",
            fix="Add --imatrix auto, or leave out --keep-imatrix.",
        )
    if make.imatrix_chunks is not None and make.imatrix != AUTO:
        raise Usage(
            "--imatrix-chunks is about what --imatrix auto makes, but that was not given",
            fix="Add --imatrix auto, or leave out --imatrix-chunks.",
        )
    signed(make)
    if not (recipes or budgets) and (
        make.imatrix or make.quantized_by or make.calibrate or make.strict or types != TypeOptions()
    ):
        raise Usage("options for quantizing were given, but no recipe", fix="Add --recipe, such as q4_K_M.")
    return Making(recipes, types, budgets)


def check_projector_type(make: MakeOptions) -> None:
    """Usage for a type that projectors are not made in, and for one without a projector."""
    wanted = make.mmproj_outtype
    if wanted is not None and wanted.lower() not in PROJECTOR_TYPES:
        raise Usage(
            f"unknown type {wanted!r}", where="--mmproj-outtype", fix=f"Choose one of {', '.join(PROJECTOR_TYPES)}."
        )
    if wanted is not None and not make.mmproj:
        raise Usage("--mmproj-outtype is about the projector, but --mmproj was not given", fix="Add --mmproj.")


def imatrix_of(make: MakeOptions) -> Imatrix | None:
    """The importance matrix that a request names. Raises what is wrong with it (see `open_imatrix`)."""
    if make.imatrix is None:
        return None
    if make.imatrix == AUTO:
        raise Usage(
            "an importance matrix has to be made before the plan", fix="Use `calibrate.auto`, as the commands do."
        )
    return replace(open_imatrix(make.imatrix, make.include_weights, make.exclude_weights), method=dict(make.method))


def signed(make: MakeOptions) -> Metadata:
    """The keys of a quantized file that say who made it. Usage for a path or an empty name."""
    if make.quantized_by is None:
        return {}
    if not make.quantized_by.strip() or is_path(make.quantized_by):
        raise Usage(
            f"{make.quantized_by!r} is not a name", fix="Give a name with --quantized-by, such as that on the hub."
        )
    return {Keys.General.QUANTIZED_BY: string(make.quantized_by)}


def type_options(make: MakeOptions) -> TypeOptions:
    """The types that apply on top of every recipe. Usage for an unknown type or expression."""
    overrides = [
        *(override_of(text) for text in make.tensor_types),
        *(overrides_of_file(make.tensor_type_file) if make.tensor_type_file else ()),
    ]
    return TypeOptions(
        make.pure,
        make.leave_output_tensor,
        _format(make.output_tensor_type),
        _format(make.token_embedding_type),
        tuple(overrides),
    )


def _format(name: str | None) -> Format | None:
    if not name:
        return None
    try:
        return format_of(name)
    except Unsupported as error:
        raise Usage(error.what, fix=error.fix) from None


def budgets_of(make: MakeOptions) -> tuple[Budget, ...]:
    """The budgets that choose types. Usage for one of each kind, and for what is not a size or a number of bits."""
    given = {
        "--target-size": make.target_size,
        "--target-bpw": make.target_bpw,
        "--match": make.match,
    }
    flags = [flag for flag, values in given.items() if values]
    if len(flags) > 1:
        raise Usage(f"{' and '.join(flags)} cannot be used together", fix="Leave out all but one of them.")
    sizes = [budget_of(text, None) for text in make.target_size]
    bits = [budget_of(None, bits) for bits in make.target_bpw]
    matches = [Budget(match=recipe_of(text)) for text in make.match]
    return tuple(each for each in (*sizes, *bits, *matches) if each is not None)


def refuse_unfit(request: Request, *kinds: Input) -> None:
    """Usage if an option is set that has no meaning for a source of any of these kinds."""
    unwanted = unfit(kinds, request.source, request.make, request.write)
    if unwanted:
        named = " or ".join(INPUTS[kind] for kind in kinds)
        raise Usage(f"{' and '.join(unwanted)} cannot be used with {named}", where=request.path, fix="Leave it out.")


def limits_of(write: WriteOptions) -> Limits:
    """Where a new shard begins. Usage for a text that is not a size, and for options that do not fit together."""
    if write.outfile is not None and write.outdir is not None:
        raise Usage("--outfile and --outdir both say where the output goes", fix="Leave out one of the two.")
    splits = write.split_max_size is not None or write.split_max_tensors is not None
    if write.no_tensor_first_split and not splits:
        raise Usage(
            "--no-tensor-first-split applies only to an output of several files",
            fix="Add --split-max-size or --split-max-tensors.",
        )
    if write.keep_split and splits:
        raise Usage(
            "--keep-split splits at the same places as the source and cannot be combined with other options "
            "for splitting",
            fix="Leave it out, or leave out the other options for splitting.",
        )
    size = parse_size(write.split_max_size) if write.split_max_size is not None else None
    return Limits(size, write.split_max_tensors, write.no_tensor_first_split)
