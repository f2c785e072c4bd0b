"""`ggufsmith batch` with the key `push`, against the hub on the loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run
from huggingface_hub import constants

import checkpoints
import hub_server
from ggufsmith.cli.batch import batch
from hub_server import Fault

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    (tmp_path / "hub").mkdir()
    with hub_server.serving(tmp_path / "hub") as hub:
        hub.token = TOKEN
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        places = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + places)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def job(tmp_path: Path) -> Path:
    head = "output = 'out'\n[defaults]\nrecipes = ['q8_0', 'q4_0']\npush = 'me/{model}-GGUF'\nprivate = true\n"
    text = head + "card = 'README.md'\nrepo = 'me/{model}-GGUF'\n"
    for name in ("A", "B"):
        checkpoints.write("qwen2", tmp_path / name, num_hidden_layers=1)
        text += f"[[model]]\nsource = '{name}'\n"
    (tmp_path / "jobs.toml").write_text(text, encoding="utf-8")
    return tmp_path / "jobs.toml"


def statuses(job: Path) -> tuple[int, dict[str, str]]:
    done = run(batch, job, "--json", "--no-sync")
    return done.exit_code, {model["name"]: model["status"] for model in json.loads(done.stdout)["models"]}


def test_models_are_published_and_only_once(hub: hub_server.Hub, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert statuses(job) == (0, {"A": "done", "B": "done"})
    for name in "AB":
        found = sorted(place for place, _ in hub.files(f"me/{name}-GGUF"))
        assert found == [f"{name}-Q4_0.gguf", f"{name}-Q8_0.gguf", "README.md"]
        assert hub.uploads.private >= {f"me/{name}-GGUF"}
    commits, sent = len(hub.uploads.commits), hub.uploads.received
    assert commits == 2
    assert statuses(job) == (0, {"A": "finished", "B": "finished"})
    assert (len(hub.uploads.commits), hub.uploads.received) == (commits, sent)


def test_a_model_that_was_not_published_has_failed_and_is_tried_again(
    hub: hub_server.Hub, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults.append(Fault("/me/A-GGUF/commit/", methods="POST", status=403, times=None))
    assert statuses(job) == (101, {"A": "failed", "B": "done"})
    assert (job.parent / "out" / "A" / "A-Q8_0.gguf").is_file() and not list(hub.files("me/A-GGUF"))
    hub.faults.clear()
    assert statuses(job) == (0, {"A": "finished", "B": "finished"})
    assert len(list(hub.files("me/A-GGUF"))) == 3


def test_without_a_token_nothing_is_made(hub: hub_server.Hub, job: Path) -> None:
    done = run(batch, job)
    assert done.exit_code == 2 and "no token" in done.output
    assert not (job.parent / "out").exists() or not list((job.parent / "out").rglob("*.gguf"))


def test_a_missing_repository_is_found_before_the_work(
    hub: hub_server.Hub, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    job.write_text(job.read_text(encoding="utf-8").replace("private = true\n", ""), encoding="utf-8")
    done = run(batch, job)
    assert done.exit_code == 2 and "create = true" in done.output
    for line, name in ((7, "A"), (9, "B")):
        assert f"jobs.toml:{line}: hf://me/{name}-GGUF: " in done.output.replace("\n", "")
    assert not (job.parent / "out").exists()


def test_a_dry_run_says_what_would_be_uploaded(hub: hub_server.Hub, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    report = json.loads(run(batch, job, "--dry-run", "--json").stdout)
    assert report["upload_bytes"].keys() == {"me/A-GGUF", "me/B-GGUF"}
    assert sum(report["upload_bytes"].values()) == report["bytes"]
    shown = " ".join(run(batch, job, "--dry-run").output.split())
    assert "to me/A-GGUF, me/B-GGUF; the time depends on the connection and comes on top" in shown
    assert not hub.uploads.commits
