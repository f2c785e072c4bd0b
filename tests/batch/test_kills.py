"""A job that is killed again and again ends with the files of one that was left in peace."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import jobs
import pytest

HEAD = 'output = "out"\n[defaults]\nrecipes = ["q4_K_M", "q5_K_M"]\ncard = "README.md"\n'
KILLS = 20
LONGEST = 0.25  # seconds from the beginning of the work to the kill


def write_job(home: Path, folder: Path) -> Path:
    """Twenty-four conversions of twelve models."""
    folder.mkdir()
    entries = [f"source = '{home / 'ABC'[k % 3]}'\nname = 'm{k}'" for k in range(12)]
    entries[0] += "\nshard_size = '200K'"
    entries[1] += "\nouttypes = ['bf16']"
    return jobs.write(folder / "jobs.toml", HEAD, entries)


def begun(path: Path) -> subprocess.Popen[str]:
    """The job in a process of its own, as soon as it works on a model."""
    process = subprocess.Popen(
        [*jobs.COMMAND, str(path), "--no-sync"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stderr is not None
    process.stderr.readline()  # "m0: making …"
    return process


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_twenty_kills(tmp_path: Path) -> None:
    home, chance = jobs.models(tmp_path), random.Random(7)
    assert jobs.command(write_job(home, tmp_path / "peace")).returncode == 0
    expected = jobs.hashes(tmp_path / "peace" / "out")
    assert sum(name.endswith(".gguf") for name in expected) >= 25
    rounds = kills = 0
    path = None
    while kills < KILLS or path is not None:
        if path is None:
            rounds += 1
            path = write_job(home, tmp_path / f"round{rounds}")
        if kills < KILLS:
            process = begun(path)
            time.sleep(chance.uniform(0, LONGEST))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            process.stderr.close()  # type: ignore[union-attr]
            code = process.returncode
        else:
            code = jobs.command(path, "--no-sync").returncode
        found = jobs.hashes(path.parent / "out") if (path.parent / "out").exists() else {}
        for name, digest in found.items():
            if name.endswith(".gguf"):
                assert expected[name] == digest, "a file that has its name is complete"
        if code == 0:
            assert found == expected
            path = None
        else:
            assert code == -signal.SIGKILL
    assert rounds < KILLS / 2, "most kills hit a job that was at work"
