"""One pass over a model: everything decided and nothing written, then every output made from one reading.

A checkpoint (`convert.checkpoint_pass`) and a file (`quantize.file_pass`) both open as a `Pass`. Whoever converts,
quantizes, runs batches, measures for a budget or verifies works with it, and does not ask what the source was.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ggufsmith.container.disk import make_folder
from ggufsmith.container.values import Metadata
from ggufsmith.pipeline.encoder import Encoder
from ggufsmith.pipeline.outputs import ClusterWork, Conductor, OutputFile, Written, write_outputs
from ggufsmith.pipeline.request import WriteOptions
from ggufsmith.pipeline.stream import Opening, RowSource


@dataclass(frozen=True)
class SourceInfo:
    """What is said of the source in reports.

    paths:        the model folder, or the files. nbytes: of its weights.
    architecture: general.architecture. metadata: the keys that outputs have before anything is quantized.
    adapters:     the factors of the adapters that are merged in, by the names that their files have among the inputs.
    """

    paths: tuple[Path, ...]
    nbytes: int
    architecture: str
    metadata: Metadata
    adapters: Mapping[str, float] = field(default_factory=dict)


def _nothing(outputs: Sequence[OutputFile]) -> tuple[str, ...]:
    """A pass that learns nothing on the way."""
    return ()


@dataclass(frozen=True)
class Pass:
    """Several outputs of one model, planned. Use it in a `with`, which opens the source for reading.

    tensors: of all outputs; the layout of each has its own in the same order.
    opening: the same tensors, for workers of a cluster.
    inputs:  the files that decide the outputs' bytes, by the names that records give them. No output may replace one.
    notes:   what the user should know of the model; those of an output are its own.
    conduct: when the tensors are made, if not all at once (see `outputs.Conductor`). learned: what there is to say of
    that when it is done.
    importance: how far an importance matrix covers the model, for the report; None without one.
    """

    info: SourceInfo
    source: AbstractContextManager[Any]
    tensors: tuple[RowSource, ...]
    outputs: tuple[OutputFile, ...]
    inputs: Mapping[str, Path]
    notes: tuple[str, ...]
    opening: Opening
    encoder: Encoder
    conduct: Conductor | None = field(default=None, repr=False)
    learned: Callable[[Sequence[OutputFile]], Iterable[str]] = field(default=_nothing, repr=False)
    importance: Mapping[str, Any] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self.source.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.__exit__(kind, error, trace)

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def tensors_of(self, output: OutputFile) -> tuple[RowSource, ...]:
        """The tensors of one output, in the order of its layout."""
        by_name = {tensor.name: tensor for tensor in self.tensors}
        return tuple(by_name[spec.name] for spec in output.shards.whole.tensors)

    @property
    def size(self) -> int:
        """Bytes of all outputs."""
        return sum(output.size for output in self.outputs)

    def check_apart(self) -> None:
        """OutputConflict if an output is one of the inputs."""
        for output in self.outputs:
            output.check_apart(tuple(self.inputs.values()))

    def run(
        self,
        write: WriteOptions,
        *,
        advance: Callable[[int], None] = lambda weights: None,
        compiling: Callable[[int, int], None] = lambda done, total: None,
        loaded: Callable[[float], None] = lambda seconds: None,
    ) -> Written:
        """Make all outputs, verify them and give the files their names (see `write_outputs`). The pass is open."""
        if write.outdir is not None and write.outfile is None:
            make_folder(write.outdir)
        written = write_outputs(
            self.tensors,
            self.outputs,
            encoder=self.encoder,
            inputs=tuple(self.inputs.values()),
            threads=write.threads,
            sync=write.sync,
            overwrite=write.overwrite,
            resume=write.resume,
            cluster=ClusterWork(write.scheduler, self.opening) if write.scheduler else None,
            conduct=self.conduct,
            advance=advance,
            compiling=compiling,
            loaded=loaded,
        )
        return replace(written, notes=(*written.notes, *self.learned(self.outputs)))


def in_order(output: OutputFile, names: Sequence[str]) -> OutputFile:
    """The output with its layout listing its tensors in this order; every byte keeps its place in the files."""
    whole = output.shards.whole
    places = {spec.name: k for k, spec in enumerate(whole.tensors)}
    order = [places[name] for name in names if name in places]
    if order == list(range(len(order))):
        return output
    tensors, offsets = tuple(whole.tensors[k] for k in order), tuple(whole.offsets[k] for k in order)
    return replace(output, shards=replace(output.shards, whole=replace(whole, tensors=tensors, offsets=offsets)))
