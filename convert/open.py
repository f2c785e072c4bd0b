"""Opens whatever a request names: a model folder, an adapter, a GGUF file, or a Llama file from before GGUF."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ggufsmith.container.errors import Usage
from ggufsmith.container.layout import MAGIC
from ggufsmith.container.shards import SHARD, SUFFIX
from ggufsmith.container.text import shell_command
from ggufsmith.convert.checkpoint_pass import open_checkpoint_pass
from ggufsmith.convert.inputs import input_files
from ggufsmith.convert.stored import LocalFiles, Opener
from ggufsmith.convert.vocabulary import vocabulary_of
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize.file_pass import open_file_pass

# Files that belong to a checkpoint, which is converted as a whole.
PARTS = (
    "*.safetensors *.safetensors.index.json pytorch_model*.bin consolidated.*.pth *config.json tokenizer.model "
    "tokenizer.json".split()
)
FOLDERS = ("config.json", "params.json", "adapter_config.json")  # a folder with one of them is converted as a whole


def open_pass(request: Request, open_files: Opener = LocalFiles, notes: Sequence[str] = ()) -> Pass:
    """Plan everything that the request asks for. Raises what is wrong with it.

    open_files: see `Checkpoint`. notes: what else the report should say.
    """
    if request.path.is_dir():
        planned = open_checkpoint_pass(request, open_files)
        return replace(planned, notes=(*notes, *planned.notes))
    folder = request.source.tokenizer
    vocabulary, more = vocabulary_of(request.path, folder) if folder is not None else (None, ())
    planned = open_file_pass(request, vocabulary, (*notes, *more))
    if folder is None:
        return planned
    return replace(planned, inputs={**planned.inputs, **input_files((), {"tokenizer": folder}, {})})


def _is_gguf(file: Path) -> bool:
    """Whether a file begins as GGUF files do; what cannot be read does not."""
    with suppress(OSError):
        if file.is_file():
            with file.open("rb") as opened:
                return opened.read(len(MAGIC)) == MAGIC
    return False


def file_of(model: str) -> Path | None:
    """The file, if a model is one: named itself, or the only model in a folder that is no checkpoint or adapter.

    Usage for a folder with several, for a file of a checkpoint, and for an empty name, which is a variable not set.
    """
    if not model:
        raise Usage("the name of the model is empty", fix="Pass a folder, a file or a name; '.' is the current folder.")
    path = Path(model)
    if path.is_file():
        if any(path.match(pattern) for pattern in PARTS):
            raise Usage(
                "this is one file of a checkpoint; a checkpoint is converted as a whole",
                where=path,
                fix=shell_command("gguf-convert", path.parent),
            )
        return path
    if not path.is_dir() or any((path / name).is_file() for name in FOLDERS):
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    files = [file for file in files if _is_gguf(file)] or files  # empty and unfinished ones are no models
    models = {SHARD.sub("", file.name.removesuffix(SUFFIX)): file for file in reversed(files)}
    if len(models) > 1:
        raise Usage(
            f"{len(models)} models are in this folder: {', '.join(sorted(models))}",
            where=path,
            fix="Name the file of one of them.",
        )
    return next(iter(models.values()), None)
