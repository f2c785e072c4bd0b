"""The command line: gguf-convert, gguf-quant, and ggufsmith with both as subcommands.

Everything heavy is imported inside the command that needs it: `--help` must answer at once.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ggufsmith.cli.batch import EXAMPLES as BATCH_EXAMPLES
from ggufsmith.cli.batch import batch
from ggufsmith.cli.card import card
from ggufsmith.cli.fromfile import (
    AllowRequantize,
    OverrideKv,
    Tokenizer,
    file_of,
    recipes_of,
    refuse,
    vocabulary_for,
)
from ggufsmith.cli.help import Command, Group, epilog
from ggufsmith.cli.hub import HubRequest, Revision, Stream, Token, located
from ggufsmith.cli.inspect import inspect
from ggufsmith.cli.lora import Base, Lora, model_of
from ggufsmith.cli.name import name
from ggufsmith.cli.options import (
    AsJson,
    MaxSize,
    MaxTensors,
    NoOverwrite,
    NoSync,
    NoTensorFirst,
    Quiet,
    Resume,
    Scheduler,
    Threads,
    Version,
    Writing,
    check_places,
    limits_of,
)
from ggufsmith.cli.publish import Card as WithCard
from ggufsmith.cli.publish import Hashes, Provenance, StrictName, Wishes
from ggufsmith.cli.quant import (
    EmbeddingType,
    Exclude,
    Imatrix,
    Include,
    LeaveOutput,
    OutputType,
    Pure,
    Recipes,
    SaveRecipe,
    Strict,
    TargetBpw,
    TargetSize,
    TensorTypeFile,
    TensorTypes,
    choose,
    quant,
    run_convert_quant,
    run_quant,
    target,
)
from ggufsmith.cli.recipes import recipes
from ggufsmith.cli.split import merge, split
from ggufsmith.cli.tohf import to_hf
from ggufsmith.cli.verify import verify

options: dict[str, Any] = {"add_completion": False, "rich_markup_mode": "rich", "pretty_exceptions_enable": False}
app = typer.Typer(cls=Group, no_args_is_help=True, **options)
convert_app, quant_app = typer.Typer(**options), typer.Typer(**options)


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `with` on the way out cleans up."""


@app.command("convert", cls=Command, epilog=epilog("convert"), no_args_is_help=True)
@convert_app.command(cls=Command, epilog=epilog("convert"), no_args_is_help=True)
def convert(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder with a model or a LoRA adapter, a GGUF or old GGML file, or a model on a hub: org/name, "
            "hf://org/name, modelscope://org/name.",
        ),
    ] = None,
    outtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the matrices: f16 (the default), bf16, f32 (that of adapters), or auto (what the checkpoint "
            "has)."
        ),
    ] = None,
    recipe: Recipes = None,
    outfile: Annotated[Path | None, typer.Option("--outfile", "-o", help="The output file.")] = None,
    outdir: Annotated[Path | None, typer.Option(help="Folder for outputs named after the model.")] = None,
    imatrix: Imatrix = None,
    include_weights: Include = None,
    exclude_weights: Exclude = None,
    pure: Pure = False,
    leave_output_tensor: LeaveOutput = False,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    tensor_type: TensorTypes = None,
    tensor_type_file: TensorTypeFile = None,
    target_size: TargetSize = None,
    target_bpw: TargetBpw = None,
    save_recipe: SaveRecipe = None,
    strict: Strict = False,
    lora: Lora = None,
    base: Base = None,
    tokenizer: Tokenizer = None,
    override_kv: OverrideKv = None,
    allow_requantize: AllowRequantize = False,
    vocab_only: Annotated[bool, typer.Option("--vocab-only", help="Only the vocabulary and keys, no tensors.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and the exact size; write nothing.")
    ] = False,
    pre: Annotated[
        str | None, typer.Option(metavar="NAME", help="The pre-tokenizer, if its structure is not recognised.")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="general.name, instead of the folder's.")] = None,
    metadata: Annotated[Path | None, typer.Option(help="JSON file of general.* keys that override.")] = None,
    split_max_size: MaxSize = None,
    split_max_tensors: MaxTensors = None,
    no_tensor_first_split: NoTensorFirst = False,
    revision: Revision = None,
    token: Token = None,
    stream: Stream = False,
    threads: Threads = None,
    scheduler: Scheduler = None,
    no_sync: NoSync = False,
    no_overwrite: NoOverwrite = False,
    resume: Resume = False,
    strict_name: StrictName = False,
    sha256: Hashes = False,
    provenance: Provenance = False,
    card: WithCard = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Convert a Hugging Face model folder into GGUF files that llama.cpp runs.

    One file in 16 or 32 bits, or, with --recipe, any number of quantized ones, in one pass over the weights. Outputs
    appear under their names only when they are complete and verified.

    A PEFT adapter becomes a GGUF adapter, or is merged with --lora; without MODEL, into the base model that it names.

    A GGUF file is given other types; an old GGML file of a Llama model becomes GGUF with its own. For files only:
    --tokenizer, --override-kv, --allow-requantize.
    """

    def work() -> None:
        from ggufsmith.cli.convert import run_convert
        from ggufsmith.container.errors import Usage
        from ggufsmith.convert.lora.base import parse_adapter
        from ggufsmith.convert.run import Job

        check_places(outfile, outdir)
        chosen, types = choose(
            recipe,
            pure=pure,
            leave_output=leave_output_tensor,
            output_type=output_tensor_type,
            embedding_type=token_embedding_type,
            types=tensor_type,
            types_file=tensor_type_file,
        )
        budget = target(target_size, target_bpw, chosen, types, save_recipe)
        wishes = Wishes(sha256, provenance, card, not no_overwrite, as_json, quiet)
        if stream and provenance:
            raise Usage("--provenance hashes the inputs, which --stream does not store", fix="Drop one of them.")
        writing = Writing(
            limits=limits_of(split_max_size, split_max_tensors, no_tensor_first_split),
            threads=threads,
            sync=not no_sync,
            overwrite=not no_overwrite,
            resume=resume,
            strict_name=strict_name,
            scheduler=scheduler,
        )
        file = file_of(model)
        if file is not None:
            from ggufsmith.quantize.requantize import Job as FileJob
            from ggufsmith.quantize.requantize import parse_override

            refuse({"--lora": lora, "--base": base, "--vocab-only": vocab_only, "--pre": pre, "--metadata": metadata})
            refuse({"--revision": revision, "--stream": stream, "--outtype": budget and outtype})
            named = (f"general.name=str:{model_name}",) if model_name is not None else ()
            vocabulary, notes = vocabulary_for(file, tokenizer)
            file_job = FileJob(
                source=file,
                recipes=() if budget else recipes_of(file, chosen, outtype),
                output=outfile,
                outdir=outdir,
                options=types,
                imatrix=imatrix,
                include=tuple(include_weights or ()),
                exclude=tuple(exclude_weights or ()),
                metadata=dict(map(parse_override, (*named, *(override_kv or ())))),
                vocabulary=vocabulary,
                notes=notes,
                allow_requantize=allow_requantize or outtype is not None,
                strict=strict,
                **writing,
            )
            run_quant(file_job, budget, wishes, dry_run=dry_run)
            return
        refuse({"--tokenizer": tokenizer, "--override-kv": override_kv, "--allow-requantize": allow_requantize})
        quantizing = bool(chosen or budget)
        if not quantizing and (imatrix or include_weights or exclude_weights or strict or types != type(types)()):
            raise Usage("options for quantizing were given, but no recipe", fix="Add --recipe, such as q4_K_M.")
        if quantizing and outtype not in (None, "auto"):
            raise Usage(
                "--outtype is for a file that is not quantized, and recipes start from what the checkpoint has",
                fix="Leave it out; for an unquantized file besides, add --recipe f16.",
            )
        adapters = tuple(parse_adapter(text) for text in lora or ())
        wanted = HubRequest(
            model_of(model, adapters, base), revision, token, stream=stream or dry_run, weights=not vocab_only
        )
        with located(wanted, quiet=quiet or as_json) as found:
            job = Job(
                folder=found.folder,
                outtype=outtype,
                outfile=outfile,
                outdir=outdir if found.id is None else outdir or Path(),
                vocab_only=vocab_only,
                lora=adapters,
                base=base if model is not None else None,
                pre=pre,
                model_name=model_name,
                metadata=metadata,
                open_files=found.open_files,
                **writing,
            )
            if not quantizing:
                run_convert(job, wishes, dry_run=dry_run)
                return
            from ggufsmith.convert.quantized import Quantization

            include, exclude = tuple(include_weights or ()), tuple(exclude_weights or ())
            quantization = Quantization(chosen, types, imatrix, include, exclude, strict)
            run_convert_quant(job, quantization, budget, wishes, dry_run=dry_run)

    guarded(work, as_json)


def guarded(command: Callable[[], None], machine: bool) -> None:
    """Run a command; turn errors and signals into one message and an exit code."""
    from ggufsmith.cli import render
    from ggufsmith.container.errors import Failure

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here needs BLAS, whose idle threads would spin
    signal.signal(signal.SIGTERM, terminate)
    render.show_anything()
    try:
        command()
    except Failure as error:
        render.failure(error, machine)
        code = error.code
    except BrokenPipeError:  # who read the output has left, and wants to hear no more
        raise
    except OSError as error:
        render.failure(Failure(error.strerror or str(error), where=error.filename), machine)
        code = Failure.code
    except Exception as error:  # a bug: never a traceback for the user, unless asked for
        if os.environ.get("GGUFSMITH_DEBUG"):
            raise
        what = f"internal error: {type(error).__name__}: {error}"
        render.failure(Failure(what, fix="Please report it, with the output of GGUFSMITH_DEBUG=1."), machine)
        code = Failure.code
    except (KeyboardInterrupt, Terminated) as error:
        render.line(f"interrupted; {'; '.join(getattr(error, '__notes__', ['nothing was left behind']))}", render.err)
        code = 130 if isinstance(error, KeyboardInterrupt) else 143
    else:
        return
    raise typer.Exit(code)


@app.callback()
def common(version: Version = False) -> None:
    """Hugging Face checkpoints to GGUF files: convert, quantize, look at, check and publish them."""


app.command("quant", cls=Command, epilog=epilog("quant"), no_args_is_help=True)(quant)
quant_app.command(cls=Command, epilog=epilog("quant"), no_args_is_help=True)(quant)
app.command(cls=Command, epilog=BATCH_EXAMPLES, no_args_is_help=True)(batch)
for command in (recipes, inspect, verify, name, split, merge, card, to_hf):
    title = command.__name__.replace("_", "-")
    app.command(title, cls=Command, epilog=epilog(title), no_args_is_help=command is not recipes)(command)


def main() -> None:
    app()


def convert_main() -> None:
    convert_app()


def quant_main() -> None:
    quant_app()


if __name__ == "__main__":
    main()
