"""The one way from tensors to files: any number of outputs, plain or quantized, in one pass over the weights."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.apart import check_apart
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.formats import Format
from ggufsmith.container.shards import SetWriter, ShardPlan
from ggufsmith.container.text import some
from ggufsmith.pipeline.encoder import Encoder
from ggufsmith.pipeline.findings import Finding
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.pipeline.stream import Opening, RowSource, SharedTarget, chunks, is_held, load_kernels, stream

MAX_NOTED = 8  # tensors that have a note each
# Decides when tensors are made: it calls the first function that it is given with the names of some of them, until all
# are made. By default they are all made at once; an encoder that has to learn about them first is given them in turn.
# The second function says which of some names are not in every output yet, where an interrupted run is resumed.
Make = Callable[[Collection[str]], None]
Needed = Callable[[Collection[str]], frozenset[str]]
Conductor = Callable[[Make, Needed], None]


@dataclass(frozen=True)
class OutputFile:
    """One output, planned.

    shards: its files, mostly one. path: the name that the model would have in one file.
    label:  what it is: the name of its recipe, or of the type of its matrices.
    """

    shards: ShardPlan
    path: Path
    label: str

    @property
    def importance(self) -> Sequence[NDArray[np.float32] | None] | None:
        """The importance matrix's weights for each tensor (see `stream.StreamTarget`)."""
        return None

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The names of tensors that could not have the type of their rule."""
        return ()

    @property
    def requantized(self) -> tuple[str, ...]:
        """The names of tensors that were quantized already."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this output."""
        return ()

    def reason(self, index: int) -> str:
        """Which rule gave the tensor at this place of the layout its type."""
        return ""

    def wanted(self, index: int) -> Format:
        """The type that the rule asked for, which is not always the one that the tensor's rows fit."""
        return self.shards.whole.tensors[index].format

    @property
    def paths(self) -> list[Path]:
        """Where its files go, in the order of the shards."""
        return self.shards.paths(self.path)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.shards.whole.size

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each type, the most frequent first."""
        return dict(Counter(spec.format.name for spec in self.shards.whole.tensors).most_common())

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors alone; 0 for a file without any."""
        specs = self.shards.whole.tensors
        return 8 * sum(spec.nbytes for spec in specs) / max(sum(math.prod(spec.shape) for spec in specs), 1)

    def check_apart(self, inputs: Sequence[Path]) -> None:
        """OutputConflict, as writing raises it, if one of the files is an input."""
        for path in self.paths:
            check_apart(path, inputs)


@dataclass(frozen=True)
class Written:
    """seconds: wall time of reading, computing, writing and verifying; notes: what was found on the way."""

    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ClusterWork:
    """Where to make the chunks, instead of here. scheduler: of Dask. opening: gives a worker the same tensors."""

    scheduler: str
    opening: Opening


def write_outputs(
    tensors: Sequence[RowSource],
    outputs: Sequence[OutputFile],
    *,
    encoder: Encoder,
    inputs: Sequence[Path],
    threads: int | None = None,
    sync: bool = True,
    overwrite: bool = True,
    resume: bool = False,
    cluster: ClusterWork | None = None,
    conduct: Conductor | None = None,
    advance: Callable[[int], None] = lambda weights: None,
    compiling: Callable[[int, int], None] = lambda done, total: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Written:
    """Make, verify, and give the files their names; tensors in the order of the layouts.

    resume: see `container.writer.Writer`; layouts, inputs, importance, the encoder and the fingerprints of the tensors
    decide the bytes.
    cluster: None works on this machine. conduct: None makes all tensors at once.

    advance:   told of weights as they are done.
    compiling: told how many kernels are compiled, of how many that have to be. loaded: told how many seconds that took.
    """
    started = time.perf_counter()
    threads = threads or available_cores()
    options: dict[str, Any] = {
        "sync": sync,
        "overwrite": overwrite,
        "resume": resume,
        "inputs": list(inputs),
        "threads": threads,
    }
    notes: list[str] = []
    way = fingerprint(encoder, [tensor.fingerprint for tensor in tensors])
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                SetWriter(output.path, output.shards, identity=fingerprint(way, output.importance), **options)
            )
            for output in outputs
        ]
        targets = [
            SharedTarget(output.shards.whole, writer, encoder, output.importance)
            for output, writer in zip(outputs, writers, strict=True)
        ]
        if cluster is None:
            loaded(load_kernels(tensors, targets, compiling))
            found = _stream_here(tensors, targets, threads, conduct, advance)
        else:
            found = _stream_on(cluster, tensors, targets, advance, notes.append)
        for writer in writers:
            writer.commit()
    notes += [*unweighted_notes(found), *(note for writer in writers for note in writer.notes())]
    return Written(time.perf_counter() - started, tuple(notes))


def _stream_here(
    tensors: Sequence[RowSource],
    targets: Sequence[SharedTarget],
    threads: int,
    conduct: Conductor | None,
    advance: Callable[[int], None],
) -> list[dict[str, Finding]]:
    """See `stream.stream`. ValueError if the conductor leaves out a tensor."""
    if conduct is None:
        return stream(tensors, targets, threads=threads, advance=advance)
    found, left = list[dict[str, Finding]](), {tensor.name for tensor in tensors}

    def make(names: Collection[str]) -> None:
        now = left & set(names)
        left.difference_update(now)
        found.extend(stream(tensors, targets, threads=threads, only=now, advance=advance))
        for target in targets:
            target.writer.keep()

    def needed(names: Collection[str]) -> frozenset[str]:
        wanted = (chunk for chunk in chunks(tensors) if tensors[chunk[0]].name in names)
        return frozenset(tensors[chunk[0]].name for chunk in wanted if not is_held(tensors, chunk, targets))

    conduct(make, needed)
    if left:
        raise ValueError(f"tensors were not made: {sorted(left)}")
    return found


def _stream_on(
    cluster: ClusterWork,
    tensors: Sequence[RowSource],
    targets: Sequence[SharedTarget],
    advance: Callable[[int], None],
    note: Callable[[str], None],
) -> list[dict[str, Finding]]:
    """See `cluster.stream_on`. Unsupported if Dask is not installed."""
    try:
        from ggufsmith.pipeline.cluster import stream_on
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        fix = "pip install 'ggufsmith[cluster]'"
        raise Unsupported("--scheduler needs dask.distributed, which is not installed", fix=fix) from None
    return stream_on(cluster.scheduler, cluster.opening, tensors, targets, advance=advance, note=note)


def unweighted_notes(found: Sequence[Mapping[str, Finding]]) -> list[str]:
    """Sentences on what was found; each finding is that of an output, by tensor."""
    merged: dict[str, Finding] = {}
    for findings in found:
        merged.update(findings)
    if len(merged) > MAX_NOTED:
        total = sum(finding.count for finding in merged.values())
        return [
            f"{total} weights of {len(merged)} tensors had no usable importance and were weighted evenly (ggml would "
            f"have erased them): {some(list(merged))}"
        ]
    return [
        f"{name}: {finding.count} weights had no usable importance and were weighted evenly (ggml would have erased "
        f"them)"
        for name, finding in merged.items()
    ]
