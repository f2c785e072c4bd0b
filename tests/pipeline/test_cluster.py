"""Runs on a Dask cluster of real processes: the same bytes as here, whoever dies, or an error and nothing published."""

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_models
from numpy.typing import NDArray

import adapters
import checkpoints
import dask_processes
import hub_server
import quantized
import seeing
from dask_processes import Cluster
from ggufsmith.container.errors import Failure, Malformed, NoSpace, Unsupported
from ggufsmith.container.formats import BY_NAME, FORMATS, Format
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.values import string
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.report import Outcome
from ggufsmith.convert.batch.run import BatchOptions, Watcher, run_job
from ggufsmith.convert.hub.download import streamed
from ggufsmith.convert.hub.huggingface import HuggingFace
from ggufsmith.convert.hub.names import HubModel
from ggufsmith.pipeline import cluster, outputs
from ggufsmith.pipeline.stream import Opening, RowSource
from ggufsmith.quantize.encoder import GGML
from requesting import plan, request, run

CONVERT = [sys.executable, "-c", "from ggufsmith.cli.app import convert_main; convert_main()"]
SLOW = "iq3_s"  # 20 million weights a second
Told = Callable[[int], None]


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some ten million weights: half a second and more for a worker."""
    return checkpoints.write("llama", tmp_path_factory.mktemp("large") / "Model", intermediate_size=6144)


@pytest.fixture(scope="session")
def expected(large: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("expected") / "a.gguf"
    run(request(large, SLOW, outfile=output))
    return output.read_bytes()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for tests that leave it as it is."""
    with dask_processes.cluster(tmp_path_factory.mktemp("dask")) as found:
        yield found


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TASK", 1 << 18)


def convert(folder: Path, output: Path, where: Cluster | None = None, told: Told = lambda weights: None) -> bytes:
    """To IQ3_S, slowly."""
    run(request(folder, SLOW, outfile=output, scheduler=where and where.address), told)
    return output.read_bytes()


def after(weights: int, action: Callable[[], object]) -> Told:
    """Do something once so many weights are done."""
    done = 0

    def told(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if before < weights <= done:
            action()

    return told


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- the same bytes ----


@pytest.mark.parametrize("kind", ["llama", "qwen3-moe"])
def test_a_plain_conversion(shared: Cluster, tmp_path: Path, kind: str) -> None:
    folder, told = checkpoints.write(kind, tmp_path / "Model"), []
    for name, scheduler in (("a", None), ("b", shared.address)):
        planned = plan(request(folder, outfile=tmp_path / f"{name}.gguf", scheduler=scheduler))
        run(planned, told.append if scheduler else lambda weights: None)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert sum(told) == planned.made.weights


def test_several_recipes_in_shards(shared: Cluster, tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Model")
    for name, scheduler in (("a", None), ("b", shared.address)):
        options = {"scheduler": scheduler, "split_max_tensors": 7}
        run(request(folder, "q4_K_M", "q8_0", outdir=tmp_path / name, **options))
    names = left(tmp_path / "a")
    assert len(names) == 6
    assert names == left(tmp_path / "b")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_text_model_and_its_projector(shared: Cluster, tmp_path: Path) -> None:
    model = seeing.write(tmp_path / "Sees")
    for place, scheduler in (("here", None), ("there", shared.address)):
        run(request(model, "q8_0", outdir=tmp_path / place, mmproj=True, scheduler=scheduler))
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert here == there and len(here) == 2


def test_a_gguf_file_with_an_importance_matrix(
    shared: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths mean the client's folder
    small_models.write_model(Path("in.gguf"))
    imatrix = small_models.write_imatrix(Path("i.gguf"), small_models.importance(small_models.arrays()))
    for name, scheduler in (("a", None), ("b", shared.address), ("plain", None)):
        options = {"imatrix": None if name == "plain" else imatrix, "prune_layers": (0,), "scheduler": scheduler}
        run(request(Path("in.gguf"), "q4_0", outfile=Path(f"{name}.gguf"), **options))
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes() != Path("plain.gguf").read_bytes()


def test_a_stream_that_every_worker_reads_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a login of its own: the client's token stays with the client."""
    base = checkpoints.write("llama", tmp_path / "hub" / "org" / "Model", shards=2)
    adapters.write(base, tmp_path / "adapter")
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    told: list[int] = []
    with hub_server.serving(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "of-the-worker")
        client = HuggingFace("of-the-client", endpoint=hub.url, cache=tmp_path / "cache")
        with (
            dask_processes.cluster(tmp_path / "dask") as found,
            streamed(HubModel("hf", "org/Model"), client) as model,
        ):
            lora = ((tmp_path / "adapter", 0.5),)
            far = request(model.folder, outfile=tmp_path / "a.gguf", lora=lora, scheduler=found.address)
            planned = plan(far, model.open_files)
            assert b"of-the-client" not in pickle.dumps(planned.made.opening)
            before = len(hub.requests)
            run(planned, told.append)
            assert {request.token for request in hub.requests[before:]} == {"of-the-worker", None}, (
                "None: where it redirects"
            )
            assert sum(told) == planned.made.weights
            run(request(model.folder, outfile=tmp_path / "b.gguf", lora=lora), open_files=model.open_files)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_batch_job(shared: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write("llama", tmp_path / "Model")
    small_models.write_model(tmp_path / "in.gguf")
    digests = []
    for name, scheduler in (("here", ""), ("there", shared.address)):
        head = f"output = '{name}'\n[defaults]\nrecipes = ['q4_0', 'q8_0']\nscheduler = '{scheduler}'\n"
        job = tmp_path / f"{name}.toml"
        job.write_text(head + "[[model]]\nsource = 'Model'\n[[model]]\nsource = 'in.gguf'\n", encoding="utf-8")
        outcomes: list[Outcome] = []
        run_job(read_job(job, {}), BatchOptions(sync=False), Watcher(), outcomes)
        assert [outcome.status for outcome in outcomes] == ["done"] * 2, [outcome.error for outcome in outcomes]
        digests.append([[file.sha256 for made in outcome.made for file in made.files] for outcome in outcomes])
        monkeypatch.setattr(outputs, "stream", lambda *arguments, **options: pytest.fail("it was made here"))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("source", ["gptq", "lora"])
def test_weights_that_are_made_of_several_tensors(shared: Cluster, tmp_path: Path, source: str) -> None:
    folder, lora = tmp_path / "in", ((tmp_path / "adapter", 0.5),) if source == "lora" else ()
    if source == "gptq":
        config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}
        quantized.write_gptq("llama", folder, config=config, group=64, order=True)
    else:
        adapters.write(checkpoints.write("llama", folder), tmp_path / "adapter")
    for name, scheduler in (("a", None), ("b", shared.address)):
        run(request(folder, outfile=tmp_path / f"{name}.gguf", lora=lora, scheduler=scheduler))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_what_is_wrong_with_a_weight_is_said_as_here(shared: Cluster, tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Model")
    tensors = checkpoints.tensors_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 0x7FC0  # NaN
    checkpoints.save(tensors, folder / "model.safetensors", "bfloat16")
    messages = []
    for scheduler in (None, shared.address):
        with pytest.raises(Malformed, match="NaN") as error:
            run(request(folder, outfile=tmp_path / "a.gguf", scheduler=scheduler))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert left(tmp_path) == ["Model"]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_format_is_the_same_object_in_every_process(format: Format) -> None:
    """What is stored in the wanted format is copied, which shows by identity."""
    assert pickle.loads(pickle.dumps(format)) is format


# ---- who may die ----


def test_a_worker_killed_underway(large: Path, expected: bytes, tmp_path: Path) -> None:
    with dask_processes.cluster(tmp_path / "dask") as found:
        kill = after(2_000_000, lambda: found.workers[0].kill())
        assert convert(large, tmp_path / "a.gguf", found, kill) == expected
        assert found.workers[0].poll() is not None


def test_what_a_worker_reported_before_it_died_counts(tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Model")
    with dask_processes.cluster(tmp_path / "dask", workers=1) as found:
        calls: list[int] = []

        def told(weights: int) -> None:
            calls.append(weights)
            if len(calls) == 1:
                found.work_done()
            elif len(calls) == 2:
                found.workers[0].kill()
                time.sleep(1)  # for the client to hear of it

        run(request(folder, outfile=tmp_path / "a.gguf", scheduler=found.address), told)
    run(request(folder, outfile=tmp_path / "b.gguf"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process for a while")
def test_a_worker_that_stands_still_for_a_while(shared: Cluster, large: Path, expected: bytes, tmp_path: Path) -> None:
    def pause() -> None:
        shared.workers[0].send_signal(signal.SIGSTOP)
        subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({pid}, {signal.SIGCONT})"])

    pid = shared.workers[0].pid
    assert convert(large, tmp_path / "a.gguf", shared, after(2_000_000, pause)) == expected


def test_a_worker_that_comes_later(large: Path, expected: bytes, tmp_path: Path) -> None:
    with dask_processes.cluster(tmp_path / "dask", workers=1) as found:

        def relieve() -> None:
            found.add()
            found.workers[0].kill()

        assert convert(large, tmp_path / "a.gguf", found, after(2_000_000, relieve)) == expected


def test_when_all_workers_die_nothing_is_published(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    (tmp_path / "a.gguf").write_bytes(b"the old one")
    with (
        dask_processes.cluster(tmp_path / "dask", workers=1) as found,
        pytest.raises(Failure, match="no worker was connected"),
    ):
        convert(large, tmp_path / "a.gguf", found, after(1_000_000, found.workers[0].kill))
    assert (tmp_path / "a.gguf").read_bytes() == b"the old one"
    assert left(tmp_path) == ["a.gguf", "dask"]


def test_a_lost_scheduler_and_going_on_from_there(
    shared: Cluster, large: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 8)
    options = {"outfile": tmp_path / "a.gguf", "resume": True}
    with dask_processes.cluster(tmp_path / "dask") as found:
        found.wait()
        started = plan(request(large, SLOW, scheduler=found.address, **options))
        with pytest.raises(Failure, match="scheduler is lost"):
            run(started, after(3_000_000, found.scheduler.kill))
    assert not (tmp_path / "a.gguf").exists()
    done = run(request(large, SLOW, scheduler=shared.address, **options))
    if os.name != "nt":
        assert "resumed" in " ".join(done.notes)
    assert (tmp_path / "a.gguf").read_bytes() == expected
    assert left(tmp_path) == ["a.gguf", "dask"]


CLIENT = """
import os, signal, sys
from pathlib import Path
from ggufsmith.container.errors import Failure
from ggufsmith.convert.open import open_pass
from ggufsmith.pipeline import cluster
from ggufsmith.pipeline.request import MakeOptions, Request, WriteOptions
folder, output, scheduler, number, cluster.TASK, recipe = *sys.argv[1:5], int(sys.argv[5]), sys.argv[6]
try:
    write = WriteOptions(outfile=Path(output), sync=False, scheduler=scheduler)
    with open_pass(Request(Path(folder), make=MakeOptions(recipes=(recipe,)), write=write)) as made:
        made.run(write, advance=lambda weights: weights and os.kill(int(number), signal.SIGKILL))
except Failure as error:
    print(error, file=sys.stderr)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("task", [1 << 18, 1 << 30], ids=["underway", "at the end"])
def test_a_lost_scheduler_is_one_message(large: Path, tmp_path: Path, task: int) -> None:
    """What Dask logs about it is not for users. When all is done the scheduler is no longer needed."""
    with dask_processes.cluster(tmp_path / "dask") as found:
        arguments = [large, tmp_path / "a.gguf", found.address, found.scheduler.pid, task, SLOW]
        done = subprocess.run([sys.executable, "-c", CLIENT, *map(str, arguments)], capture_output=True, text=True)
    assert ("scheduler is lost" in done.stderr) is (task == 1 << 18) is not (tmp_path / "a.gguf").exists()
    assert "Traceback" not in done.stderr and "distributed" not in done.stderr, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_what_some_workers_cannot_write_is_done_by_another(large: Path, expected: bytes, tmp_path: Path) -> None:
    with dask_processes.cluster(tmp_path / "dask", workers=0) as found:
        found.add(file_limit=1_000_000)
        found.add(read_only=True)
        found.add()
        found.wait()
        done = run(request(large, SLOW, outfile=tmp_path / "a.gguf", scheduler=found.address))
    assert (tmp_path / "a.gguf").read_bytes() == expected
    assert left(tmp_path) == ["a.gguf", "dask"]
    said = sorted(note for note in done.notes if "worker tcp://" in note)
    assert len(said) == 2 and all(note.endswith("the other workers did its share") for note in said), said
    assert "Read-only file system" in said[0] and "File too large" in said[1]


def test_another_worker_that_dies_too(
    large: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was to do for the one that cannot is not lost with it."""
    monkeypatch.setattr(cluster, "PATIENCE", 20.0)
    with dask_processes.cluster(tmp_path / "dask", workers=0) as found:
        found.add(read_only=True)
        able = found.add()
        found.wait()

        def relieve() -> None:
            found.add()
            able.kill()

        assert convert(large, tmp_path / "a.gguf", found, after(2_000_000, relieve)) == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_when_no_worker_can_write_nothing_is_published(large: Path, tmp_path: Path) -> None:
    with dask_processes.cluster(tmp_path / "dask", workers=0) as found:
        found.add(file_limit=1_000_000)
        with pytest.raises(NoSpace, match=r"worker tcp://.*File too large"):
            convert(large, tmp_path / "a.gguf", found)
        found.add(read_only=True)
        found.wait()
        with pytest.raises(Failure, match="worker tcp://") as error:
            convert(large, tmp_path / "a.gguf", found)
    assert "File too large" in str(error.value) and "Read-only file system" in str(error.value)
    assert left(tmp_path) == ["dask"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_an_interrupted_or_killed_client(shared: Cluster, large: Path, expected: bytes, tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        command = [*CONVERT, str(large), "-r", "iq3_s", "-o", str(tmp_path / "a.gguf"), "--scheduler", shared.address]
        client = subprocess.Popen([*command, "--quiet"], stderr=subprocess.PIPE)
        while not any(path.stat().st_size > 1_000_000 for path in tmp_path.glob(".a.gguf.*.partial")):
            assert client.poll() is None, client.communicate()
            time.sleep(0.01)
        client.send_signal(number)
        assert client.wait(20) == code, client.communicate()
        assert not (tmp_path / "a.gguf").exists()
    assert convert(large, tmp_path / "a.gguf", shared) == expected
    assert left(tmp_path) == ["a.gguf"]


# ---- what is missing ----


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "http://["])
def test_no_scheduler(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    with pytest.raises(Failure, match="no Dask scheduler answered") as error:
        run(request(large, outfile=tmp_path / "a.gguf", scheduler=address))
    assert "dask scheduler" in str(error.value)
    assert left(tmp_path) == []
    gc.collect()  # a client that never connected can lock up distributed if it is collected while the next one starts


def test_no_workers(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    with dask_processes.cluster(tmp_path / "dask", workers=0) as found, pytest.raises(Failure, match="no workers"):
        run(request(large, outfile=tmp_path / "a.gguf", scheduler=found.address))


def test_a_worker_without_ggufsmith(large: Path, tmp_path: Path) -> None:
    with dask_processes.cluster(tmp_path / "dask", workers=0) as found:
        found.add(without="ggufsmith.quantize")
        with pytest.raises(Failure, match=r"cannot take part: .*ggufsmith") as error:
            run(request(large, outfile=tmp_path / "a.gguf", scheduler=found.address))
    assert "Install the client's version of ggufsmith" in str(error.value)


def test_dask_is_not_installed(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ggufsmith.pipeline.cluster")
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(Unsupported, match=r"pip install 'ggufsmith\[cluster\]'"):
        run(request(large, outfile=tmp_path / "a.gguf", scheduler="tcp://127.0.0.1:9"))


@dataclass
class Never:
    """An opening that no worker should come to."""

    inputs: list[Path]

    def __call__(self) -> AbstractContextManager[list[RowSource]]:
        pytest.fail("the tensors were opened")


def on_worker(opening: Opening, places: list[cluster.WorkerOutput]) -> cluster.WorkerRun:
    found = cluster.WorkerRun(opening, places)
    found.setup(SimpleNamespace(address="tcp://worker:1"))
    return found


@pytest.mark.parametrize("change", ["file", "version"])
def test_a_worker_with_other_files_or_another_version(tmp_path: Path, change: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(80))
    here = on_worker(Never([file]), [])
    if change == "file":
        file.write_bytes(b"another")
    else:
        here.version = "0.0.0"
    with pytest.raises(Failure, match="differs from the client" if change == "file" else r"0\.0\.0") as error:
        here.work([])
    assert "tcp://worker:1" in str(error.value)


def test_no_file_is_closed_under_a_cancelled_task(tmp_path: Path) -> None:
    """Another file could get its number, and the bytes."""
    begun, go_on, closed = threading.Event(), threading.Event(), []

    class Slow(SimpleNamespace):
        def rows(self, start: int, stop: int, scratch: object) -> NDArray[np.float32]:
            begun.set()
            assert go_on.wait(20)
            return np.ones((4, 2), np.float32)

    class SlowOpening:
        inputs: Sequence[Path] = ()

        @contextmanager
        def __call__(self) -> Iterator[list[Slow]]:
            yield [Slow(name="a", shape=(4, 2), held=BY_NAME["F32"], granule=1, origin="a")]
            closed.append(True)

    layout = lay_out({"general.architecture": string("x")}, [TensorSpec("a", (4, 2), BY_NAME["F32"])])
    (tmp_path / "out").write_bytes(bytes(layout.size))
    here = on_worker(SlowOpening(), [cluster.WorkerOutput(layout, (tmp_path / "out",), (0,), GGML, None)])
    results: list[cluster.Result] = []
    thread = threading.Thread(target=lambda: results.append(here.work([(0, 0, 4)])))
    thread.start()
    assert begun.wait(20)
    here.teardown(None)
    assert not closed
    go_on.set()
    thread.join()
    assert closed
    assert results[0][1][0].size == 32
    assert (tmp_path / "out").read_bytes()[layout.offsets[0] :][:32] == np.ones(8, np.float32).tobytes()
    with pytest.raises(Failure, match="has ended"):
        here.work([])
