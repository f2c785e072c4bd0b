"""A Dask scheduler and its workers, each in a process of its own, to be killed for real."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import distributed

READ_ONLY = """
import errno, sys
def refuse(event, details):
    if event == "open" and ".partial" in str(details[0]):
        raise OSError(errno.EROFS, "Read-only file system", details[0])
sys.addaudithook(refuse)
"""
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Cluster:
    """address: of the scheduler. workers: in the order of their start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        file = folder / "scheduler.json"
        file.unlink(missing_ok=True)
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        self.scheduler = self._start("dask_scheduler", *options)
        while not file.is_file() or '"address"' not in (text := file.read_text(encoding="utf-8")):
            if self.scheduler.poll() is not None:
                raise RuntimeError("the scheduler did not start")
            time.sleep(0.02)
        self.address = text.partition('"address": "')[2].partition('"')[0]
        self.workers: list[subprocess.Popen[bytes]] = []

    def add(
        self, *, file_limit: int | None = None, read_only: bool = False, without: str | None = None
    ) -> "subprocess.Popen[bytes]":
        """One more worker of one thread.

        file_limit: bytes, after which a file system is full for it. read_only: it cannot open outputs.
        without: a package that it does not have.
        """
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0", "--host", "127.0.0.1"]
        options += ["--local-directory", str(self._folder)]
        setup = (
            [f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({file_limit},) * 2)"] if file_limit else []
        )
        setup += [READ_ONLY] if read_only else []
        setup += [f"import sys; sys.modules[{without!r}] = None"] if without else []
        worker = self._start("dask_worker", self.address, *options, setup=setup)
        self.workers.append(worker)
        return worker

    def wait(self) -> None:
        """Until all workers are there."""
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(len(self.workers), timeout=60)

    def work_done(self) -> None:
        """Until the workers have nothing left to do, and whoever waits for it has been told."""
        with distributed.Client(self.address, set_as_default=False) as client:
            while any(client.processing().values()):
                time.sleep(0.05)
        time.sleep(0.5)

    def _start(self, module: str, *options: str, setup: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
        code = "\n".join((*setup, f"from distributed.cli.{module} import main", "main()"))
        environment = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
        return subprocess.Popen([sys.executable, "-c", code, *options], env=environment, cwd=self._folder, **QUIET)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    folder.mkdir(parents=True, exist_ok=True)
    found = Cluster(folder)
    try:
        for _ in range(workers):
            found.add()
        yield found
    finally:
        found.stop()
