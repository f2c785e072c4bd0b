"""What a job file can say, as data: it drives the validation, and the JSON schema that editors check by.

Most keys are the options of the commands, and follow from the records of `pipeline.request`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ggufsmith.pipeline.option import INPUTS, MODEL, Declared, Input, declared
from ggufsmith.pipeline.request import RECORDS, MakeOptions, SourceOptions, WriteOptions

Kind = Literal["text", "texts", "flag", "number", "numbers"]
FITTING: Mapping[Kind, str] = {
    "text": "a text",
    "texts": "a text, or a list of texts",
    "flag": "true or false",
    "number": "a whole number above 0",
    "numbers": "a number, or a list of numbers",
}
ENCODING = "encoding"


@dataclass(frozen=True)
class JobKey:
    """One key.

    kind:    a string, strings (or a single one), a boolean, a whole number from 1 on, numbers (or a single one).
    fields:  what may stand in braces in it.
    inputs:  the sources that it has a meaning for.
    decides: see `pipeline.option.Option`.
    """

    about: str
    kind: Kind = "text"
    default: Any = ""
    fields: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = tuple(INPUTS)
    decides: bool = False


DEFAULTS: Mapping[Kind, Any] = {"text": "", "texts": (), "flag": False, "number": 0, "numbers": ()}


def _kind(field: Declared) -> Kind:
    """The kind of value that the key of a field takes."""
    if field.option.numbers or field.type.startswith("tuple[float"):
        return "numbers"
    if field.type.startswith("tuple["):
        return "texts"
    return {"bool": "flag", "int | None": "number"}.get(field.type, "text")  # type: ignore[return-value]


def _keys(record: type) -> Iterator[tuple[str, JobKey]]:
    """The keys that stand for the fields of a record of options."""
    for field in declared(record):
        option, kind = field.option, _kind(field)
        if field.key is not None:
            about = option.keyed or option.about
            yield field.key, JobKey(about, kind, DEFAULTS[kind], option.fields, option.inputs, option.decides)


# Keys that stand for options of the commands, and those that only jobs have.
SETTINGS: Mapping[str, JobKey] = {
    "extends": JobKey("The name of a set, [sets.NAME], whose settings take precedence over the defaults."),
    **dict(_keys(MakeOptions)),
    **dict(_keys(SourceOptions)),
    "folder": JobKey(
        "The folder for the model's outputs, within the output folder.", default="{model}", fields=(MODEL,)
    ),
    "file": JobKey("The name of each output file.", default="{model}-{encoding}.gguf", fields=(MODEL, ENCODING)),
    **dict(_keys(WriteOptions)),
    "checksums": JobKey(
        "The name of the file with SHA-256 sums; empty for none.", default="SHA256SUMS", fields=(MODEL,)
    ),
    "card": JobKey("The name of the model card, such as README.md; empty for none.", fields=(MODEL,)),
    "quality": JobKey(
        "For the card: measure what the outputs have lost against their source, as `ggufsmith eval` does with the text "
        "that ships, and put the table into it.",
        kind="flag",
        default=False,
    ),
    "repo": JobKey("For the card: the repository where the files will be published, org/name-GGUF.", fields=(MODEL,)),
    "base_model": JobKey("For the card: the original model, org/name.", fields=(MODEL,)),
    "push": JobKey(
        "The repository on the Hugging Face hub where the model is published when it is finished, org/name-GGUF; "
        "meanwhile the job goes on.",
        fields=(MODEL,),
    ),
    "create": JobKey("With `push`: make the repository, if it does not exist.", "flag", False),
    "private": JobKey("With `push`: make it as a private one, if it does not exist.", "flag", False),
    "replace": JobKey("With `push`: add new versions of files that are there with other content.", "flag", False),
    "author": JobKey("For the card: who quantized the model; by default the name in `quantized_by`."),
    "card_template": JobKey(
        "For the card: a Jinja2 template, relative to the job file, instead of the usual card.", fields=(MODEL,)
    ),
}
MODELS: Mapping[str, JobKey] = {
    "source": JobKey(
        "A model or adapter folder, a GGUF or old GGML file, relative to the job file; or hf://org/name, "
        "modelscope://org/name."
    ),
    "revision": JobKey("The branch, tag or commit of a model on a hub."),
    "name": JobKey("What {model} stands for in names; by default the name of the source."),
    **SETTINGS,
}
# Options of gguf-convert and gguf-quant that no key stands for -> why.
KEYLESS: Mapping[str, str] = {
    **{field.flag: field.option.keyless for record in RECORDS for field in declared(record) if field.option.keyless},
    "--outtype auto": "a job knows the names of its files before it reads a checkpoint",
    "--dry-run, --json, --quiet": "they are options of the command",
}
# Option of the commands -> the key that stands for it.
KEY_OF_FLAG: Mapping[str, str] = {
    field.flag: field.key for record in RECORDS for field in declared(record) if field.key
} | {f"--{key.replace('_', '-')}": key for key in ("card", "push", "create", "private", "replace", "card_template")}
# What is meant by `KEY = true`, where that is not a value of the key.
SWITCHED_ON: Mapping[str, str] = {
    "calibrate": "auto",
    "imatrix": "auto",
    "card": "README.md",
    "checksums": "SHA256SUMS",
}
OUTPUT = JobKey("The folder that everything is written into, relative to the job file.")
TABLES = {
    "defaults": "Settings for all models, unless a model or a set says otherwise.",
    "sets": "Named sets of settings, for use with `extends`.",
    "model": "The models.",
}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a job file."""
    settings = _table(SETTINGS, TABLES["defaults"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ggufsmith batch",
        "type": "object",
        "additionalProperties": False,
        "required": ["output", "model"],
        "properties": {
            "output": _value(OUTPUT),
            "defaults": settings,
            "sets": {
                "type": "object",
                "description": TABLES["sets"],
                "additionalProperties": _table(SETTINGS, "Settings."),
            },
            "model": {
                "type": "array",
                "description": TABLES["model"],
                "minItems": 1,
                "items": {**_table(MODELS, "A model."), "required": ["source"]},
            },
        },
    }


def _table(keys: Mapping[str, JobKey], about: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "additionalProperties": False,
        "properties": {name: _value(key) for name, key in keys.items()},
    }


def _value(key: JobKey) -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "number", "minimum": 0}
    kinds: Mapping[Kind, dict[str, Any]] = {
        "text": text,
        "texts": {"anyOf": [text, {"type": "array", "items": text}]},
        "flag": {"type": "boolean"},
        "number": {"type": "integer", "minimum": 1},
        "numbers": {"anyOf": [number, {"type": "array", "items": number}]},
    }
    default = {"default": key.default} if key.default else {}
    return {"description": described(key), **kinds[key.kind], **default}


def described(key: JobKey) -> str:
    """A sentence or two about a key."""
    fields = " and ".join(f"{{{field}}}" for field in key.fields)
    inputs = meant(key.inputs) if len(key.inputs) < len(INPUTS) else ""
    return " ".join([key.about, *([f"May hold {fields}."] if fields else []), *([f"For {inputs}."] if inputs else [])])


def in_keys(text: str) -> str:
    """A message of the commands with the keys of a job file in the place of their options."""
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*", lambda found: KEY_OF_FLAG.get(found[0], found[0]), text)


def meant(inputs: Iterable[Input]) -> str:
    """These kinds of source in words."""
    return " or ".join(INPUTS[kind] for kind in inputs)
