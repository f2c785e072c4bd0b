"""`--imatrix auto`: the importance matrices that requests leave to us, made on the way and put into the request."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np

from ggufsmith.container.apart import check_all_apart
from ggufsmith.container.disk import make_folder
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.layout import TensorSpec
from ggufsmith.evaluate.head import head_among
from ggufsmith.naming.filename import parse
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import MakeOptions, Request, WriteOptions
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import CHUNK, Entry, Imatrix
from ggufsmith.quantize.imatrix.write import ImatrixFormat, write_imatrix
from ggufsmith.quantize.measured import Progress, silently
from ggufsmith.quantize.recipes.rules import kept

Opener = Callable[[Request], Pass]
ENCODING = "imatrix"  # what stands for it in a file's name


class AutoImatrix:
    """Makes each importance matrix once, in a temporary folder; for use in a `with`, whose end removes them.

    make:  the importance matrix of the model of a request for nothing quantized, with what opens that, what shows how
           far it is, and of how many windows at most. Called by one thread at a time.
    texts: the names of the texts that it is made of. chunks, context: windows of them, and the tokens of each.
    """

    def __init__(
        self,
        make: Callable[[Request, Opener, Progress, int | None], Imatrix],
        texts: tuple[str, ...],
        chunks: int = 1,
        context: int = CHUNK,
    ) -> None:
        self.make = make
        self.texts, self.chunks, self.context = texts, chunks, context
        self._made: dict[bytes, Path] = {}
        self._lock = Lock()
        self._stack = ExitStack()
        self._numbers = count()

    def __enter__(self) -> "AutoImatrix":
        self._folder = Path(
            self._stack.enter_context(TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True))
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def made(
        self,
        request: Request,
        open_pass: Opener,
        *,
        keep: Path | None = None,
        progress: Progress = silently,
    ) -> Request:
        """The request with its importance matrix, which is kept beside the outputs if the request says so.

        keep: where it is kept, if not at `imatrix_path`.
        """
        plain = unquantized(request)
        with open_pass(plain) as planned:
            path = keep or imatrix_path(planned, request.write)
            if request.make.keep_imatrix:
                others = (request.write.outfile, request.make.save_recipe)
                check_all_apart([path, *others], planned.inputs.values())
        key = fingerprint(plain.path.absolute(), plain.source, request.make.imatrix_chunks)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._written(
                    self.make(plain, open_pass, progress, request.make.imatrix_chunks), path.name
                )
        if request.make.keep_imatrix:
            make_folder(path.parent)
            write_imatrix(
                open_imatrix(self._made[key]), path, overwrite=request.write.overwrite, sync=request.write.sync
            )
        return _with(request, self._made[key])

    def promised(self, request: Request, open_pass: Opener, *, head: bool = False) -> Request:
        """The request with one that has the right names, sizes and texts, but is 1 everywhere: for a plan.

        The plan has the types and the exact sizes that the real one gives, unless a budget weighs the types.

        head: whether it has the matrix that makes the logits, as calibrating does.
        """
        with open_pass(unquantized(request)) as planned:
            whole = planned.outputs[0].shards.whole
            last = head_among([spec.name for spec in whole.tensors]) if head else None
            entries = ones(whole.tensors, planned.info.architecture, last)
            imatrix = Imatrix(entries, self.texts, self.chunks, self.context)
            name = imatrix_path(planned, request.write).name
        return _with(request, self._written(imatrix, name))

    def _written(self, imatrix: Imatrix, name: str) -> Path:
        """Resuming knows large inputs by their names, size and time: the same content, made again, gets the same."""
        path = self._folder / str(next(self._numbers)) / ENCODING / name
        path.parent.mkdir(parents=True)
        write_imatrix(imatrix, path, sync=False)
        with path.open("rb") as file:
            stamp = int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:4], "big") >> 1
        os.utime(path, (stamp, stamp))
        return path


def unquantized(request: Request) -> Request:
    """The same model, with all its layers, as an F32 file: what it is before anything is quantized."""
    return replace(
        request,
        source=replace(request.source, prune_layers=()),
        make=MakeOptions(outtypes=("f32",)),
        write=WriteOptions(outdir=request.write.outdir),
    )


def imatrix_path(planned: Pass, write: WriteOptions, format: ImatrixFormat = "gguf") -> Path:
    """MODEL-imatrix.gguf, where the outputs of a request go. planned: of the same model."""
    path = planned.outputs[0].path
    name = replace(parse(path.name), encoding=ENCODING, shard=None).format()
    folder = write.outfile.parent if write.outfile else path.parent
    return (folder / name).with_suffix(f".{format}")


def is_weighted(spec: TensorSpec, architecture: str, head: str | None = None) -> bool:
    """Whether an importance matrix steers this tensor: a matrix of a block, or `head`, that may be quantized."""
    return (spec.name.startswith("blk.") or spec.name == head) and kept(spec.name, spec.shape, architecture) is None


def ones(tensors: Iterable[TensorSpec], architecture: str, head: str | None = None) -> dict[str, Entry]:
    """What stands for the entries of a model's matrices, with their names and sizes (see `is_weighted`)."""
    return {each.name: _ones(each) for each in tensors if is_weighted(each, architecture, head)}


def _ones(spec: TensorSpec) -> Entry:
    many = math.prod(spec.shape[:-2])
    return Entry(np.ones((many, spec.shape[-1]), np.float32), np.ones(many, np.int64))


def _with(request: Request, path: Path) -> Request:
    return replace(request, make=replace(request.make, imatrix=path, keep_imatrix=False, imatrix_chunks=None))
