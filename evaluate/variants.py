"""Sets of weights for one model: the source, GGUF files, and recipes that are encoded and decoded on the fly.

All of them are seen as GGUF tensors by name, of which any rows can be had in float32. What a checkpoint is stored in
(plain, quantized, pickled, with adapters merged in) is known to the plan of its conversion alone.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from ggufsmith.container.drafts import is_draft
from ggufsmith.container.encoders import is_encoder
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.formats import BY_NAME, FLOATS, INTEGERS, Format
from ggufsmith.container.layout import rows_of
from ggufsmith.container.parallel import parallel_for
from ggufsmith.container.shards import GgufSet
from ggufsmith.container.untrusted import read_object
from ggufsmith.container.values import Metadata
from ggufsmith.convert.config import of_thinker, text_part
from ggufsmith.convert.hf.config import model_config
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.open import open_pass
from ggufsmith.convert.stored import LocalFiles, Opener
from ggufsmith.pipeline.encoder import RowRange
from ggufsmith.pipeline.outputs import OutputFile
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request
from ggufsmith.pipeline.stream import CHUNK, RowSource, Scratch
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.source import open_model
from ggufsmith.quantize.tensors import GgufTensor

F32 = BY_NAME["F32"]
Weights = NDArray[np.float32]


class Encoding(NamedTuple):
    """What a recipe makes of a tensor. importance: (width,), or (slices, width) for stacked experts."""

    format: Format
    importance: NDArray[np.float32] | None


@dataclass(frozen=True)
class ModelVariant:
    """One set of weights.

    label:     what reports call it. tensors: by GGUF name. metadata: the keys of its file, or of the file it would be.
    size:      bytes of that file. bits_per_weight: of its tensors.
    encodings: by name of the tensors that a recipe changes on the way; the others are as they are.
    paths:     the files or the folder.
    """

    label: str
    tensors: Mapping[str, RowSource]
    metadata: Metadata
    size: int
    bits_per_weight: float
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()

    @property
    def context_length(self) -> int | None:
        """The tokens of the longest text that the model was made for; None if the keys do not say it."""
        architecture = self.metadata.get(Keys.General.ARCHITECTURE)
        name = architecture.data if architecture is not None else ""
        length = self.metadata.get(Keys.LLM.CONTEXT_LENGTH.format(arch=name))
        return length.data if length is not None and isinstance(length.data, int) and length.data > 0 else None


@dataclass(frozen=True)
class SourceModel:
    """The model that everything is measured against, open for reading.

    config:   in the words of config.json. where: what errors call it.
    variants: the source itself, and what every recipe of the request makes of it, in this order.
    notes:    what the user should know of it.
    """

    config: Mapping[str, Any]
    where: Path
    variants: tuple[ModelVariant, ...]
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> ModelVariant:
        """The weights as they are."""
        return self.variants[0]


def opened_model(request: Request, open_files: Opener = LocalFiles) -> AbstractContextManager[SourceModel]:
    """`opened_by` with `open_pass`. open_files: see `convert.stored.Checkpoint`."""
    return opened_by(partial(open_pass, open_files=open_files), request)


@contextmanager
def opened_by(opener: Callable[[Request], Pass], request: Request) -> Iterator[SourceModel]:
    """Open whatever a request names: a folder with adapters to merge, a GGUF file, an old GGML file.

    Its recipes are planned as if they were to be written, with its importance matrix; nothing is written.
    opener: opens a request; of a model on a hub, one that knows how its files are read.

    Raises what the opener raises; Unsupported for a model that embeds or drafts, or has no class in transformers, and
    Usage for an adapter.
    """
    make = replace(
        request.make,
        recipes=("copy", *request.make.recipes),
        outtypes=(),
        mmproj=False,
        mmproj_outtype=None,
        allow_requantize=request.path.is_file(),  # a file that is quantized already is the source all the same
    )
    with opener(replace(request, make=make)) as planned:
        if is_encoder(planned.info.metadata):
            raise Unsupported(
                f"{planned.info.architecture} models turn texts into vectors and predict no token, so that there is no "
                "loss to measure and nothing to calibrate with",
                where=request.path,
                fix="Quantize without an importance matrix, and compare vectors: llama-server --embeddings.",
            )
        if is_draft(planned.info.metadata, {spec.name for spec in planned.outputs[0].shards.whole.tensors}):
            raise Unsupported(
                "this model guesses tokens for a larger one, without which nothing can run it, so that there is no "
                "loss to measure and nothing to calibrate with",
                where=request.path,
                fix="Quantize without an importance matrix, and measure the larger model.",
            )
        config = _config(request.path, planned)
        variants = tuple(_variant(planned, output) for output in planned.outputs)
        first = replace(
            variants[0], label=Path(os.path.abspath(request.path)).name, encodings={}, paths=planned.info.paths
        )
        yield SourceModel(config, request.path, (first, *variants[1:]), planned.notes)


@contextmanager
def opened_file(path: Path) -> Iterator[ModelVariant]:
    """Open a GGUF file, any of its shards, or an old GGML file. Raises what `open_model` raises."""
    with open_model(path).files as files:
        tensors = {info.name: GgufTensor(files, info, info.name) for info in files.tensors.values()}
        nbytes = sum(info.nbytes for info in files.tensors.values())
        count = sum(math.prod(info.shape) for info in files.tensors.values())
        yield ModelVariant(
            path.name, tensors, files.metadata, files.size, 8 * nbytes / max(count, 1), paths=tuple(files.paths)
        )


def _config(path: Path, planned: Pass) -> Mapping[str, Any]:
    if isinstance(planned.source, GgufSet):
        return model_config(planned.source)[1]
    if not (path / "config.json").is_file():
        return {"sliding_window": None, **open_config(path)}  # params.json leaves out what there is not
    values = of_thinker(read_object(path / "config.json", inside=path))
    return {**values, **text_part(values), "architectures": values["architectures"]}


def _variant(planned: Pass, output: OutputFile) -> ModelVariant:
    tensors = {tensor.name: tensor for tensor in planned.tensors}
    specs = output.shards.whole.tensors
    weights = output.importance or [None] * len(specs)
    encodings = {
        spec.name: Encoding(spec.format, importance)
        for spec, importance in zip(specs, weights, strict=True)
        if spec.format is not tensors[spec.name].held
    }
    metadata = output.shards.whole.metadata
    return ModelVariant(output.label, tensors, metadata, output.size, output.bits_per_weight, encodings)


# -- reading ----------------------------------------------------------------------------------------------------------


def load_kernels(
    variants: Sequence[ModelVariant], advance: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Compile the kernels that reading these variants takes; returns the seconds that it took."""
    wanted = set()
    for variant in variants:
        for name, tensor in variant.tensors.items():
            wanted.add((F32, tensor.held, False))
            if name in variant.encodings:
                format, importance = variant.encodings[name]
                wanted |= {(format, tensor.held, importance is not None), (F32, format, False)}
    return GGML.load(sorted(wanted, key=lambda each: (each[0].name, each[1].name, each[2])), advance)


def read_tensors(
    variant: ModelVariant, names: Sequence[str], threads: int, shelf: Mapping[str, Weights] | None = None
) -> dict[str, Weights]:
    """Whole tensors as rows, (rows, width) float32. shelf: tensors of the source that have been read already.

    Malformed: a weight is NaN or infinite. Unsupported: a weight that the type of the recipe cannot hold.
    """
    shelf = shelf or {}
    found: dict[str, Weights] = {}
    tasks: list[tuple[str, int, int]] = []
    for name in names:
        if name in shelf and name not in variant.encodings:
            found[name] = shelf[name]
            continue
        tensor = variant.tensors[name]
        rows, width = rows_of(tensor.shape)
        found[name] = np.empty((rows, width), np.float32)
        step = max(CHUNK // max(width * tensor.granule, 1), 1) * tensor.granule
        tasks += [(name, start, min(start + step, rows)) for start in range(0, rows, step)]

    def worker(stop: threading.Event) -> Callable[[tuple[str, int, int]], None]:
        scratch = Scratch()

        def work(task: tuple[str, int, int]) -> None:
            name, first, last = task
            base = shelf[name][first:last] if name in shelf else None
            _read(variant, name, first, last, found[name][first:last], scratch, base)

        return work

    parallel_for(worker, tasks, threads)
    return found


def read_rows(variant: ModelVariant, name: str, first: int, last: int, threads: int) -> Weights:
    """Rows first..last (exclusive) of a tensor, (rows, width) float32. Raises what `read_tensors` raises."""
    width = rows_of(variant.tensors[name].shape)[1]
    out = np.empty((last - first, width), np.float32)
    step = max(CHUNK // max(width, 1), 1)

    def worker(stop: threading.Event) -> Callable[[int], None]:
        scratch = Scratch()

        def work(start: int) -> None:
            end = min(start + step, last)
            _read(variant, name, start, end, out[start - first : end - first], scratch)

        return work

    parallel_for(worker, range(first, last, step), threads)
    return out


def pick_rows(variant: ModelVariant, name: str, wanted: NDArray[np.int64], threads: int) -> Weights:
    """The rows of these numbers, ascending, as (rows, width) float32; the whole tensor is never in memory."""
    rows, width = rows_of(variant.tensors[name].shape)
    out = np.empty((len(wanted), width), np.float32)
    step = max(CHUNK // max(width, 1), 1)
    starts = sorted(set((wanted // step * step).tolist()))
    plain = replace(variant, encodings={})

    def worker(stop: threading.Event) -> Callable[[int], None]:
        scratch = Scratch()

        def work(start: int) -> None:
            low, high = np.searchsorted(wanted, (start, start + step))
            chunk = np.empty((min(step, rows - start), width), np.float32)
            _read(plain, name, start, start + len(chunk), chunk, scratch)
            picked = np.ascontiguousarray(chunk[wanted[low:high] - start])
            if name in variant.encodings:
                _read(variant, name, start, start + len(picked), out[low:high], scratch, picked)
            else:
                out[low:high] = picked

        return work

    parallel_for(worker, starts, threads)
    return out


def _read(
    variant: ModelVariant, name: str, first: int, last: int, out: Weights, scratch: Scratch, base: Weights | None = None
) -> None:
    """Rows first..last into `out`. base: the same rows before a recipe, if they are there."""
    scratch.reset()
    tensor = variant.tensors[name]
    held, place = tensor.held, RowRange(tensor.name, tensor.origin, first, rows_of(tensor.shape)[0])
    if base is None:
        rows = np.ascontiguousarray(tensor.rows(first, last, scratch))
        if held.name in INTEGERS:
            out[...] = rows
        elif held.plain:
            GGML.encode(F32, rows, out.view(np.uint8), source=held, importance=None, place=place)
        else:
            GGML.decode(held, rows, out, place=place)
        base = out
    if name in variant.encodings:
        format, importance = variant.encodings[name]
        made = scratch.take(len(out) * format.nbytes((out.shape[1],))).reshape(len(out), -1)
        GGML.encode(format, base, made, source=F32, importance=importance, place=place)
        if format.name in FLOATS:
            GGML.encode(
                F32, made.view(format.dtype["x"]), out.view(np.uint8), source=format, importance=None, place=place
            )
        else:
            GGML.decode(format, made, out, place=place)
