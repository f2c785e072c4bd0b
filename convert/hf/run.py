"""From a GGUF file back to a Hugging Face folder: plan (`prepare`), then write, check and name it (`run`)."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.disk import force_folder
from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.folder import new_folder
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import TensorSpec
from ggufsmith.container.shards import SUFFIX, GgufSet, SetWriter
from ggufsmith.container.typed import TypedKeys
from ggufsmith.convert.hf.card import model_card
from ggufsmith.convert.hf.classes import HfClass
from ggufsmith.convert.hf.config import check_keys, generation_config, model_config, token_ids
from ggufsmith.convert.hf.safetensors import INDEX, SHARD_SIZE, WeightsPlan, plan_weights, stored_tensors
from ggufsmith.convert.hf.tensors import Restored, restore
from ggufsmith.convert.plan import SOURCE_FORMATS, Plan
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.pipeline.stream import StreamTarget, load_kernels, stream
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.opened import OpenedModel
from ggufsmith.quantize.source import open_model
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.restore import vocabulary_of
from ggufsmith.tokenizer.vocabulary import Vocabulary
from ggufsmith.tokenizer.write import tokenizer_files

DTYPES: Mapping[str, Format] = {"float32": BY_NAME["F32"], "float16": BY_NAME["F16"], "bfloat16": BY_NAME["BF16"]}


@dataclass(frozen=True)
class ToHfJob:
    """One model to turn back.

    source:     a GGUF file, any of its shards, or an old GGML file.
    outdir:     the folder to make; else it stands beside the source and is named after it.
    dtype:      of every tensor, a key of DTYPES; None keeps what is not quantized, and stores the rest in float16.
    shard_size: bytes of tensors in one file.
    threads:    None takes every core this process may use.
    sync:       False leaves flushing to the operating system.
    """

    source: Path
    outdir: Path | None = None
    dtype: str | None = None
    shard_size: int = SHARD_SIZE
    threads: int | None = None
    sync: bool = True


@dataclass(frozen=True)
class PreparedFolder:
    """Everything decided, nothing written. Close the source, or use this in a `with`.

    folder: where it goes. files: the small ones, name -> content. vocabulary: what converting it again must give.
    """

    job: ToHfJob
    source: GgufSet
    known: HfClass
    folder: Path
    files: Mapping[str, bytes]
    tensors: tuple[Restored, ...]
    weights_plan: WeightsPlan
    vocabulary: Vocabulary
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Their number, of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.weights_plan.whole.size + sum(map(len, self.files.values()))

    def __enter__(self) -> "PreparedFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()


@dataclass(frozen=True)
class Done:
    """A finished folder. seconds: wall time; notes: what converting it again would give otherwise."""

    folder: Path
    seconds: float
    notes: tuple[str, ...]


def prepare(job: ToHfJob) -> PreparedFolder:
    """Read the header and decide everything. Raises what is wrong with the file, or cannot be said in such a folder."""
    if job.dtype is not None and job.dtype not in DTYPES:
        raise Usage(f"unknown dtype {job.dtype!r}", fix=f"Choose one of {', '.join(DTYPES)}.")
    model = open_model(job.source)
    try:
        return _prepare(job, model)
    except BaseException:
        model.files.close()
        raise


def _prepare(job: ToHfJob, model: OpenedModel) -> PreparedFolder:
    source = model.files
    where, metadata = source.path, source.metadata
    known, config = model_config(source)
    if known.pictures:
        raise Unsupported(
            f"this is the language model of a {known.name}, which would need its encoder for pictures too",
            where=where,
            fix="Use the checkpoint that the file was made from.",
        )
    keys = TypedKeys(metadata, where)
    if keys.number(Keys.LLM.NEXTN_PREDICT_LAYERS.format(arch=known.record.name)):
        raise Unsupported(
            "blocks for multi-token prediction cannot be written into a folder",
            where=where,
            fix="Convert the model again without them: gguf-convert --mtp drop",
        )
    vocabulary = vocabulary_of(metadata, where)
    config |= token_ids(vocabulary)
    format = DTYPES[job.dtype] if job.dtype is not None else None
    plan, tensors = restore(known, config, source, format, where)
    config["torch_dtype"] = _main_dtype(tensors)
    weights = plan_weights([TensorSpec(t.name, t.shape, t.format) for t in tensors], job.shard_size)
    context = int(keys.number(Keys.LLM.CONTEXT_LENGTH.format(arch=known.record.name)) or 0)
    files = {
        "config.json": _json(config),
        "generation_config.json": _json(generation_config(keys, vocabulary)),
        **tokenizer_files(vocabulary, known.tokenizer, context),
    }
    for name, content in ((INDEX, weights.index()), ("README.md", model_card(metadata))):
        if content is not None:
            files[name] = content
    check_keys(plan.metadata, metadata, where)
    notes = (*model.told(), *plan.notes, *_notes(known, source, plan))
    return PreparedFolder(job, source, known, _folder(job, model), files, tensors, weights, vocabulary, notes)


def _main_dtype(tensors: tuple[Restored, ...]) -> str:
    """The dtype that most weights have."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.format.name] += math.prod(tensor.shape)
    most = max(SOURCE_FORMATS, key=lambda name: counts[name])
    return next(name for name, format in DTYPES.items() if format.name == most)


def _notes(known: HfClass, source: GgufSet, plan: Plan) -> Iterator[str]:
    quantized = Counter(t.format.name for t in source.tensors.values() if t.format.name not in SOURCE_FORMATS)
    if quantized:
        types = ", ".join(f"{count} {name}" for name, count in quantized.items())
        yield f"quantized tensors were dequantized ({types}): the weights are those of this file, not of its source"
    prefix = f"{known.record.name}."
    lost = [key for key in source.metadata if key.startswith(prefix) and key not in plan.metadata]
    if lost:
        yield (
            "these keys are not written to config.json, because it cannot express them or they follow from "
            f"others: {', '.join(lost)}"
        )


def _folder(job: ToHfJob, model: OpenedModel) -> Path:
    if job.outdir is not None:
        return Path(os.path.abspath(job.outdir))
    name = replace(model.name, encoding=None).format().removesuffix(SUFFIX)
    return Path(os.path.abspath(model.files.paths[0])).parent / f"{name}-hf"


def run(
    prepared: PreparedFolder,
    advance: Callable[[int], None] = lambda weights: None,
    compiling: Callable[[int, int], None] = lambda done, total: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Done:
    """Write the folder beside its place, check it, and give it its name. See `Pass.run` for the callbacks."""
    job, plan, started = prepared.job, prepared.weights_plan, time.perf_counter()
    with new_folder(prepared.folder, prepared.size) as folder:
        for name, content in prepared.files.items():
            with (folder / name).open("wb") as file:
                file.write(content)
                if job.sync:
                    file.flush()
                    os.fsync(file.fileno())
        notes = tuple(_check_vocabulary(prepared, folder))
        with SetWriter(folder, plan, inputs=prepared.source.paths, sync=job.sync, reader=stored_tensors) as writer:
            targets = [StreamTarget(plan.whole, writer, GGML)]
            loaded(load_kernels(prepared.tensors, targets, compiling))
            stream(prepared.tensors, targets, threads=job.threads or available_cores(), advance=advance)
            writer.commit()
    if job.sync:
        force_folder(prepared.folder.parent)
    return Done(prepared.folder, time.perf_counter() - started, notes)


def _check_vocabulary(prepared: PreparedFolder, folder: Path) -> Iterator[str]:
    """Read the vocabulary as a conversion would; a sentence for each key that would not come back."""
    config = json.loads(prepared.files["config.json"])
    made = read_vocabulary(folder, config=config, size=config["vocab_size"], architecture=prepared.known.name)
    again = made.metadata()
    changed = [key for key, value in prepared.vocabulary.metadata().items() if again.get(key) != value]
    if changed:
        yield f"converting this folder would not give these keys again: {', '.join(changed)}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
