"""How many threads a run takes.

Containers are given a share of the machine's time, not some of its cores: the system shows all of them, and a thread
for each only waits. Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), and scheduler/sched-bwc.rst
(cpu.cfs_quota_us and cpu.cfs_period_us of version 1); proc(5), /proc/PID/cgroup and /proc/PID/mountinfo.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

PERIOD = 100_000  # microseconds, where none is said
MAX_FILE = 2**20  # bytes of a file of /proc
LEVELS = 64  # of groups, one in the other


def available_cores(root: Path = Path("/")) -> int:
    """The cores that this process may keep busy: those it may run on, but no more than the quotas of its control groups
    allow, rounded up. root: where /proc and /sys are.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        with suppress(OSError):
            cores = len(os.sched_getaffinity(0))
    return max(min([cores, *map(math.ceil, _quotas(root))]), 1)


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of this process's groups and of all above them."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        second = number == "0" and not controllers
        if not group.startswith("/") or not (second or "cpu" in controllers.split(",")):
            continue
        for kind, options, begin, point in mounts:
            if kind == "cgroup2" if second else kind == "cgroup" and "cpu" in options:
                top = root / point.lstrip("/")
                for folder in _folders(top, group, begin):
                    yield from _version_2(folder) if second else _version_1(folder)


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """(file system, its options, which part of it is mounted, where)."""
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        place, system = left.split(" "), right.split(" ")
        if len(place) > 4 and len(system) > 2:
            yield system[0], system[2].split(","), place[3], place[4]


def _folders(top: Path, group: str, begin: str) -> Iterator[Path]:
    """The folder of a group below its mount, and those above it; of a group that is not below it, the mount's own."""
    path = PurePosixPath(group)
    inside = path.relative_to(begin) if path.is_relative_to(begin) and ".." not in path.parts else PurePosixPath()
    for level in (inside, *inside.parents)[:LEVELS]:
        yield top / level


def _version_2(folder: Path) -> Iterator[float]:
    for line in _lines(folder / "cpu.max"):
        quota, _, period = line.partition(" ")
        yield from _share(quota, period)


def _version_1(folder: Path) -> Iterator[float]:
    period = next(_lines(folder / "cpu.cfs_period_us"), "")
    for quota in _lines(folder / "cpu.cfs_quota_us"):
        yield from _share(quota, period)


def _share(quota: str, period: str) -> Iterator[float]:
    """Microseconds of each period, if it is limited: "max" and -1 mean that it is not."""
    numbers = [int(text) if re.fullmatch("[0-9]{1,18}", text) else None for text in (quota, period or str(PERIOD))]
    if numbers[0] and numbers[1]:
        yield numbers[0] / numbers[1]


def _lines(path: Path) -> Iterator[str]:
    with suppress(OSError, ValueError), path.open(encoding="utf-8", errors="replace") as file:
        yield from file.read(MAX_FILE).splitlines()
