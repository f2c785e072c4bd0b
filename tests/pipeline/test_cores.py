"""How many threads a run takes: what the affinity and the quotas of containers leave it, on every system."""

import os
from pathlib import Path

import pytest

from ggufsmith.pipeline.parallel import available_cores

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 23 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "34 23 0:30 / /sys/fs/cgroup/memory rw shared:13 - cgroup cgroup rw,memory\n"
DISK = "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)


def system(folder: Path, cgroup: str, mounts: str, **files: str) -> Path:
    """A root with the files of Linux. files: by their path under /sys/fs/cgroup, slashes as double underscores."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(cgroup, encoding="utf-8")
    (folder / "proc" / "self" / "mountinfo").write_text(DISK + mounts, encoding="utf-8")
    for name, content in files.items():
        path = folder / "sys" / "fs" / "cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def v2(folder: Path, path: str = "/", root: str = "/", **files: str) -> Path:
    return system(folder, f"0::{path}\n", V2.format(root=root), **files)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("150000 100000", 2),  # one and a half: the second thread is not idle half of the time
        ("20000 100000", 1),
        ("3200000 100000", 16),
        ("50000 25000", 2),
        ("max", 16),
        ("200000", 2),
        ("", 16),
        ("0 100000", 16),
        ("-1 100000", 16),
        ("200000 0", 16),
        ("x y", 16),
        ("9" * 5000 + " 100000", 16),
        ("² 1", 16),
        ("200000 100000\n", 2),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, quota: str, cores: int) -> None:
    assert available_cores(v2(tmp_path, **{"cpu.max": quota})) == cores


def test_the_smallest_quota_above_counts(tmp_path: Path) -> None:
    files = {"a__b__cpu.max": "max 100000", "a__cpu.max": "300000 100000", "cpu.max": "800000 100000"}
    assert available_cores(v2(tmp_path, "/a/b", **files)) == 3


def test_a_quota_of_its_own(tmp_path: Path) -> None:
    files = {"a__b__cpu.max": "100000 100000", "a__cpu.max": "300000 100000"}
    assert available_cores(v2(tmp_path, "/a/b", **files)) == 1


def test_of_another_group_none(tmp_path: Path) -> None:
    assert available_cores(v2(tmp_path, "/a", **{"b__cpu.max": "100000 100000"})) == 16


@pytest.mark.parametrize("path", ["/docker/abc", "/"])
def test_a_mount_of_a_part(tmp_path: Path, path: str) -> None:
    """Without a namespace the group is named as on the host, and the mount begins at it."""
    assert available_cores(v2(tmp_path, path, "/docker/abc", **{"cpu.max": "400000 100000"})) == 4


def test_a_group_outside_the_mount(tmp_path: Path) -> None:
    assert available_cores(v2(tmp_path, "/../../x", **{"cpu.max": "400000 100000"})) == 4


@pytest.mark.parametrize(("path", "root"), [("/a/b", "/"), ("/docker/abc/a/b", "/docker/abc"), ("/elsewhere", "/")])
def test_version_1(tmp_path: Path, path: str, root: str) -> None:
    cgroup = f"5:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/x\n"
    files = {
        "cpu,cpuacct__cpu.cfs_quota_us": "500000\n",
        "cpu,cpuacct__cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct__a__cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct__a__cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct__a__b__cpu.cfs_quota_us": "250000\n",
        "cpu,cpuacct__a__b__cpu.cfs_period_us": "100000\n",
        "memory__cpu.cfs_quota_us": "1\n",
    }
    expected = 5 if path == "/elsewhere" else 3
    assert available_cores(system(tmp_path, cgroup, V1.format(root=root) + MEMORY, **files)) == expected


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    """As older systemd has it: the quota is in version 1."""
    unified = "31 23 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n"
    files = {"cpu,cpuacct__cpu.cfs_quota_us": "600000", "cpu,cpuacct__cpu.cfs_period_us": "100000"}
    found = system(tmp_path, "4:cpu,cpuacct:/\n0::/\n", V1.format(root="/") + unified, **files)
    assert available_cores(found) == 6


@pytest.mark.parametrize("cgroup", ["", "nonsense", "0:cpu", "::::", "\0", "0::relative", "0::/" + "x" * 5000])
def test_files_that_say_nothing(tmp_path: Path, cgroup: str) -> None:
    assert available_cores(system(tmp_path, cgroup, "nonsense\n- \n 1 2 3 - cgroup2\n")) == 16


def test_no_such_files(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 16


@pytest.mark.parametrize("count", [None, 3])
def test_a_system_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert available_cores(tmp_path) == (count or 1)


def test_an_affinity_that_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: int) -> set[int]:
        raise PermissionError("by a sandbox")

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cores(tmp_path) == 5


def test_here() -> None:
    assert available_cores() >= 1
