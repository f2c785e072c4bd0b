"""A job that is killed again and again ends with the files of one that was left in peace."""

import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

import jobs

from ggufsmith.convert.batch.run import Draft, Watcher

HEAD = 'output = "out"\n[defaults]\nrecipes = ["q4_K_M", "q5_K_M"]\ncard = "README.md"\n'
KILLS = 20
LONGEST = 0.25  # seconds from the beginning of the work to the kill


def write_job(home: Path, folder: Path) -> Path:
    """Twenty-five conversions of twelve models."""
    folder.mkdir()
    entries = [f"source = '{home / 'ABC'[k % 3]}'\nname = 'm{k}'" for k in range(12)]
    entries[0] += "\nshard_size = '200K'"
    entries[1] += "\nouttypes = ['bf16']"
    return jobs.write(folder / "jobs.toml", HEAD, entries)


class Tell(Watcher):
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def begun(self, draft: Draft) -> None:
        self.pipe.send(draft.model.name)


def work(path: Path, pipe: Connection) -> None:
    """The job, in a process of its own."""
    jobs.run(path, Tell(pipe))


def test_twenty_kills(tmp_path: Path) -> None:
    # A server that has the imports done forks the processes: most of their time is work.
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":
        context.set_forkserver_preload(["ggufsmith.convert.batch.run"])
    home, chance = jobs.models(tmp_path), random.Random(7)
    jobs.run(write_job(home, tmp_path / "peace"))
    expected = jobs.hashes(tmp_path / "peace" / "out")
    assert sum(name.endswith(".gguf") for name in expected) >= 25
    rounds = kills = 0
    while kills < KILLS:
        rounds += 1
        path, done = write_job(home, tmp_path / f"round{rounds}"), False
        while not done:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(path, there))
            process.start()
            there.close()
            if kills < KILLS:
                try:
                    here.recv()
                    time.sleep(chance.uniform(0, LONGEST))
                    process.kill()
                except EOFError:  # there was nothing left to begin
                    pass
            process.join()
            done = process.exitcode == 0
            kills += not done
            found = jobs.hashes(path.parent / "out")
            for name, digest in found.items():
                assert not name.endswith(".gguf") or expected[name] == digest, "what has its name is complete"
        assert found == expected
    assert rounds < KILLS / 2, "most kills hit a job at work"
