"""What a job will take: exact bytes from the plans, seconds from a short calibration on this machine."""

import hashlib
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufsmith.container.formats import BY_NAME, FLOATS
from ggufsmith.pipeline.passes import Pass
from ggufsmith.quantize.rows import encode, warm_up

ROWS, WIDTH = 16, 4096  # a sample of weights; blocks of every format divide its rows
EACH = 0.03  # seconds that one kind of work is measured for
PROBE = 1 << 25  # bytes that are read and written for the speed of the disks


@dataclass(frozen=True)
class Work:
    """What a pass computes, reads and writes. computed: (target, source, weighted) -> weights."""

    computed: Mapping[tuple[str, str, bool], int]
    read: int
    written: int
    inputs: tuple[Path, ...]


@dataclass(frozen=True)
class Speed:
    """Of this machine. computing: weights per second and core; the disks, and SHA-256, in bytes per second."""

    computing: Mapping[tuple[str, str, bool], float]
    reading: float
    writing: float
    hashing: float

    def seconds(self, work: Work, threads: int) -> float:
        """About the time of a pass. Computing, reading and writing overlap only in part, and are added up; what was
        written is read back and hashed.
        """
        computing = sum(weights / self.computing[kind] for kind, weights in work.computed.items()) / threads
        writing = work.written * (1 / self.writing + 1 / self.reading + 1 / self.hashing)
        return computing + work.read / self.reading + writing


def work_of(planned: Pass) -> Work:
    """What a pass computes, reads and writes."""
    computed: Counter[tuple[str, str, bool]] = Counter()
    for output in planned.outputs:
        specs = output.shards.whole.tensors
        importance = output.importance or [None] * len(specs)
        for tensor, spec, weights in zip(planned.tensors_of(output), specs, importance, strict=True):
            if spec.format is not tensor.held or tensor.held.name in FLOATS:
                source = tensor.held.name if tensor.held.name in FLOATS else "F32"
                computed[spec.format.name, source, weights is not None] += math.prod(spec.shape)
    read = sum(path.stat().st_size for path in planned.inputs.values())
    return Work(computed, read, planned.size, tuple(planned.inputs.values()))


def calibrate(works: Iterable[Work], folder: Path) -> Speed:
    """Measure each kind of work that occurs, once. folder: where the outputs will be, or a folder above."""
    works = list(works)
    kinds = sorted({kind for work in works for kind in work.computed})
    source = next((path for work in works for path in work.inputs), None)
    return Speed({kind: _rate(*kind) for kind in kinds}, _reading(source), _writing(folder), _hashing())


def _rate(target: str, source: str, weighted: bool) -> float:
    """Weights per second of one core; kernels are loaded first."""
    format, held = BY_NAME[target], BY_NAME[source]
    warm_up(format, held, weighted)
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32) * np.float32(0.02)
    rows = values if source == "F32" else np.empty((ROWS, WIDTH), np.uint16)
    if source != "F32":
        encode(held, values, rows.view(np.uint8))
    out = np.empty((ROWS, format.nbytes((WIDTH,))), np.uint8)
    importance = np.ones(WIDTH, np.float32) if weighted else None
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < EACH:
        encode(format, rows, out, source=held, importance=importance)
        done += rows.size
    return done / elapsed


def _reading(path: Path | None) -> float:
    if path is None:
        return math.inf
    with suppress(OSError), path.open("rb", buffering=0) as file:
        started = time.perf_counter()
        size = len(file.read(PROBE))
        return size / max(time.perf_counter() - started, 1e-6)
    return math.inf


def _hashing() -> float:
    started = time.perf_counter()
    hashlib.sha256(bytes(PROBE)).digest()
    return PROBE / (time.perf_counter() - started)


def _writing(folder: Path) -> float:
    """With a temporary file that has no name, or none for long."""
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        file.write(bytes(PROBE))
        file.flush()
        os.fsync(file.fileno())
        return PROBE / (time.perf_counter() - started)
    return math.inf
