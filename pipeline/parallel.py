"""Work spread over threads: each takes the next task when it is done with one, and the first error stops all."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def parallel_map(
    worker: Callable[[threading.Event], Callable[[Task], Result]], tasks: Iterable[Task], threads: int
) -> list[Result]:
    """The results for every task, in no order. An interrupt stops the threads too; what they raise is raised here.

    worker: called once in each thread, so that it can keep buffers; gives the function of a task. The event is set when
            the others should stop, for tasks that take long.
    """
    todo, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    results: list[Result] = []

    def run() -> None:
        work = worker(stop)
        while not stop.is_set():
            with lock:
                task = next(todo, None)
            if task is None:
                return
            results.append(work(task))

    with ThreadPoolExecutor(threads, thread_name_prefix="ggufsmith") as pool:
        futures = [pool.submit(run) for _ in range(threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
    return results


def available_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
