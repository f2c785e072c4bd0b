"""What a job file can say, as data: it drives the validation, and the JSON schema that editors check by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "texts", "flag"]


@dataclass(frozen=True)
class Key:
    """One key. kind: a string, strings (or a single one), or a boolean.

    fields: what may stand in braces in it.
    """

    about: str
    kind: Kind = "text"
    default: Any = ""
    fields: tuple[str, ...] = ()


MODEL, ENCODING = "model", "encoding"
SETTINGS: Mapping[str, Key] = {
    "extends": Key("Settings of this name, [sets.NAME], come before the defaults."),
    "recipes": Key("File types, or recipe files (.toml), relative to the job file.", "texts", ()),
    "outtypes": Key("Unquantized outputs of a checkpoint: f32, f16, bf16.", "texts", ()),
    "lora": Key("PEFT adapters to merge: FOLDER, or FOLDER:FACTOR.", "texts", ()),
    "imatrix": Key("Importance matrix, GGUF or .dat.", fields=(MODEL,)),
    "include_weights": Key("Use it only for tensors with these names.", "texts", ()),
    "exclude_weights": Key("Do not use it for tensors with these names.", "texts", ()),
    "strict": Key("Fail if a tensor cannot have the type of its rule.", "flag", False),
    "allow_requantize": Key("Quantize what is quantized already; the errors add up.", "flag", False),
    "folder": Key("Folder of the outputs, in the output folder.", default="{model}", fields=(MODEL,)),
    "file": Key("Name of an output.", default="{model}-{encoding}.gguf", fields=(MODEL, ENCODING)),
    "shard_size": Key("Split outputs into shards of at most this size, such as 4G."),
    "checksums": Key("Name of the file of SHA-256 sums; empty for none.", default="SHA256SUMS", fields=(MODEL,)),
    "card": Key("Name of the model card, such as README.md; empty for none.", fields=(MODEL,)),
    "repo": Key("For the card: where the files will be published, org/name-GGUF.", fields=(MODEL,)),
    "base_model": Key("For the card: what they were made from, org/name.", fields=(MODEL,)),
    "author": Key("For the card: who quantized them."),
    "stream": Key("Read the weights of a model on a hub by ranges, and do not store them.", "flag", False),
    "pre": Key("The pre-tokenizer, if its structure is not recognised."),
    "model_name": Key("general.name, instead of the folder's."),
    "metadata": Key("JSON file of general.* keys that override.", fields=(MODEL,)),
}
MODELS: Mapping[str, Key] = {
    "source": Key("A model folder or GGUF file, relative to the job file; or hf://org/name, modelscope://org/name."),
    "revision": Key("Branch, tag or commit on the hub."),
    "name": Key("{model} in names; by default that of the source."),
    **SETTINGS,
}
OUTPUT = Key("Folder that everything is written into, relative to the job file.")
TABLES = {
    "defaults": "Settings of every model that does not say otherwise.",
    "sets": "Named settings, to extend.",
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


def _table(keys: Mapping[str, Key], about: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "additionalProperties": False,
        "properties": {name: _value(key) for name, key in keys.items()},
    }


def _value(key: Key) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    kinds: Mapping[Kind, dict[str, Any]] = {
        "text": text,
        "texts": {"anyOf": [text, {"type": "array", "items": text}]},
        "flag": {"type": "boolean"},
    }
    default = {"default": key.default} if key.default else {}
    return {"description": described(key), **kinds[key.kind], **default}


def described(key: Key) -> str:
    """A sentence or two about a key."""
    fields = " and ".join(f"{{{field}}}" for field in key.fields)
    return f"{key.about} May hold {fields}." if fields else key.about
