"""`ggufsmith batch` as a user and a CI runner meet it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import jobs
import pytest

HEAD = 'output = "out"\n[defaults]\nrecipes = ["q4_K_M", "q8_0"]\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = jobs.models(tmp_path_factory.mktemp("models"))
    (home / "bad").mkdir()
    (home / "bad" / "config.json").write_text("{", encoding="utf-8")
    return home


def job(home: Path, tmp_path: Path, *names: str, head: str = HEAD) -> Path:
    return jobs.write(tmp_path / "jobs.toml", head, [f"source = '{home / name}'" for name in names])


def test_a_night(home: Path, tmp_path: Path) -> None:
    path = job(home, tmp_path, "A", "B")
    dry = jobs.cli(path, "--dry-run", "--json")
    priced = json.loads(dry.stdout)
    assert dry.exit_code == 0 and not (tmp_path / "out").exists()
    done = jobs.command(path, "--report", tmp_path / "r.json", "--junit", tmp_path / "r.xml")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 models: 4 files made, 0 already existed"
    files = list((tmp_path / "out").rglob("*.gguf"))
    assert {file.name for file in files} == {f"{model}-{kind}.gguf" for model in "AB" for kind in ("Q4_K_M", "Q8_0")}
    assert priced["bytes"] == sum(file.stat().st_size for file in files), "a dry run knows the exact bytes"
    assert priced["estimated_seconds"] > 0
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [model["status"] for model in report["models"]] == ["done", "done"]
    for model in report["models"]:
        assert model["weights_per_second"] > 0
        for output in model["outputs"]:
            (file,) = output["files"]
            written = tmp_path / "out" / model["name"] / file["name"]
            assert jobs.hashes(written.parent)[written.name] == file["sha256"]
            assert file["bytes"] == written.stat().st_size == output["bytes"]
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert suite.get("tests") == "2" and suite.get("failures") == "0"
    again = jobs.cli(path, "--json")
    assert [model["status"] for model in json.loads(again.stdout)["models"]] == ["finished", "finished"]
    shown = jobs.cli(path, "--dry-run").stdout
    assert "0 outputs of 0 models; 4 already exist" in shown


def test_planning_counts_where_the_rest_takes_no_time(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    price = import_module("ggufsmith.convert.batch.price")
    endless = price.Speed(defaultdict(lambda: math.inf), math.inf, math.inf, math.inf)
    monkeypatch.setattr(price, "calibrate", lambda works, folder: endless)
    priced = json.loads(jobs.cli(job(home, tmp_path, "A", "B"), "--dry-run", "--json").stdout)
    each = [model["estimated_seconds"] for model in priced["models"]]
    assert all(seconds > 0.001 for seconds in each)
    assert priced["estimated_seconds"] == pytest.approx(sum(each))


def test_the_exit_code_says_how_many_failed_and_the_last_line_why(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job(home, tmp_path, "bad", "A")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.chdir(tmp_path)
    done = jobs.cli(path, "--report", tmp_path / "r.json")
    assert done.exit_code == 101
    last = done.stderr.splitlines()[-1]
    assert last.startswith("2 models: 2 files made, 0 already existed, 1 failed (bad: ")
    (annotation,) = [line for line in done.stdout.splitlines() if line.startswith("::error ")]
    assert annotation.startswith("::error file=jobs.toml,line=4,title=bad::")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["exit_code"] == 101
    assert jobs.cli(path, "--dry-run").exit_code == 101


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--shard", "0/2"], 2, "of the form I/N"),
        (["--shard", "3/2"], 2, "of the form I/N"),
        (["--shard", "x"], 2, "of the form I/N"),
        (["--max-memory", "lots"], 2, "is not a size"),
        (["--report", "."], 2, "is a folder"),
        (["--junit", "none/r.xml"], 2, "the report's folder does not exist: none"),
    ],
)
def test_usage(home: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    done = jobs.cli(job(home, tmp_path, "A"), *arguments)
    assert done.exit_code == code and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_job_file(home: Path, tmp_path: Path) -> None:
    path = job(home, tmp_path, "A", "nowhere", head=HEAD + "colour = 1\n")
    done = jobs.cli(path)
    assert done.exit_code == 4
    assert f"{path}:4: unknown key 'colour'" in done.stderr and f"{path}:8: there is no such folder" in done.stderr
    assert not (tmp_path / "out").exists()
    assert jobs.cli(tmp_path / "none.toml").exit_code == 2


def test_a_wrong_job_file_is_annotated(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.chdir(tmp_path)
    job(home, tmp_path, "A", "nowhere", head=HEAD + "colour = 1\n")
    lines = jobs.cli(Path("jobs.toml")).stdout.splitlines()
    assert [line.partition("::")[2].partition("::")[0] for line in lines] == [
        "error file=jobs.toml,line=4",
        "error file=jobs.toml,line=8",
    ]


def test_runners_share_a_job(home: Path, tmp_path: Path) -> None:
    path = job(home, tmp_path, "A", "B", "C")
    for k in (1, 2):
        assert jobs.cli(path, "--shard", f"{k}/2", "--no-sync").exit_code == 0
        assert {each.name for each in (tmp_path / "out").iterdir()} == ({"A", "C"} if k == 1 else {"A", "B", "C"})
    assert jobs.cli(path).stdout.endswith("0 files made, 6 already existed\n")


# A batch whose work never ends by itself: in `stream`, where it can stop between two chunks, or in one that it cannot.
SLOW = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from ggufsmith.convert.batch import passes, run
from ggufsmith.cli.app import main

def stream(*arguments, advance, **options):
    print("working", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)
        advance(1)

def stuck(*arguments, **options):
    print("working", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(time.sleep, [1000, 1000]))

def hashing(path, told):
    print("working", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)
        told(0)

run.PATIENCE = 1.0
if sys.argv[1] == "hashing":
    run.file_sha256 = hashing
    sys.argv[1] = "none"
import ggufsmith.pipeline.outputs as outputs
outputs.stream = {"stream": stream, "stuck": stuck, "none": outputs.stream}[sys.argv.pop(1)]
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [("stream", signal.SIGINT, 130), ("stream", signal.SIGTERM, 143), ("stuck", signal.SIGTERM, 143)],
)
def test_signals_end_it_soon(home: Path, tmp_path: Path, kind: str, number: int, code: int) -> None:
    path = job(home, tmp_path, "A", "B")
    command = [sys.executable, "-c", SLOW, kind, "batch", str(path), "--report", str(tmp_path / "r.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stderr is not None
    while "working" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    begun = time.monotonic()
    _, error = process.communicate(timeout=10)
    assert process.returncode == code
    assert time.monotonic() - begun < 10
    kept = bool(list((tmp_path / "out").rglob("*.partial")))
    assert ("run the same job again to continue" if kept else "no partial files were left") in error
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert {model["status"] for model in report["models"]} == {"interrupted"}
    assert not list((tmp_path / "out").rglob("*.gguf"))
    assert {outcome.status for outcome in jobs.run(path)} == {"done"}
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_between_the_files_and_what_belongs_beside_them(home: Path, tmp_path: Path) -> None:
    path = job(home, tmp_path, "A", head=HEAD.replace('"q4_K_M", ', "") + 'card = "README.md"\n')
    command = [sys.executable, "-c", SLOW, "hashing", "batch", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stderr is not None
    while "working" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the outputs of A are complete and verified" in error.replace("\n", " ")
    assert "no partial files were left" not in error
    there = {file.name for file in (tmp_path / "out" / "A").iterdir()}
    assert there == {"A-Q8_0.gguf", ".A.batch.json"}
    assert "1 files made" not in jobs.cli(path).stdout, "they are not made again"
    assert (tmp_path / "out" / "A" / "README.md").is_file()
