"""What a job file can say, as data: it drives the validation, and the JSON schema that editors check by."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "texts", "flag", "number", "numbers"]
FITTING: Mapping[Kind, str] = {
    "text": "a text",
    "texts": "a text, or a list of texts",
    "flag": "true or false",
    "number": "a whole number above 0",
    "numbers": "a number, or a list of numbers",
}
Input = Literal["model", "adapter", "file"]
INPUTS: Mapping[Input, str] = {"model": "a model folder", "adapter": "an adapter", "file": "a GGUF file"}
MODEL, ENCODING = "model", "encoding"
CHECKPOINT: tuple[Input, ...] = ("model", "adapter")
WEIGHTS: tuple[Input, ...] = ("model", "file")


@dataclass(frozen=True)
class JobKey:
    """One key.

    kind:    a string, strings (or a single one), a boolean, a whole number from 1 on, numbers (or a single one).
    fields:  what may stand in braces in it.
    inputs:  the sources that it has a meaning for.
    decides: its value has a part in the bytes of outputs, or in their names in a set. Files that a value names are
    known by their content instead, recipes by their rules.
    """

    about: str
    kind: Kind = "text"
    default: Any = ""
    fields: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = tuple(INPUTS)
    decides: bool = False


SETTINGS: Mapping[str, JobKey] = {
    "extends": JobKey("Settings of this name, [sets.NAME], come before the defaults."),
    "recipes": JobKey(
        "File types, or recipe files (.toml, .yaml), relative to the job file.", "texts", (), inputs=WEIGHTS
    ),
    "outtypes": JobKey("Unquantized outputs of a checkpoint: f32, f16, bf16.", "texts", (), inputs=CHECKPOINT),
    "target_size": JobKey(
        "Outputs of these sizes, such as 4.5GiB; their types are chosen.", "texts", (), inputs=WEIGHTS
    ),
    "target_bpw": JobKey("Outputs of so many bits per weight; their types are chosen.", "numbers", (), inputs=WEIGHTS),
    "lora": JobKey("PEFT adapters to merge: FOLDER, or FOLDER:FACTOR.", "texts", (), inputs=("model",)),
    "base": JobKey("Folder of the base model of an adapter, if not where it says.", inputs=("adapter",)),
    "tokenizer": JobKey("Folder with the vocabulary, instead of that in the file.", fields=(MODEL,), inputs=("file",)),
    "imatrix": JobKey("Importance matrix, GGUF or .dat.", fields=(MODEL,), inputs=WEIGHTS),
    "include_weights": JobKey("Use it only for tensors with these names.", "texts", (), inputs=WEIGHTS, decides=True),
    "exclude_weights": JobKey("Do not use it for tensors with these names.", "texts", (), inputs=WEIGHTS, decides=True),
    "pure": JobKey("One type for all matrices, no mixture.", "flag", False, inputs=WEIGHTS, decides=True),
    "leave_output_tensor": JobKey("Keep output.weight as it is.", "flag", False, inputs=WEIGHTS, decides=True),
    "output_tensor_type": JobKey("Type of output.weight.", inputs=WEIGHTS, decides=True),
    "token_embedding_type": JobKey("Type of the token embeddings.", inputs=WEIGHTS, decides=True),
    "tensor_types": JobKey("REGEX=TYPE, for tensors with such names.", "texts", (), inputs=WEIGHTS, decides=True),
    "strict": JobKey("Fail if a tensor cannot have the type of its rule.", "flag", False),
    "allow_requantize": JobKey("Quantize what is quantized already; the errors add up.", "flag", False),
    "prune_layers": JobKey("Leave out these layers.", "numbers", (), inputs=("file",), decides=True),
    "override_kv": JobKey("KEY=TYPE:VALUE, sets a metadata key.", "texts", (), inputs=("file",), decides=True),
    "pre": JobKey("The pre-tokenizer, if its structure is not recognised.", inputs=("model",), decides=True),
    "model_name": JobKey("general.name, instead of the folder's.", decides=True),
    "metadata": JobKey("JSON file of general.* keys that override.", fields=(MODEL,), inputs=CHECKPOINT),
    "folder": JobKey("Folder of the outputs, in the output folder.", default="{model}", fields=(MODEL,)),
    "file": JobKey("Name of an output.", default="{model}-{encoding}.gguf", fields=(MODEL, ENCODING)),
    "shard_size": JobKey("Split outputs into shards of at most this size, such as 4G.", decides=True),
    "shard_tensors": JobKey("Split outputs into shards of at most so many tensors.", "number", 0, decides=True),
    "no_tensor_first_split": JobKey(
        "Of several shards, the first gets the metadata only.", "flag", False, decides=True
    ),
    "keep_split": JobKey("As many shards as the source has.", "flag", False, inputs=("file",), decides=True),
    "checksums": JobKey("Name of the file of SHA-256 sums; empty for none.", default="SHA256SUMS", fields=(MODEL,)),
    "card": JobKey("Name of the model card, such as README.md; empty for none.", fields=(MODEL,)),
    "repo": JobKey("For the card: where the files will be published, org/name-GGUF.", fields=(MODEL,)),
    "base_model": JobKey("For the card: what they were made from, org/name.", fields=(MODEL,)),
    "author": JobKey("For the card: who quantized them."),
    "stream": JobKey("Read the weights of a model on a hub by ranges, and do not store them.", "flag", False),
    "scheduler": JobKey("Work on the Dask cluster at this address, tcp://HOST:8786."),
}
MODELS: Mapping[str, JobKey] = {
    "source": JobKey(
        "A model or adapter folder, a GGUF or old GGML file, relative to the job file; or hf://org/name, "
        "modelscope://org/name."
    ),
    "revision": JobKey("Branch, tag or commit on the hub."),
    "name": JobKey("{model} in names; by default that of the source."),
    **SETTINGS,
}
# Options of gguf-convert and gguf-quant that no key stands for -> why.
KEYLESS: Mapping[str, str] = {
    "--outtype auto": "a job knows the names of its files before it reads a checkpoint",
    "--outtype of a file": "`recipes` has f32, f16 and bf16 as well",
    "--outfile, --outdir, --strict-name": "`folder` and `file` say where outputs go",
    "--tensor-type-file": "`tensor_types` is the list itself",
    "--save-recipe": "a job chooses anew; a saved one is for `recipes`",
    "--vocab-only": "there are no weights to make",
    "--token": "secrets do not belong in files: HF_TOKEN, MODELSCOPE_API_TOKEN or the stored login",
    "--sha256": "`checksums` writes the sums, and reports have them",
    "--provenance": "the record beside the outputs knows what they were made from",
    "--threads, --no-sync, --dry-run, --json, --quiet": "they are options of the command",
    "--resume, --no-overwrite": "a job always resumes, and replaces what is out of date",
}
OUTPUT = JobKey("Folder that everything is written into, relative to the job file.")
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


def meant(inputs: Iterable[Input]) -> str:
    return " or ".join(INPUTS[kind] for kind in inputs)
