"""The calls of `import ggufsmith`. The commands do the same work through the same functions.

Everything heavy is imported inside the call that needs it: importing the package costs nothing.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Unpack

from ggufsmith.keywords import (
    ConvertKeywords,
    EvaluateKeywords,
    ImatrixKeywords,
    Paths,
    QuantizeKeywords,
    SensitivityKeywords,
    StrPath,
    VerifyKeywords,
    WrongArgument,
    path_of,
    records_of,
)
from ggufsmith.pipeline.publish import PublishOptions
from ggufsmith.pipeline.request import MakeOptions, Request, SourceOptions, TextOptions, WriteOptions
from ggufsmith.progress import Callback, CallbackDisplay, Display

if TYPE_CHECKING:
    from ggufsmith.convert.hub.names import Located
    from ggufsmith.evaluate.judged import Evaluation
    from ggufsmith.imatrices import MadeImatrix
    from ggufsmith.memory import InMemory
    from ggufsmith.report import RunReport
    from ggufsmith.sensitivities import MadeSensitivity


class ModelInMemory(Protocol):
    """A model of transformers, as far as it matters here."""

    config: Any

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The tensors by name."""


# A path, a name on a hub, a model of transformers, or tensors by name.
Source: TypeAlias = StrPath | ModelInMemory | Mapping[str, Any]


def convert(
    source: Source,
    *,
    config: Any = None,
    tokenizer: Any = None,
    dry_run: bool = False,
    progress: Callback | None = None,
    **options: Unpack[ConvertKeywords],
) -> "RunReport":
    """Convert a model into GGUF files, as `gguf-convert` does.

    source:    a folder, a file or a name on a hub; or a model in memory: one of transformers, or tensors (of torch or
               numpy) by name.
    config:    of tensors by name: a mapping, a configuration of transformers, or the path of a config.json.
    tokenizer: of a model in memory: one of transformers, or a folder with its files. Of a GGUF file: a folder whose
               vocabulary replaces the one in the file.
    dry_run:   plan everything, list every tensor, and write nothing.
    progress:  is called with a `ProgressEvent` every now and then. What it raises ends the run, and nothing is left.

    Returns the report of `--json`, without hashes unless `sha256` asks for them. Without `outdir` and `outfile`, files
    go into the folder of the source, and into the current one for models in memory and on a hub.

    Raises `Failure`, or one of its kinds: `Usage` for options, of which `WrongArgument` is also a TypeError,
    `Unsupported`, `Malformed`, `NoSpace`, `OutputConflict`.
    """
    from ggufsmith.runs import run_convert, run_located

    memory = _memory(source, config, tokenizer, options)
    if memory is None:
        more = {"tokenizer": path_of("tokenizer", tokenizer)} if tokenizer is not None else {}
        records = _records("convert", ConvertKeywords, options, **more)
        return run_convert(_name(source), records, _display(progress), dry_run=_switch("dry_run", dry_run)).report
    source_options, make, write, publish = _records("convert", ConvertKeywords, options)
    request = Request(Path("model"), source_options, make, write)
    display = _display(progress)
    place = memory.located()
    done = run_located(place, request, publish, display, dry_run=_switch("dry_run", dry_run), hashes=False)
    return replace(done.report, input=[type(source).__name__])  # not the temporary folder


def quantize(
    source: StrPath,
    *,
    tokenizer: StrPath | None = None,
    dry_run: bool = False,
    progress: Callback | None = None,
    **options: Unpack[QuantizeKeywords],
) -> "RunReport":
    """Quantize a GGUF file, its shards, or a file from before GGUF, as `gguf-quant` does.

    source: the file; of several shards, any one. Everything else is as in `convert`.
    """
    from ggufsmith.runs import run_quantize

    more = {"tokenizer": path_of("tokenizer", tokenizer)} if tokenizer is not None else {}
    records = _records("quantize", QuantizeKeywords, options, **more)
    path = path_of("source", source)
    return run_quantize(path, records, _display(progress), dry_run=_switch("dry_run", dry_run)).report


def inspect(file: StrPath, other: StrPath | None = None, *, tensors: bool = True) -> dict[str, Any]:
    """What a GGUF file holds, or how two differ, as the report of `ggufsmith inspect` shows it. No weights are read.

    file, other: GGUF files, or any shard of a split model.
    tensors: list every tensor.
    """
    from contextlib import ExitStack

    from ggufsmith.container.shards import open_gguf_set
    from ggufsmith.container.summary import difference, summary, without_tensors

    paths = [path_of("file", file), *([path_of("other", other)] if other is not None else [])]
    with ExitStack() as stack:
        models = [stack.enter_context(open_gguf_set(path)) for path in paths]
        report: dict[str, Any] = difference(*models) if len(models) == 2 else summary(*models)
    return report if _switch("tensors", tensors) else without_tensors(report)


def verify(
    file: StrPath,
    *,
    source: StrPath | None = None,
    record: StrPath | None = None,
    sha256: bool = False,
    progress: Callback | None = None,
    **options: Unpack[VerifyKeywords],
) -> dict[str, Any]:
    """Check that a GGUF file is whole and every weight finite, as `ggufsmith verify` does.

    source: the model that it was made from; every tensor is made again and compared.
    record: its provenance record.
    sha256: report the hashes of every tensor and file.

    Returns the report. Raises `Malformed`, which lists the problems, if there are any.
    """
    from ggufsmith.verifying import problems_found, verified

    source_options, write = records_of("verify", VerifyKeywords, options, SourceOptions, WriteOptions)
    path = path_of("file", file)
    report = verified(
        path,
        None if source is None else str(path_of("source", source)),
        source_options,
        _display(progress),
        record=None if record is None else path_of("record", record),
        hashes=_switch("sha256", sha256),
        threads=write.threads,
    )
    if report["problems"]:
        raise problems_found(path, report)
    return report


def imatrix(
    source: Source | None = None,
    *,
    config: Any = None,
    tokenizer: Any = None,
    inputs: Paths = (),
    format: str | None = None,
    process_output: bool = False,
    progress: Callback | None = None,
    **options: Unpack[ImatrixKeywords],
) -> "MadeImatrix":
    """Make an importance matrix of a model and a text, or merge some, as `ggufsmith imatrix` does.

    source, config, tokenizer: as in `convert`; without a source, `inputs` are only merged, into `outfile`.
    inputs: importance matrices to add.
    format: "gguf" or "dat".
    process_output: include output.weight.

    Returns what was made, and where it was written.
    """
    from ggufsmith.imatrices import ImatrixTask, made_imatrix

    memory = _memory(source, config, tokenizer, options) if source is not None else None
    source_options, reading, write = records_of(
        "imatrix", ImatrixKeywords, options, SourceOptions, TextOptions, WriteOptions
    )
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    task = ImatrixTask(
        _name(source) if source is not None and memory is None else None,
        source_options,
        reading,
        write,
        [path_of("inputs", each) for each in inputs],
        format,
        _switch("process_output", process_output),
        place=memory.located() if memory else None,
    )
    return made_imatrix(task, _display(progress))


def sensitivity(
    source: Source,
    *,
    config: Any = None,
    tokenizer: Any = None,
    effort: str = "normal",
    progress: Callback | None = None,
    **options: Unpack[SensitivityKeywords],
) -> "MadeSensitivity":
    """Measure what each type would cost the predictions of a model, tensor by tensor, as `ggufsmith sensitivity` does.

    source, config, tokenizer: as in `convert`.
    effort: that of `calibrate` with which the files will be made; "none" for the bytes of llama.cpp's quantizer.

    Returns the table, and where it was written: `convert` and `quantize` take that path as `sensitivity`.
    """
    from ggufsmith.sensitivities import SensitivityTask, made_sensitivity

    memory = _memory(source, config, tokenizer, options)
    source_options, reading, write = records_of(
        "sensitivity", SensitivityKeywords, options, SourceOptions, TextOptions, WriteOptions
    )
    task = SensitivityTask(
        "" if memory else _name(source),
        source_options,
        reading,
        write,
        effort,
        place=memory.located() if memory else None,
    )
    return made_sensitivity(task, _display(progress))


def evaluate(
    files: Paths = (),
    *,
    against: Source,
    config: Any = None,
    tokenizer: Any = None,
    engine: str = "torch",
    compare: Sequence[tuple[str, str]] = (),
    progress: Callback | None = None,
    **options: Unpack[EvaluateKeywords],
) -> "Evaluation":
    """Measure what files, or `recipes` that are not written yet, have lost against their source, as `ggufsmith eval`.

    files: GGUF files.
    against: their source; it, config and tokenizer are as in `convert`.
    engine: "torch" or "llama.cpp".
    compare: pairs of the names of files or recipes.

    Returns the numbers of every file, the smallest first.
    """
    from ggufsmith.evaluate.evaluation import EvalTask, check_task
    from ggufsmith.evaluating import evaluated

    memory = _memory(against, config, tokenizer, options)
    source_options, make, reading = records_of(
        "evaluate", EvaluateKeywords, options, SourceOptions, MakeOptions, TextOptions
    )
    if isinstance(files, str | os.PathLike):
        files = [files]
    name = "" if memory else _name(against)
    pairs = tuple((str(first), str(second)) for first, second in compare)
    paths = tuple(path_of("files", each) for each in files)
    task = EvalTask(Request(Path(name), source_options, make), paths, reading, engine, pairs)  # type: ignore[arg-type]
    check_task(task)
    place: AbstractContextManager[Located] | None = memory.located() if memory else None
    return evaluated(task, name, _display(progress), place)


def _memory(source: Any, config: Any, tokenizer: Any, options: Mapping[str, Any]) -> "InMemory | None":
    """The source, if it is a model in memory. WrongArgument for what has no meaning for it."""
    if isinstance(source, str | os.PathLike):
        if config is not None:
            raise WrongArgument("config= is about tensors in memory", where=os.fspath(source), fix="Leave it out.")
        path_of("source", source)
        return None
    from ggufsmith.memory import InMemory, is_in_memory

    is_in_memory(source)
    for name, why in InMemory.refused.items():
        if options.get(name):
            raise WrongArgument(f"{name}= {why}", fix="Leave it out.")
    return InMemory(source, config, tokenizer, options.get("model_name"))


def _name(source: object) -> str:
    """A source that is a path or a name, as text."""
    path_of("source", source)
    return source if isinstance(source, str) else os.fspath(source)  # type: ignore[call-overload]


def _records(call: str, known: type, options: Mapping[str, Any], **source: Any) -> Any:
    """The four records of a request."""
    found = records_of(call, known, options, SourceOptions, MakeOptions, WriteOptions, PublishOptions)
    return (replace(found[0], **source), *found[1:])


def _display(progress: Callback | None) -> Display:
    if progress is None:
        return Display()
    if not callable(progress):
        raise WrongArgument(f"progress is a {type(progress).__name__}", fix="Pass a function that takes one argument.")
    return CallbackDisplay(progress)


def _switch(name: str, given: object) -> bool:
    if not isinstance(given, bool):
        raise WrongArgument(f"{name} is {given!r:.60}", where=f"{name}=", fix="Pass True or False.")
    return given
