"""Models on a hub in a job: planned by their headers, downloaded or streamed when they are made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

import adapters
import checkpoints
import hub_server
from ggufsmith.container.reader import open_gguf

MODEL = hub_server.MODEL
CONVERT = [sys.executable, "-c", "from ggufsmith.cli.app import convert_main; convert_main()"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    checkpoints.write("qwen2", root / MODEL, shards=2, **jobs.SMALL)
    return root


def environment(hub: hub_server.Hub, home: Path) -> dict[str, str]:
    """Nothing of the machine's own login, cache or proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
    }
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}


def test_models_on_a_hub(root: Path, tmp_path: Path) -> None:
    head = "output = 'out'\n[defaults]\nrecipes = 'q8_0'\nmodel_name = 'x'\n"
    streamed, stored = f"source = 'hf://{MODEL}'\nstream = true", f"source = 'hf://{MODEL}'\nname = 'stored'"
    local = f"source = '{root / MODEL}'\nname = 'local'"
    path = jobs.write(tmp_path / "jobs.toml", head, [streamed, local])
    with hub_server.serving(root) as hub:
        around = environment(hub, tmp_path / "home")

        def in_cache() -> int:
            return len([file for file in (tmp_path / "home").rglob("*.safetensors") if file.stat().st_size > 10_000])

        done = jobs.command(path, "--no-sync", env=around)
        assert done.returncode == 0, done.stderr
        jobs.write(path, head, [streamed, local, stored])
        priced = json.loads(jobs.command(path, "--dry-run", "--json", env=around).stdout)
        assert in_cache() == 0, "a plan and a stream store no weights"
        report = json.loads(jobs.command(path, "--json", "--no-sync", env=around).stdout)
        assert [model["status"] for model in report["models"]] == ["finished", "finished", "done"]
        assert in_cache() == 2
        a, b = (tmp_path / "out" / name / f"{name}-Q8_0.gguf" for name in ("Tiny-1B", "stored"))
        assert a.read_bytes() == b.read_bytes() and len(a.read_bytes()) == priced["bytes"]
        hub.faults.append(hub_server.Fault(".", times=None, methods="GET HEAD", status=404))
        gone = jobs.command(path, env=around)
        assert gone.returncode == 102 and "Tiny-1B: failed" in gone.stdout and "local: finished" in gone.stdout


def test_an_adapter_on_a_hub(root: Path, tmp_path: Path) -> None:
    adapters.write(root / MODEL, root / "org" / "Adapter", rank=64)
    head = f"output = 'out'\n[defaults]\nouttypes = 'f32'\nmodel_name = 'x'\nbase = '{root / MODEL}'\n"
    entries = ["source = 'hf://org/Adapter'\nstream = true", f"source = '{root}/org/Adapter'\nname = 'local'"]
    path = jobs.write(tmp_path / "jobs.toml", head, entries)
    with hub_server.serving(root) as hub:
        around = environment(hub, tmp_path / "home")
        done = jobs.command(path, "--no-sync", env=around)
        assert done.returncode == 0, done.stdout + done.stderr
        again = json.loads(jobs.command(path, "--json", env=around).stdout)
        assert [model["status"] for model in again["models"]] == ["finished", "finished"]
        (tmp_path / "alone").mkdir()
        options = ["hf://org/Adapter", "--base", root / MODEL, "--model-name", "x", "--outdir", tmp_path / "alone"]
        subprocess.run([*CONVERT, *map(str, options), "--stream", "--no-sync", "--quiet"], env=around, check=True)
    (alone,) = (tmp_path / "alone").iterdir()
    assert alone.read_bytes() == (tmp_path / "out" / "Adapter" / alone.name).read_bytes()
    with (
        open_gguf(tmp_path / "out" / "Adapter" / "Adapter-F32-LoRA.gguf") as a,
        open_gguf(tmp_path / "out" / "local" / "local-F32-LoRA.gguf") as b,
    ):
        for name, info in a.tensors.items():
            ours, theirs = bytearray(info.nbytes), bytearray(info.nbytes)
            a.read_into(info, 0, ours)
            b.read_into(b.tensors[name], 0, theirs)
            assert ours == theirs, name


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("source = 'hf://nonsense'", "not the name of a model"),
        ("source = 'ftp://org/name'", "not a known hub"),
        ("source = 'org/name'", "write hf://org/name"),
        ("source = '.'\nrevision = 'main'", "revision applies only to models on a hub"),
    ],
)
def test_names_that_are_none(tmp_path: Path, entry: str, message: str) -> None:
    path = jobs.write(tmp_path / "jobs.toml", "output = 'out'\n[defaults]\nrecipes = 'q8_0'\n", [entry])
    done = jobs.cli(path)
    assert done.exit_code == 4 and message in done.stderr
