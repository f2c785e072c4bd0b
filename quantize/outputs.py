"""The one way from tensors to files: any number of outputs, plain or quantized, in one pass over the weights."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.shards import SetWriter, ShardPlan
from ggufsmith.container.writer import check_apart
from ggufsmith.naming.filename import FileName
from ggufsmith.quantize.imatrix import Imatrix, match
from ggufsmith.quantize.plan import FilePlan, Importance
from ggufsmith.quantize.recipes.assign import Recipe, Stored
from ggufsmith.quantize.recipes.rules import Facts
from ggufsmith.quantize.rows import Finding
from ggufsmith.quantize.stream import Opening, Target, Tensor, load_kernels, stream
from ggufsmith.quantize.threads import available_cores


@dataclass(frozen=True)
class Output:
    """One output: its shards (mostly one), and the name that the model would have in one file."""

    shards: ShardPlan
    path: Path

    @property
    def importance(self) -> Sequence[NDArray[np.float32] | None] | None:
        """The importance matrix's weights for each tensor (see `stream.Target`)."""
        return None

    @property
    def paths(self) -> list[Path]:
        return self.shards.paths(self.path)

    @property
    def size(self) -> int:
        return self.shards.whole.size

    def check_apart(self, inputs: Sequence[Path]) -> None:
        """OutputConflict, as writing raises it, if one of the files is an input."""
        for path in self.paths:
            check_apart(path, inputs)


@dataclass(frozen=True)
class Quantized(Output):
    """The output of a recipe."""

    plan: FilePlan

    @property
    def importance(self) -> Sequence[NDArray[np.float32] | None]:
        return self.plan.importance


@dataclass(frozen=True)
class Written:
    """seconds: wall time of reading, computing, writing and verifying; notes: what was found on the way."""

    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Cluster:
    """Where to make the chunks, instead of here. scheduler: of Dask. opening: gives a worker the same tensors."""

    scheduler: str
    opening: Opening


def write_outputs(
    tensors: Sequence[Tensor],
    outputs: Sequence[Output],
    *,
    inputs: Sequence[Path],
    threads: int | None = None,
    sync: bool = True,
    overwrite: bool = True,
    resume: bool = False,
    identity: str = "",
    cluster: Cluster | None = None,
    advance: Callable[[int], None] = lambda weights: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Written:
    """Make, verify, and give the files their names; tensors in the order of the layouts.

    resume: see `container.writer.Writer`; layouts, inputs, importance and the origins of the tensors decide the bytes,
    and identity says what else does.
    cluster: None works on this machine.

    advance: told of weights as they are done. loaded: told how long compiling or loading the kernels took.
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
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                SetWriter(output.path, output.shards, identity=_identity(identity, tensors, output), **options)
            )
            for output in outputs
        ]
        targets = [
            Target(output.shards.whole, writer, output.importance)
            for output, writer in zip(outputs, writers, strict=True)
        ]
        if cluster is None:
            load_kernels(tensors, targets)
            loaded(time.perf_counter() - started)
            found = stream(tensors, targets, threads=threads, advance=advance)
        else:
            found = _stream_on(cluster, tensors, targets, advance, notes.append)
        for writer in writers:
            writer.commit()
    notes += [*_notes(found), *(note for writer in writers for note in writer.notes())]
    return Written(time.perf_counter() - started, tuple(notes))


def _stream_on(
    cluster: Cluster,
    tensors: Sequence[Tensor],
    targets: Sequence[Target],
    advance: Callable[[int], None],
    note: Callable[[str], None],
) -> list[dict[str, Finding]]:
    """See `cluster.stream_on`. Unsupported if Dask is not installed."""
    try:
        from ggufsmith.quantize.cluster import stream_on
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        fix = "pip install 'ggufsmith[cluster]'"
        raise Unsupported("--scheduler needs dask.distributed, which is not installed", fix=fix) from None
    return stream_on(cluster.scheduler, cluster.opening, tensors, targets, advance=advance, note=note)


def _identity(text: str, tensors: Sequence[Tensor], output: Output) -> bytes:
    """What decides the bytes of an output besides its layout and the input files."""
    digest = hashlib.sha256()
    for part in (text, *(tensor.origin for tensor in tensors)):
        digest.update(f"{part}\0".encode("utf-8", "surrogatepass"))
    for weights in output.importance or ():
        digest.update(b"\0" if weights is None else np.ascontiguousarray(weights).data)
    return digest.digest()


def _notes(found: Sequence[Mapping[str, Finding]]) -> list[str]:
    merged: dict[str, Finding] = {}
    for findings in found:
        merged.update(findings)
    return [
        f"{name}: {finding.count} weights had no usable importance; they were weighted evenly instead of erased"
        for name, finding in merged.items()
    ]


def output_paths(name: FileName, recipes: Sequence[Recipe], output: Path | None, folder: Path) -> list[Path]:
    """Where each recipe's file goes: the components of `name` with the recipe as encoding.

    Usage for one output and several recipes, and for two recipes of one name.
    """
    if output is not None:
        if len(recipes) != 1:
            raise Usage("one output file for several recipes", fix="Leave it out, or name a folder with --outdir.")
        return [output]
    paths = [folder / replace(name, encoding=recipe.name.upper()).format() for recipe in recipes]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise Usage(f"two recipes would write {twice[0]}", fix="Name each recipe once.")
    return paths


def fit_importance(
    imatrix: Imatrix, tensors: Sequence[Stored], facts: Facts, renamed: Mapping[str, str] | None = None
) -> Importance:
    """The matrix for these tensors. renamed: what outputs call them; the others are left out (see `match`)."""
    weights, coverage = match(imatrix, tensors, facts.blocks, facts.architecture)
    names = {tensor.name: tensor.name for tensor in tensors} if renamed is None else renamed
    found = {
        names[tensor.name]: values
        for tensor, values in zip(tensors, weights, strict=True)
        if values is not None and tensor.name in names
    }
    return Importance(found, coverage, imatrix.metadata)
