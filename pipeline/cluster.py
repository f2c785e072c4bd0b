"""The chunks of a run on a Dask cluster: workers make them, and write them where the layout says.

The client holds the output's lock and its reservation, notes in the journal what workers report, reads everything back,
verifies and publishes: what it does for a run on one machine. Workers open the same inputs and the client's temporary
files by path, so all need one file system, mounted at one place; what is streamed they read from the hub themselves.
Kernels give the same bytes on every CPU, so neither the number of workers nor the death of one shows in the output: a
task that is done twice writes the same bytes twice. What a worker's system refuses, such as a full disk, others do.
"""

import logging
import os
import secrets
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
from distributed.worker import get_worker
from numpy.typing import NDArray

from ggufsmith.container.checksum import checksum
from ggufsmith.container.errors import Failure, NoSpace
from ggufsmith.container.layout import Layout
from ggufsmith.container.positional import as_bytes, write_at
from ggufsmith.container.release import own_version
from ggufsmith.container.writer import FULL
from ggufsmith.pipeline.encoder import Encoder
from ggufsmith.pipeline.findings import Finding, Tally
from ggufsmith.pipeline.stream import (
    Chunk,
    Done,
    Opening,
    RowSource,
    Scratch,
    SharedTarget,
    StreamTarget,
    chunks,
    is_held,
    load_kernels,
    make_chunk,
    weights_of,
)

TASK = 1 << 24  # weights: a fifth of a second or more, against a few milliseconds of scheduler and client
AHEAD = 64  # tasks that are with the scheduler, for each thread of the workers
RETRIES = 2  # of a task that fails: another worker may have what this one lacks
TIMEOUT = 15  # seconds until the scheduler answers, and until there is a worker
PATIENCE = 60.0  # seconds without any worker
POLL = 0.1  # seconds between two looks at what is done
LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")  # what they say our errors say
Task = Sequence[Chunk]
Result = tuple[list[Done], list["WrittenPiece"]]
HOW = "Start it with `dask scheduler`, and on each machine `dask worker tcp://HOST:8786`."


@dataclass(frozen=True)
class WorkerOutput:
    """The files of one output, as workers write them: `layout` counts as if they stood one behind the other."""

    layout: Layout
    paths: tuple[Path, ...]
    starts: tuple[int, ...]
    encoder: Encoder
    importance: Sequence[NDArray[np.float32] | None] | None


@dataclass(frozen=True)
class WrittenPiece:
    """Bytes that a worker wrote: of which output, where, and their CRC-32."""

    target: int
    offset: int
    size: int
    checksum: int


@dataclass(frozen=True)
class WorkerSink:
    """A `stream.Sink` for one task: writes into files that the client laid out, and keeps what it has to know."""

    target: int
    starts: Sequence[int]
    fds: Sequence[int]
    pieces: list[WrittenPiece] = field(default_factory=list)

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Write at this place of the output, and note where, how much, and its checksum."""
        view = as_bytes(data)
        index = bisect_right(self.starts, offset) - 1
        write_at(self.fds[index], view, offset - self.starts[index])
        self.pieces.append(WrittenPiece(self.target, offset, len(view), checksum(view)))

    def holds(self, offset: int, size: int) -> bool:
        """False: the client sends only chunks that some output lacks."""
        return False  # the client does not send chunks that all outputs hold


class WorkerUnable(Exception):
    """The system of a worker, its address, is in the way; others may have room, or the files."""

    def __init__(self, worker: str, why: Failure) -> None:
        super().__init__(worker, why)
        self.worker, self.why = worker, why


class WorkerRun(distributed.WorkerPlugin):  # type: ignore[misc]  # its types are not looked at
    """One run on one worker: inputs and outputs, opened for the first task, closed when the client is done."""

    def __init__(self, opening: Opening, places: Sequence[WorkerOutput]) -> None:
        self.name = f"ggufsmith-{secrets.token_hex(8)}"
        self.opening = opening
        self.places = places
        self.inputs = {path.absolute(): _stamp(path) for path in opening.inputs}
        self.version = own_version()
        self.host = socket.gethostname()

    def setup(self, worker: Any) -> None:
        """Called by Dask on the worker, before the first task."""
        self.address = worker.address
        self.local = threading.local()
        self.lock = threading.Lock()
        self.stack = ExitStack()
        self.tensors: Sequence[RowSource] | None = None
        self.working, self.over = 0, False

    def teardown(self, worker: object) -> None:
        """Called by Dask on the worker, when the client is done."""
        with self.lock:
            self.over = True
            self._close()

    def work(self, task: Task) -> Result:
        """Make these chunks, and write them into every output."""
        with self._opened() as tensors:
            if not hasattr(self.local, "scratch"):
                self.local.scratch = Scratch()
            sinks = [
                WorkerSink(k, place.starts, fds)
                for k, (place, fds) in enumerate(zip(self.places, self.fds, strict=True))
            ]
            targets = [
                StreamTarget(place.layout, sink, place.encoder, place.importance)
                for place, sink in zip(self.places, sinks, strict=True)
            ]
            done = [make_chunk(tensors, chunk, targets, self.local.scratch) for chunk in task]
            return done, [piece for sink in sinks for piece in sink.pieces]

    @contextmanager
    def _opened(self) -> Iterator[Sequence[RowSource]]:
        """A cancelled task goes on to its end; until then no file is closed under it."""
        with self.lock:
            if self.over:
                raise Failure("this run has ended", where=self.address)
            if self.tensors is None:
                self._check()
                with ExitStack() as stack:
                    tensors = stack.enter_context(self.opening())
                    self.fds = [[_open(path, stack) for path in place.paths] for place in self.places]
                    load_kernels(
                        tensors,
                        [StreamTarget(p.layout, WorkerSink(0, (), ()), p.encoder, p.importance) for p in self.places],
                    )
                    self.stack = stack.pop_all()
                self.tensors = tensors
            self.working += 1
        try:
            yield self.tensors
        finally:
            with self.lock:
                self.working -= 1
                self._close()

    def _close(self) -> None:
        if self.over and not self.working:
            self.stack.close()

    def _check(self) -> None:
        """This worker has the client's program, and its files."""
        if self.version != own_version():
            what = f"this worker has ggufsmith {own_version()}, the client {self.version}"
            raise Failure(what, where=self.address, fix="Install the same version everywhere.")
        for path, stamp in self.inputs.items():
            if _stamp(path) != stamp:
                what = f"this worker's file {path} differs from the client's"
                raise Failure(
                    what, where=self.address, fix="All machines need the same file system, mounted at the same path."
                )

    def flush(self) -> None:
        """Force this worker's writes out, so that the client's machine sees them."""
        if self.tensors is not None and not self.over and socket.gethostname() != self.host:
            for fd in (fd for fds in self.fds for fd in fds):
                os.fsync(fd)


def _stamp(path: Path) -> tuple[int, int]:
    """Size, and time in whole seconds, which is what every file system keeps."""
    found = path.stat()
    return found.st_size, int(found.st_mtime)


def _open(path: Path, stack: ExitStack) -> int:
    fd = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    stack.callback(os.close, fd)
    return fd


def _work(name: str, task: Task) -> Result:
    """Runs on a worker: `Run.work`, with the worker's name in what the system says went wrong."""
    worker = get_worker()
    try:
        result: Result = worker.plugins[name].work(task)
    except OSError as error:
        what = f"worker {worker.address}: {error.strerror or error}"
        if error.errno in FULL:
            why: Failure = NoSpace(what, where=error.filename, fix="Free some space there, or remove that worker.")
        else:
            why = Failure(what, where=error.filename, fix="All workers need the client's files, under the same paths.")
        raise WorkerUnable(worker.address, why) from None
    return result


def _flush(name: str, dask_worker: distributed.Worker) -> None:
    """Runs on every worker at the end."""
    plugin = dask_worker.plugins.get(name)
    if isinstance(plugin, WorkerRun):
        plugin.flush()


# ---- the client ----


def stream_on(
    scheduler: str,
    opening: Opening,
    tensors: Sequence[RowSource],
    targets: Sequence[SharedTarget],
    *,
    advance: Callable[[int], None] = lambda weights: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Finding]]:
    """What `stream.stream` does, on the workers of a cluster. scheduler: its address.

    opening: gives the same tensors on a worker; it is pickled.
    advance: told of weights as they are done, and of none from time to time. note: told of workers that were unable.

    Failure: no scheduler, or no worker, or none that is left; and whatever a chunk raises there.
    """
    run = WorkerRun(opening, [_place_of(target) for target in targets])
    tally = Tally(len(targets))
    with _connected(scheduler) as client, _registered(client, run):
        todo = (chunk for chunk in chunks(tensors) if not is_held(tensors, chunk, targets))
        unable: dict[str, Failure] = {}
        work = partial(_work, run.name)
        for task, (made, pieces) in _finished(client, work, _tasks(tensors, todo), unable, lambda: advance(0)):
            for piece in pieces:
                writer = targets[piece.target].writer
                if not writer.holds(piece.offset, piece.size):
                    writer.record(piece.offset, piece.size, piece.checksum)
            for done in made:
                tally.add(*done)
            advance(sum(weights_of(tensors, chunk) for chunk in task))
        with suppress(Exception):  # what is missing in the end, the check of the sums finds
            client.run(_flush, run.name, on_error="ignore")
    for why in unable.values():
        note(f"{str(why).splitlines()[0]}; the other workers did its share")
    return tally.unweighted


def _place_of(target: SharedTarget) -> WorkerOutput:
    writer = target.writer
    layout = replace(target.layout, metadata={}, header=b"")
    return WorkerOutput(layout, tuple(writer.temporaries), tuple(writer.starts), target.encoder, target.importance)


def _tasks(tensors: Sequence[RowSource], todo: Iterable[Chunk]) -> Iterator[Task]:
    """Chunks that follow each other, in tasks of about one size."""
    task: list[Chunk] = []
    weights = 0
    for chunk in todo:
        task.append(chunk)
        weights += weights_of(tensors, chunk)
        if weights >= TASK:
            yield tuple(task)
            task, weights = [], 0
    if task:
        yield tuple(task)


@contextmanager
def _connected(scheduler: str) -> Iterator[distributed.Client]:
    """A client of the cluster, once there is a worker."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set({"distributed.comm.timeouts.connect": f"{TIMEOUT}s"}):
        try:
            client = distributed.Client(scheduler, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            what = str(error).partition("\n")[0] or type(error).__name__
            raise Failure(f"no Dask scheduler answered: {what}", where=scheduler, fix=HOW) from error
        try:
            _wait_for_a_worker(client, scheduler)
            yield client
        finally:
            with suppress(Exception):
                client.close(timeout=TIMEOUT)


def _wait_for_a_worker(client: distributed.Client, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=TIMEOUT)
    except TimeoutError:
        raise Failure("the cluster has no workers", where=scheduler, fix=HOW) from None


@contextmanager
def _registered(client: distributed.Client, run: WorkerRun) -> Iterator[None]:
    try:
        client.register_plugin(run)
    except Exception as error:  # whatever unpickling meets there
        raise _unfit(error, client.scheduler.address) from error
    try:
        yield
    finally:
        if client.status == "running":
            with suppress(Exception):  # it is gone, and its workers with it
                client.unregister_worker_plugin(run.name)


def _finished(
    client: distributed.Client,
    work: Callable[[Task], Result],
    tasks: Iterator[Task],
    unable: dict[str, Failure],
    waiting: Callable[[], None],
) -> Iterator[tuple[Task, Result]]:
    """The tasks with their results, as they arrive. Failure if the cluster is lost underway, or nobody is able.

    unable: gets the workers whose system was in the way, with what it said; what failed there goes to the others only.
    waiting: called in between; it may raise.

    Of the tasks only some for each thread are sent ahead, so that their number costs no memory.
    """
    address = client.scheduler.address
    pending: dict[distributed.Future, Task] = {}
    bound: dict[str, set[str]] = {}  # tasks that may be done by these workers only
    ready = distributed.as_completed([], loop=client.loop, with_results=True, raise_errors=False)
    alive = looked = time.monotonic()
    room = _room(client)

    def send() -> bool:
        """Send what there is room for. Whether there may be more; nothing is sent to a scheduler that is lost."""
        wanted = max(room - len(pending), 0)
        if not wanted or client.status != "running":
            return True
        more = list(islice(tasks, wanted))
        futures = client.map(work, more, pure=False, retries=RETRIES)
        pending.update(zip(futures, more, strict=True))
        ready.update(futures)
        return len(more) == wanted

    def send_again(future: distributed.Future, able: set[str]) -> None:
        task = pending.pop(future)
        client.cancel([future])
        again = client.submit(work, task, workers=list(able), pure=False, retries=RETRIES)
        pending[again], bound[again.key] = task, able
        ready.add(again)

    try:
        more = True
        while (more := more and send()) or pending:
            batch = ready.next_batch(block=False)
            for future, result in batch:
                if future not in pending:  # cancelled above
                    continue
                if future.status not in ("error", "cancelled"):  # "lost" if its worker has died meanwhile
                    yield pending.pop(future), result
                    continue
                error = _explained(future, address)
                if not isinstance(error, WorkerUnable):
                    raise error
                unable[error.worker] = error.why
                able = _workers(client) - unable.keys()
                if not able:
                    raise _nobody(unable)
                send_again(future, able)
            now = time.monotonic()
            if batch:
                alive = now
                continue
            if client.status != "running":
                raise Failure("the connection to the Dask scheduler is lost", where=address, fix=HOW)
            if now - looked > PATIENCE / 10:
                looked, room = now, _room(client)
                able = _workers(client) - unable.keys()
                alive = now if able else alive
                for future in [future for future in pending if able and not bound.get(future.key, able) & able]:
                    send_again(future, able)  # its workers have died
            if now - alive > PATIENCE:
                if unable:
                    raise _nobody(unable)
                raise Failure(f"no worker was connected for {PATIENCE:.0f} seconds", where=address, fix=HOW)
            waiting()
            time.sleep(POLL)
    finally:
        if client.status == "running":
            client.cancel(list(pending))


def _workers(client: distributed.Client) -> set[str]:
    """The addresses of those that are there; none if the scheduler does not answer, which shows in its status."""
    with suppress(OSError):
        return set(client.nthreads())
    return set()


def _room(client: distributed.Client) -> int:
    """How many tasks are sent ahead."""
    threads = 0
    with suppress(OSError):
        threads = sum(client.nthreads().values())
    return AHEAD * max(threads, 1)


def _nobody(unable: dict[str, Failure]) -> Failure:
    """The last worker's error, and those of the others."""
    *others, last = unable.values()
    return type(last)(last.what, where=last.where, fix=last.fix, also=[why.what for why in others])


def _explained(future: distributed.Future, scheduler: str) -> Failure | WorkerUnable:
    error: BaseException | None = future.exception() if future.status == "error" else None
    if error is None:
        return Failure("the connection to the Dask scheduler is lost", where=scheduler, fix=HOW)
    if isinstance(error, distributed.scheduler.KilledWorker):
        what = "several workers died, one after the other, while they did the same task"
        return Failure(what, where=scheduler, fix="See the logs of the workers; they may lack memory.")
    return error if isinstance(error, Failure | WorkerUnable) else _unfit(error, scheduler)


def _unfit(error: BaseException, scheduler: str) -> Failure:
    what = f"a worker cannot take part: {type(error).__name__}: {error}"
    return Failure(what, where=scheduler, fix="Install the client's version of ggufsmith on every worker.")
