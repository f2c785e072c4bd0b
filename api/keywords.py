"""The keywords of the calls: the fields of the records in `pipeline.request`, with types for editors and type checkers.

What a caller gives is checked and brought into the form that the records hold. Lists may be given as a single value.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from ggufsmith.container.errors import Usage
from ggufsmith.container.text import did_you_mean
from ggufsmith.pipeline.option import Declared, declared

if TYPE_CHECKING:
    from ggufsmith.quantize.recipes.assign import Recipe

StrPath: TypeAlias = str | os.PathLike[str]
Texts: TypeAlias = str | Sequence[str]
Paths: TypeAlias = StrPath | Sequence[StrPath]


class WrongArgument(Usage, TypeError):
    """A keyword that a call does not have, or a value of a type that it cannot take."""


class FileKeywords(TypedDict, total=False):
    """What may be changed in any model on the way."""

    override_kv: Texts
    prune_layers: int | str | Sequence[int | str]
    model_name: str | None


class CheckpointKeywords(TypedDict, total=False):
    """What may be said of a model folder, an adapter, or a model on a hub."""

    lora: "StrPath | Sequence[StrPath | tuple[StrPath, float]]"
    base: StrPath | None
    pre: str | None
    mtp: str | None
    target: StrPath | None
    metadata: StrPath | None
    vocab_only: bool
    revision: str | None
    token: str | None
    stream: bool


class MakingKeywords(TypedDict, total=False):
    """What is made (see `pipeline.request.MakeOptions`)."""

    outtypes: Texts
    recipes: "StrPath | Recipe | Sequence[StrPath | Recipe]"
    imatrix: StrPath | None
    keep_imatrix: bool
    imatrix_chunks: int | None
    calibrate: bool | Paths
    calibrate_chunks: int | None
    effort: str | None
    calibrate_device: str | None
    include_weights: Texts
    exclude_weights: Texts
    pure: bool
    leave_output_tensor: bool
    output_tensor_type: str | None
    token_embedding_type: str | None
    tensor_types: Texts
    tensor_type_file: StrPath | None
    target_size: Texts
    target_bpw: float | Sequence[float]
    match: Texts
    sensitivity: StrPath | None
    save_recipe: StrPath | None
    strict: bool
    allow_requantize: bool
    quantized_by: str | None


class WritingKeywords(TypedDict, total=False):
    """Where outputs go, and what is left beside them (see `pipeline.request.WriteOptions` and `PublishOptions`)."""

    outfile: StrPath | None
    outdir: StrPath | None
    keep_split: bool
    split_max_size: str | None
    split_max_tensors: int | None
    no_tensor_first_split: bool
    strict_name: bool
    overwrite: bool
    threads: int | None
    scheduler: str | None
    sync: bool
    resume: bool
    sha256: bool
    provenance: bool
    card: bool
    push: str | None
    create: bool
    private: bool
    replace: bool
    modelfile: bool
    card_template: StrPath | None


class QuantizeKeywords(FileKeywords, MakingKeywords, WritingKeywords, total=False):
    """Of `quantize`."""


class ConvertKeywords(CheckpointKeywords, FileKeywords, MakingKeywords, WritingKeywords, total=False):
    """Of `convert`."""

    mmproj: bool
    mmproj_outtype: str | None


class RunKeywords(TypedDict, total=False):
    """Which text the model is run on, and where (see `pipeline.request.TextOptions`)."""

    text: Paths
    chunks: int | None
    device: str | None
    lora: "StrPath | Sequence[StrPath | tuple[StrPath, float]]"
    revision: str | None
    token: str | None


class ReadingKeywords(RunKeywords, total=False):
    """As well, in which windows."""

    context: int


class SensitivityKeywords(RunKeywords, total=False):
    """Of `sensitivity`."""

    outfile: StrPath | None
    overwrite: bool
    threads: int | None


class ImatrixKeywords(ReadingKeywords, total=False):
    """Of `imatrix`."""

    outfile: StrPath | None
    overwrite: bool
    threads: int | None


class EvaluateKeywords(ReadingKeywords, total=False):
    """Of `evaluate`."""

    recipes: "StrPath | Recipe | Sequence[StrPath | Recipe]"
    imatrix: StrPath | None
    imatrix_chunks: int | None
    stream: bool


class VerifyKeywords(TypedDict, total=False):
    """Of `verify`."""

    lora: "StrPath | Sequence[StrPath | tuple[StrPath, float]]"
    base: StrPath | None
    target: StrPath | None
    revision: str | None
    token: str | None
    threads: int | None


def records_of(call: str, known: type, given: Mapping[str, Any], *records: type) -> tuple[Any, ...]:
    """The records with what was given. known: the TypedDict of the call's keywords.

    WrongArgument, with the nearest name, for a keyword that the call has not, and for a value of a wrong type.
    """
    names: Mapping[str, object] = known.__annotations__
    fields = {each.name: each for record in records for each in declared(record) if each.name in names}
    for name in given.keys() - fields.keys():
        flags = {each.flag.lstrip("-").replace("-", "_"): each.name for each in fields.values()}
        meant = f"It is called {flags[name]}." if name in flags else did_you_mean(name, fields)
        raise WrongArgument(f"{call}() has no keyword {name!r}", fix=meant or f"It has: {', '.join(sorted(fields))}.")
    return tuple(
        record(**{each.name: value_of(each, given[each.name]) for each in declared(record) if each.name in given})
        for record in records
    )


def value_of(field: Declared, given: Any) -> Any:
    """What the record holds for what was given. WrongArgument for a value of a wrong type."""
    kind = field.type
    if given is None and kind not in ("bool", "int"):
        return field.default
    if kind.startswith("tuple["):
        if field.name == "calibrate" and isinstance(given, bool):  # as the option is, without a file
            return (Path("auto"),) if given else ()
        listed = given if isinstance(given, list | tuple | set | frozenset) else [given]
        if field.name == "lora" and isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], float | int):
            listed = [given]
        return tuple(_one(field, kind[len("tuple[") : -len(", ...]")], each) for each in listed)
    return _one(field, kind.removesuffix(" | None"), given)


def path_of(name: str, given: object) -> Path:
    """A path that a caller gave for an argument. WrongArgument for anything else."""
    if isinstance(given, str | os.PathLike) and isinstance(text := os.fspath(given), str) and text:
        return Path(text)
    raise _wrong(name, given, "a path, as a text or a pathlib.Path")


def _one(field: Declared, kind: str, given: Any) -> Any:
    expected, accept = KINDS[kind]
    try:
        return accept(given)
    except (TypeError, ValueError):
        raise _wrong(field.name, given, expected) from None


def _wrong(name: str, given: object, expected: str) -> WrongArgument:
    return WrongArgument(
        f"{name} is {given!r:.60}, of type {type(given).__name__}", fix=f"Pass {expected}.", where=f"{name}="
    )


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError
    return given


def _path(given: Any) -> Path:
    return path_of("", given)


def _switch(given: Any) -> bool:
    if not isinstance(given, bool):
        raise TypeError
    return given


def _count(given: Any) -> int:
    if isinstance(given, bool) or not hasattr(given, "__index__") or int(given) < 1:
        raise TypeError
    return int(given)


def _number(given: Any) -> float:
    if isinstance(given, bool | str):
        raise TypeError
    return float(given)


def _recipe(given: Any) -> Any:
    from ggufsmith.quantize.recipes.assign import Recipe

    return given if isinstance(given, Recipe) else str(_path(given))


def _layer(given: Any) -> str | int:
    return given if isinstance(given, str) else _count(given + 1) - 1


def _adapter(given: Any) -> Any:
    if isinstance(given, tuple):
        folder, factor = given
        return _path(folder), _number(factor)
    return given if isinstance(given, str) and given else (_path(given), 1.0)


# Type of a field, as its record declares it -> what to tell of it, and what makes it.
KINDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "str": ("a text", _text),
    "Path": ("a path, as a text or a pathlib.Path", _path),
    "bool": ("True or False", _switch),
    "int": ("a whole number, 1 or more", _count),
    "float": ("a number", _number),
    "str | Any": ("the name of a recipe, the path of a recipe file, or a Recipe", _recipe),
    "str | int": ("the number of a layer, 0 or more", _layer),
    "str | tuple[Path, float]": ("the folder of an adapter, or a tuple (folder, factor)", _adapter),
}
