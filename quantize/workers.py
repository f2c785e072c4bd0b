"""Processes that compile kernels side by side, each of them one kernel after another."""

import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.quantize import cpu

PROGRAM = "import sys; sys.path[:] = {path!r}; from ggufsmith.quantize.worker import main; main()"

MOST = 16  # processes: each takes some 300 MB


@contextmanager
def compiled_apart(names: Sequence[str], place: Path | None) -> Iterator[Iterator[Path]]:
    """The files of these kernels of the package as they are compiled, in any order. What fails is left out.

    place: where they are put; None puts them where they are gone after this.
    """
    with tempfile.TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as passing:
        crew = Crew(names, place or Path(passing))
        try:
            yield crew.files()
        finally:
            crew.dismiss()


class Crew:
    """As many processes as there are cores, or kernels, if those are fewer."""

    def __init__(self, names: Sequence[str], place: Path) -> None:
        self.todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for name in names:
            self.todo.put(name)
        self.place = place
        executable = sys.executable or ""  # None where Python runs inside another program
        command = [executable, "-c", PROGRAM.format(path=sys.path), str(place)]
        environment = {**os.environ, cpu.VARIABLE: cpu.level().name, "PYTHONIOENCODING": "utf-8"}
        self.processes = []
        with suppress(OSError):  # no interpreter, or no room for another process
            for _ in range(min(available_cores(), len(names), MOST)):
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        encoding="utf-8",
                    )
                )
        self.threads = [threading.Thread(target=self._supply, args=(process,)) for process in self.processes]
        for thread in self.threads:
            thread.start()

    def _supply(self, process: "subprocess.Popen[str]") -> None:
        """Give a process one name after the other; it answers each with a line, or ends."""
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError, queue.Empty, ValueError):
            while True:
                name = self.todo.get_nowait()
                print(name, file=process.stdin, flush=True)
                if process.stdout.readline().strip() != name:
                    break
                self.done.put(name)
        with suppress(OSError):
            process.stdin.close()
        self.done.put(None)

    def files(self) -> Iterator[Path]:
        """What is compiled, until no process is left."""
        from ggufsmith.quantize.machine_code import file_in

        working = len(self.processes)
        while working:
            try:
                name = self.done.get(timeout=0.5)  # without a timeout, Windows does not let Ctrl-C through
            except queue.Empty:
                continue
            if name is None:
                working -= 1
            else:
                yield file_in(self.place, name)

    def dismiss(self) -> None:
        """End all processes, at once if they still work."""
        for process in self.processes:
            if process.poll() is None and self.threads[self.processes.index(process)].is_alive():
                process.kill()
        for process, thread in zip(self.processes, self.threads, strict=True):
            thread.join()
            process.wait()
            if process.stdout:
                process.stdout.close()
