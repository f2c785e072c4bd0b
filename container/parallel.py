"""Work spread over threads: each takes the next task when it is done with one, and the first error stops all."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
TICK = 0.2  # seconds between looks at signals, which Windows does not deliver to a thread that waits without an end


class TaskStopped(Exception):
    """For a task to raise when it sees that it should stop: another one failed, or the run was interrupted."""


def parallel_for(
    worker: Callable[[threading.Event], Callable[[Task], object]], tasks: Iterable[Task], threads: int
) -> None:
    """Do every task, in about their order; nothing is kept of them. An interrupt stops the threads too; what they
    raise is raised here.

    worker: called once in each thread, so that it can keep buffers; gives the function of a task. The event is set when
            the others should stop; tasks that take long look at it, and raise TaskStopped.
    tasks:  taken one by one, as threads get to them.
    """
    todo, lock, stop = iter(tasks), threading.Lock(), threading.Event()

    def run() -> None:
        work = worker(stop)
        while not stop.is_set():
            with lock:
                task = next(todo, stop)
            if isinstance(task, threading.Event):
                return
            try:
                work(task)
            except TaskStopped:
                return
            except BaseException:
                stop.set()
                raise

    with ThreadPoolExecutor(threads, thread_name_prefix="ggufsmith") as pool:
        futures = [pool.submit(run) for _ in range(threads)]
        try:
            wait_for(futures)
        finally:
            stop.set()
    for future in futures:
        future.result()


def parallel_map(
    worker: Callable[[threading.Event], Callable[[Task], Result]], tasks: Iterable[Task], threads: int
) -> list[Result]:
    """The results for every task, in no order (see `parallel_for`)."""
    results: list[Result] = []

    def collecting(stop: threading.Event) -> Callable[[Task], None]:
        work = worker(stop)
        return lambda task: results.append(work(task))

    parallel_for(collecting, tasks, threads)
    return results


def wait_for(futures: Iterable[Future[Any]]) -> None:
    """Wait until all are done, or one has failed. An interrupt gets through on every system."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=TICK, return_when=FIRST_EXCEPTION)
        if any(future.exception() is not None for future in done):
            return
