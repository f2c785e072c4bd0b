"""One request: where a model comes from, what is made of it, and how it is written.

Frozen records hold what a user can say, as plain texts, paths and numbers. Everything else follows from their
fields: the options of the command line with their help, the keys of job files, and both references in docs/. To add an
option, add a field here and use it where it matters. This module is light, because `--help` imports it.
"""

from __future__ import annotations  # so that fields keep their types as they are written here

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufsmith.pipeline.option import CHECKPOINT, MODEL, WEIGHTS, option
from ggufsmith.pipeline.publish import PublishOptions

AUTO = Path("auto")  # instead of a file: make the importance matrix on the way
NO_RUN = "a job does not run the model"


@dataclass(frozen=True)
class SourceOptions:
    """Where the model comes from, and what is changed in it on the way."""

    lora: tuple[str | tuple[Path, float], ...] = option(
        (),
        "A PEFT adapter to merge into the model; may be given several times.",
        "Input",
        metavar="FOLDER[:FACTOR]",
        inputs=("model",),
        keyed="PEFT adapters to merge into the model: FOLDER, or FOLDER:FACTOR.",
    )
    base: Path | None = option(
        None,
        "The folder of an adapter's base model, if it is not where the adapter says.",
        "Input",
        metavar="FOLDER",
        inputs=("adapter",),
    )
    tokenizer: Path | None = option(
        None,
        "A folder whose vocabulary replaces the one in the file.",
        "Input",
        metavar="FOLDER",
        inputs=("file",),
        fields=(MODEL,),
    )
    override_kv: tuple[str, ...] = option(
        (),
        "Set a metadata key; may be given several times.",
        "Input",
        metavar="KEY=TYPE:VALUE",
        inputs=("file",),
        decides=True,
        keyed="Metadata keys to set, each written as KEY=TYPE:VALUE.",
    )
    prune_layers: tuple[str | int, ...] = option(
        (),
        "Remove the layers with these numbers, counted from 0: 3,4,5.",
        "Input",
        metavar="L,L,...",
        inputs=("file",),
        decides=True,
        numbers=True,
        keyed="The numbers, counted from 0, of the layers to remove.",
    )
    pre: str | None = option(
        None,
        "The name of the pre-tokenizer, if its structure is not recognised.",
        "Input",
        metavar="NAME",
        inputs=("model",),
        decides=True,
    )
    mtp: str | None = option(
        None,
        "What becomes of the blocks for multi-token prediction, in models that have them. They are kept by default; "
        "only writes them to a file of their own, with which llama.cpp drafts for the model.",
        "Input",
        metavar="keep|drop|only",
        inputs=("model",),
        decides=True,
    )
    target: Path | None = option(
        None, "The model that a draft, as of EAGLE-3, guesses for.", "Input", metavar="FOLDER", inputs=("model",)
    )
    model_name: str | None = option(
        None, "The model's name (general.name); by default it is taken from the folder.", "Input", decides=True
    )
    metadata: Path | None = option(
        None,
        "A JSON file whose general.* keys override the detected ones.",
        "Input",
        metavar="FILE",
        inputs=CHECKPOINT,
        fields=(MODEL,),
    )
    vocab_only: bool = option(
        False,
        "Write only the vocabulary and the keys, without any tensor.",
        "Input",
        inputs=("model",),
        keyless="a job makes files with weights",
    )
    revision: str | None = option(
        None,
        "The branch, tag or commit of a model on a hub.",
        "Input",
        inputs=CHECKPOINT,
        keyless="each model has its own `revision`, next to `source`",
    )
    token: str | None = option(
        None,
        "The access token for the hub; by default it is taken from the environment or the stored login.",
        "Input",
        inputs=CHECKPOINT,
        keyless="secrets do not belong in files: set HF_TOKEN or MODELSCOPE_API_TOKEN, or log in",
    )
    stream: bool = option(
        False,
        "Read the weights of a model on a hub in ranges, without storing them.",
        "Input",
        inputs=CHECKPOINT,
    )


@dataclass(frozen=True)
class MakeOptions:
    """What is made of the model: unquantized files, files by recipes, or files whose types a budget chooses.

    recipes: names, or `quantize.recipes.assign.Recipe` objects.
    method:  keys for the header that say how the bytes were chosen.
    """

    outtypes: tuple[str, ...] = option(
        (),
        "The type of the matrices in an unquantized file: f16 (the default), bf16, f32 (the default for adapters), or "
        "auto (the type that the checkpoint has).",
        "Types",
        flag="--outtype",
        metavar="TYPE",
        keyed="Unquantized outputs: f32, f16, bf16.",
    )
    mmproj: bool = option(
        False,
        "Write the vision or audio encoder of the model too, beside it: mmproj-MODEL-F16.gguf.",
        "Types",
        inputs=("model",),
    )
    mmproj_outtype: str | None = option(
        None,
        "The type of the matrices in that file: f16 (the default), bf16, f32 or q8_0.",
        "Types",
        metavar="TYPE",
        inputs=("model",),
        keyed="The type of the matrices in the file of `mmproj`: f16 (the default), bf16, f32 or q8_0.",
    )
    recipes: tuple[str | Any, ...] = option(
        (),
        "A file type such as q4_K_M, or a recipe file; may be given several times.",
        "Types",
        flag="--recipe",
        short="-r",
        metavar="NAME",
        inputs=WEIGHTS,
        keyed="File types, or recipe files (.toml, .yaml) relative to the job file.",
    )
    imatrix: Path | None = option(
        None,
        "An importance matrix made by `ggufsmith imatrix` or llama-imatrix, as GGUF or .dat; or auto: make one on the "
        "way, of the text that ships with ggufsmith.",
        "Types",
        metavar="FILE|auto",
        inputs=WEIGHTS,
        fields=(MODEL,),
    )
    keep_imatrix: bool = option(
        False,
        "Keep what --imatrix auto makes beside the outputs, as MODEL-imatrix.gguf.",
        "Types",
        inputs=WEIGHTS,
        keyed='Keep the importance matrix of `imatrix = "auto"` beside the outputs, as MODEL-imatrix.gguf.',
    )
    imatrix_chunks: int | None = option(
        None,
        "Make it, for --imatrix auto, of so many windows of 512 tokens at most (default: all that the text has). Fewer "
        "take less time.",
        "Types",
        metavar="NUMBER",
        inputs=WEIGHTS,
        decides=True,
        keyed='Make the importance matrix of `imatrix = "auto"` of so many windows of 512 tokens at most (default: all '
        "that the text has). Fewer take less time.",
    )
    calibrate: tuple[Path, ...] = option(
        (),
        "Run the model on a text, and choose the bytes with which its layers compute most nearly what they computed "
        "before. The files are as large as without it, and every llama.cpp loads them. Without a FILE, the text that "
        "ships with ggufsmith; may be given several times.",
        "Calibration",
        metavar="[FILE]",
        inputs=WEIGHTS,
        keyed="Texts, or folders of them, to run the model on, or auto for the text that ships with ggufsmith. The "
        "bytes are chosen with which the layers compute most nearly what they computed before.",
        fields=(MODEL,),
    )
    calibrate_chunks: int | None = option(
        None,
        "Calibrate on so many windows of 512 tokens at most (default: all that the text has).",
        "Calibration",
        metavar="NUMBER",
        inputs=WEIGHTS,
        decides=True,
    )
    effort: str | None = option(
        None,
        "How long to search: fast, normal (the default), or best, which also measures what the files have lost. With "
        "none, the bytes are those of llama.cpp's quantizer, and the text serves only for an importance matrix and for "
        "choosing types.",
        "Calibration",
        metavar="NAME",
        inputs=WEIGHTS,
        decides=True,
    )
    calibrate_device: str | None = option(
        None,
        "Where the model runs: cpu, cuda, mps (default: the best one).",
        "Calibration",
        flag="--device",
        metavar="NAME",
        inputs=WEIGHTS,
        key="device",
    )
    include_weights: tuple[str, ...] = option(
        (),
        "Use the importance matrix only for tensors whose names contain NAME.",
        "Types",
        metavar="NAME",
        inputs=WEIGHTS,
        decides=True,
    )
    exclude_weights: tuple[str, ...] = option(
        (),
        "Do not use the importance matrix for tensors whose names contain NAME.",
        "Types",
        metavar="NAME",
        inputs=WEIGHTS,
        decides=True,
    )
    pure: bool = option(
        False, "Give all matrices the same type, instead of a mixture.", "Types", inputs=WEIGHTS, decides=True
    )
    leave_output_tensor: bool = option(False, "Leave output.weight unquantized.", "Types", inputs=WEIGHTS, decides=True)
    output_tensor_type: str | None = option(
        None, "The type of output.weight.", "Types", metavar="TYPE", inputs=WEIGHTS, decides=True
    )
    token_embedding_type: str | None = option(
        None, "The type of the token embeddings.", "Types", metavar="TYPE", inputs=WEIGHTS, decides=True
    )
    tensor_types: tuple[str, ...] = option(
        (),
        "The type of the tensors whose names match REGEX; may be given several times.",
        "Types",
        flag="--tensor-type",
        metavar="REGEX=TYPE",
        inputs=WEIGHTS,
        decides=True,
        keyed="Types for tensors whose names match a pattern, each written as REGEX=TYPE.",
    )
    tensor_type_file: Path | None = option(
        None,
        "A file with one REGEX=TYPE on each line.",
        "Types",
        metavar="FILE",
        inputs=WEIGHTS,
        keyless="the key `tensor_types` holds the list itself",
    )
    target_size: tuple[str, ...] = option(
        (),
        "Choose the types for a file of at most this size, such as 4.5GiB.",
        "Types",
        metavar="SIZE",
        inputs=WEIGHTS,
        keyed="Outputs of at most these sizes, such as 4.5GiB; their types are chosen.",
    )
    target_bpw: tuple[float, ...] = option(
        (),
        "Choose the types for at most this many bits per weight.",
        "Types",
        metavar="BITS",
        inputs=WEIGHTS,
        keyed="Outputs of at most this many bits per weight; their types are chosen.",
    )
    match: tuple[str, ...] = option(
        (),
        "Choose the types for a file that is no larger than the one of this recipe.",
        "Types",
        metavar="NAME",
        inputs=WEIGHTS,
        keyed="Outputs that are no larger than those of these recipes; their types are chosen.",
    )
    sensitivity: Path | None = option(
        None,
        "Choose the types by what each costs the predictions of the model: a table that `ggufsmith sensitivity` wrote. "
        "With --calibrate, such a table is made on the way.",
        "Types",
        metavar="FILE",
        inputs=WEIGHTS,
        fields=(MODEL,),
    )
    save_recipe: Path | None = option(
        None,
        "Save the chosen types as this recipe file.",
        "Types",
        metavar="FILE.toml",
        inputs=WEIGHTS,
        keyless="a job chooses the types every time; use a saved recipe through `recipes`",
    )
    strict: bool = option(False, "Fail if a tensor's shape does not allow the type that the recipe gives it.", "Types")
    allow_requantize: bool = option(
        False, "Quantize tensors that are already quantized, although the errors add up.", "Types", inputs=("file",)
    )
    quantized_by: str | None = option(
        None,
        "Who quantized the model (general.quantized_by); the model card says it too.",
        "Types",
        metavar="NAME",
        inputs=WEIGHTS,
        decides=True,
    )
    method: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WriteOptions:
    """Where the outputs go, and how they are written."""

    outfile: Path | None = option(
        None, "The output file.", "Output", short="-o", metavar="FILE", keyless="`folder` and `file` name the outputs"
    )
    outdir: Path | None = option(
        None,
        "The folder for outputs that are named after the model.",
        "Output",
        metavar="FOLDER",
        keyless="`folder` and `file` name the outputs",
    )
    keep_split: bool = option(
        False, "Split the output at the same places as the source.", "Output", inputs=("file",), decides=True
    )
    split_max_size: str | None = option(
        None,
        "Split the output into files with at most this many bytes of tensors, such as 4G or 500M.",
        "Output",
        metavar="SIZE",
        decides=True,
        key="shard_size",
    )
    split_max_tensors: int | None = option(
        None,
        "Split the output into files with at most this many tensors.",
        "Output",
        metavar="NUMBER",
        decides=True,
        key="shard_tensors",
    )
    no_tensor_first_split: bool = option(
        False, "When the output is split, write only metadata to the first file.", "Output", decides=True
    )
    strict_name: bool = option(
        False,
        "Name outputs exactly by the GGUF naming convention, which requires a size and a version.",
        "Output",
        keyless="`folder` and `file` name the outputs",
    )
    overwrite: bool = option(
        True,
        "Fail if an output already exists.",
        "Output",
        flag="--no-overwrite",
        keyless="a job replaces what is out of date",
    )
    threads: int | None = option(
        None,
        "The number of threads (default: all cores). The output does not depend on it.",
        "Work",
        short="-t",
        metavar="NUMBER",
        keyless="it is an option of the command",
    )
    scheduler: str | None = option(
        None,
        "Do the work on the Dask cluster at this address, such as tcp://HOST:8786. The output is byte-identical.",
        "Work",
        metavar="ADDRESS",
    )
    sync: bool = option(
        True,
        "Do not flush the output to the disk; the operating system does that later. For scratch disks.",
        "Work",
        flag="--no-sync",
        keyless="it is an option of the command",
    )
    resume: bool = option(
        False,
        "Continue from the finished part of an interrupted run, and keep it if this run is interrupted.",
        "Work",
        keyless="a job always resumes",
    )


@dataclass(frozen=True)
class TextOptions:
    """Which text the model is run on, in which windows, and where. Of the commands that run it.

    context: tokens of a window. chunks: windows at most; None means all. device: "cpu", "cuda", "mps", or None.
    """

    text: tuple[Path, ...] = option(
        (),
        "A text file (.txt, .md, .jsonl, .parquet), or a folder of them; may be given several times (default: the text "
        "that comes with ggufsmith).",
        "Input",
        metavar="FILE",
        keyless=NO_RUN,
    )
    context: int = option(512, "The number of tokens in a window.", "Input", metavar="NUMBER", keyless=NO_RUN)
    chunks: int | None = option(
        None, "The number of windows at most (default: all there are).", "Input", metavar="NUMBER", keyless=NO_RUN
    )
    device: str | None = option(
        None, "Where the model runs: cpu, cuda, mps (default: the best one).", "Work", metavar="NAME", keyless=NO_RUN
    )


# The records of a request. The options of the commands that run a model, TextOptions, are no part of it.
RECORDS: tuple[type, ...] = (SourceOptions, MakeOptions, WriteOptions, PublishOptions)


@dataclass(frozen=True)
class Request:
    """What to make of the model at `path`: a folder, or a file."""

    path: Path
    source: SourceOptions = SourceOptions()
    make: MakeOptions = MakeOptions()
    write: WriteOptions = WriteOptions()
