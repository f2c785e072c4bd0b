"""Publishing on the hub on the loopback: what arrives, what is sent once, what is refused, and what is never said."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models as models
from commands import run
from huggingface_hub import constants

import checkpoints
import hub_server
from ggufsmith.cli.card import card
from ggufsmith.cli.convert import convert as convert_command
from ggufsmith.cli.push import push as command
from ggufsmith.cli.split import split
from ggufsmith.container.errors import Failure, Malformed, OutputConflict, Usage
from ggufsmith.naming.modelcard import MARK
from ggufsmith.progress import Display
from ggufsmith.pushing import PushTask, push, repository_of
from hub_server import Fault
from hub_uploads import MADE
from requesting import request
from requesting import run as convert

TOKEN = "hf_secretsecretsecret"
REPO = "me/Tiny-GGUF"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    (tmp_path / "hub").mkdir()
    with hub_server.serving(tmp_path / "hub") as hub:
        hub.token = TOKEN
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which needs a server of its own
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, three shards, and an importance matrix."""
    source = checkpoints.write("qwen2", tmp_path / "Tiny")
    (tmp_path / "out").mkdir()
    convert(request(source, "q8_0", "q4_0", outdir=tmp_path / "out"))
    convert(request(source, outfile=tmp_path / "Tiny-F16.gguf"))
    assert (
        run(split, tmp_path / "Tiny-F16.gguf", tmp_path / "out" / "Tiny-F16", "--split-max-tensors", 20).exit_code == 0
    )
    models.write_imatrix(tmp_path / "out" / "Tiny-imatrix.gguf", models.importance(models.arrays()))
    (tmp_path / "out" / ".Tiny.batch.json").write_text("{}", encoding="utf-8")
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    return tmp_path / "out"


def pushed(hub: hub_server.Hub, *files: Path, **more: Any) -> Any:
    task = PushTask(files, REPO, more.pop("token", TOKEN), create=more.pop("create", True), **more)
    return push(task, Display(), repository_of(task, hub.url, pause=0.01))


def there(hub: hub_server.Hub) -> list[str]:
    return sorted(name for name, _ in hub.files(REPO))


def test_what_arrives(hub: hub_server.Hub, folder: Path) -> None:
    done = pushed(hub, folder, private=True)
    shards = sorted(path.name for path in folder.glob("*-of-*"))
    expected = ["README.md", "Tiny-Q4_0.gguf", "Tiny-Q8_0.gguf", "Tiny-imatrix.gguf"]
    assert there(hub) == sorted([*expected, *(f"Tiny-F16/{name}" for name in shards)])
    assert hub.uploads.private == {REPO}
    (commit,) = hub.uploads.commits  # one, with everything
    assert commit[-2:] == ["Tiny-imatrix.gguf", "README.md"]
    assert done.url.endswith(MADE)
    for name in ("Tiny-Q8_0.gguf", f"Tiny-F16/{shards[0]}"):
        assert (hub.root / REPO / name).read_bytes() == (folder / Path(name).name).read_bytes()
    text = (hub.root / REPO / "README.md").read_text(encoding="utf-8")
    assert MARK in text and f"{REPO}/blob/main/Tiny-F16/{shards[0]}" in text


def test_what_is_there_is_not_sent_again(hub: hub_server.Hub, folder: Path) -> None:
    pushed(hub, folder)
    before = hub.uploads.received
    done = pushed(hub, folder)
    assert done.url is None and not done.sent and len(hub.uploads.commits) == 1 and hub.uploads.received == before


def test_another_file_is_added_and_the_card_stays(hub: hub_server.Hub, folder: Path) -> None:
    pushed(hub, folder / "Tiny-Q8_0.gguf")
    text = (hub.root / REPO / "README.md").read_bytes()
    done = pushed(hub, folder / "Tiny-Q4_0.gguf", create=False)
    assert done.sent == ("Tiny-Q4_0.gguf",)
    assert (hub.root / REPO / "README.md").read_bytes() == text


def test_our_own_card_is_renewed(hub: hub_server.Hub, folder: Path) -> None:
    pushed(hub, folder / "Tiny-Q8_0.gguf")
    files = (folder / "Tiny-Q4_0.gguf", folder / "Tiny-Q8_0.gguf")
    assert run(card, *files, "--repo", REPO).exit_code == 0
    done = pushed(hub, *files)
    assert done.sent == ("Tiny-Q4_0.gguf", "README.md") and done.there == ("Tiny-Q8_0.gguf",)
    text = (hub.root / REPO / "README.md").read_text(encoding="utf-8")
    assert "blob/main/Tiny-Q4_0.gguf" in text and "blob/main/Tiny-Q8_0.gguf" in text


@pytest.mark.parametrize("cut", [0, 50_000])
def test_a_broken_connection_is_taken_up_again(hub: hub_server.Hub, folder: Path, cut: int) -> None:
    hub.faults.append(Fault(r"/lfs/[0-9a-f]{64}", methods="PUT", cut=cut, times=2))
    pushed(hub, folder / "Tiny-Q8_0.gguf")
    assert (hub.root / REPO / "Tiny-Q8_0.gguf").read_bytes() == (folder / "Tiny-Q8_0.gguf").read_bytes()


def test_a_busy_hub_is_asked_again(hub: hub_server.Hub, folder: Path) -> None:
    busy = {"status": 429, "headers": {"Retry-After": "0"}}
    hub.faults.append(Fault("/preupload/", methods="POST", times=2, **busy))  # type: ignore[arg-type]
    hub.faults.append(Fault("/commit/", methods="POST", times=2, **busy))  # type: ignore[arg-type]
    pushed(hub, folder / "Tiny-Q8_0.gguf")
    assert "Tiny-Q8_0.gguf" in there(hub)


def test_nothing_is_visible_of_a_push_that_failed_and_it_goes_on(hub: hub_server.Hub, folder: Path) -> None:
    hub.faults.append(Fault("/commit/", methods="POST", status=500, times=None))
    with pytest.raises(Failure, match="500"):
        pushed(hub, folder)
    assert there(hub) == []
    sent = hub.uploads.received
    hub.faults.clear()
    pushed(hub, folder)
    assert hub.uploads.received == sent and "Tiny-Q8_0.gguf" in there(hub)


def test_files_with_other_content_are_not_replaced_unasked(hub: hub_server.Hub, folder: Path) -> None:
    place = hub.root / REPO / "Tiny-Q8_0.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"another")
    (place.parent / "README.md").write_text("# By hand\n", encoding="utf-8")
    with pytest.raises(OutputConflict, match="other content"):
        pushed(hub, folder)
    assert place.read_bytes() == b"another" and there(hub) == ["README.md", "Tiny-Q8_0.gguf"]
    pushed(hub, folder, replace=True)
    assert place.read_bytes() == (folder / "Tiny-Q8_0.gguf").read_bytes()
    assert (place.parent / "README.md").read_text(encoding="utf-8") == "# By hand\n"


def test_a_card_by_hand_is_not_replaced_by_ours(hub: hub_server.Hub, folder: Path) -> None:
    readme = hub.root / REPO / "README.md"
    readme.parent.mkdir(parents=True)
    readme.write_text("# By hand\n", encoding="utf-8")
    assert run(card, folder / "Tiny-Q8_0.gguf").exit_code == 0
    pushed(hub, folder / "Tiny-Q8_0.gguf")
    assert readme.read_text(encoding="utf-8") == "# By hand\n"
    pushed(hub, folder / "Tiny-Q8_0.gguf", card=folder / "README.md", replace=True)
    assert MARK in readme.read_text(encoding="utf-8")


def test_who_may_not(hub: hub_server.Hub, folder: Path) -> None:
    with pytest.raises(Usage, match="no token"):
        repository_of(PushTask([folder], REPO))
    with pytest.raises(Failure, match="401"):
        pushed(hub, folder, token="hf_another")
    hub.readers.add("hf_reader")
    hub.token = None
    with pytest.raises(Failure, match="403"):
        pushed(hub, folder, token="hf_reader")
    with pytest.raises(Usage, match="no such repository"):
        pushed(hub, folder, create=False)
    with pytest.raises(Usage, match="not the name"):
        repository_of(PushTask([folder], "no name", TOKEN))
    assert not (hub.root / REPO).exists() and not hub.uploads.commits


def test_damaged_files_are_found_before_anything_is_sent(hub: hub_server.Hub, folder: Path) -> None:
    shard = max(folder.glob("*-of-*"))
    shard.unlink()
    with pytest.raises(Failure):
        pushed(hub, folder)
    path = folder / "Tiny-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Failure):
        pushed(hub, path)
    assert not any(each.method in ("POST", "PUT") for each in hub.requests)


@pytest.mark.usefixtures("hub")
def test_damaged_files_are_found_before_a_token_is_asked_for(folder: Path) -> None:
    path = folder / "Tiny-Q4_0.gguf"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Malformed, match=r"truncated|end"):
        push(PushTask([path], REPO), Display())


def test_the_command(hub: hub_server.Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = run(command, folder / "Tiny-Q8_0.gguf", folder / "Tiny-Q4_0.gguf", REPO, "--create")
    assert done.exit_code == 0, done.output
    assert "sent" in done.output and "Tiny-Q8_0.gguf" in there(hub)
    again = run(command, folder / "Tiny-Q8_0.gguf", REPO, "--json")
    assert json.loads(again.stdout) == {"commit": None, "sent": [], "there": ["Tiny-Q8_0.gguf"]}
    assert run(command, folder).exit_code == 2
    assert run(command, folder / "notes.txt", REPO).exit_code == 2
    assert run(command, folder.parent / "cache", REPO).exit_code == 2


def test_what_is_wrong_here_is_said_before_what_is_wrong_there(
    hub: hub_server.Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token too, a file that is missing is the first that one has to know."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    for token in ((), ("--token", TOKEN)):
        absent = run(command, folder / "absent.gguf", REPO, *token)
        assert absent.exit_code == 2 and "not a GGUF file or a folder" in absent.output
        card = run(command, folder, REPO, "--card", folder / "absent.md", *token)
        assert card.exit_code == 2 and "no such model card" in card.output
    assert not hub.requests


@pytest.mark.parametrize("token", [(), ("--token", TOKEN)])
def test_offline_nothing_is_published(
    hub: hub_server.Hub, folder: Path, token: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run(command, folder / "Tiny-Q8_0.gguf", REPO, "--create", *token)
    assert done.exit_code == 2 and "HF_HUB_OFFLINE" in done.output and "cache" not in done.output
    assert not hub.requests


def test_what_the_cache_knows_does_not_count(hub: hub_server.Hub, folder: Path, tmp_path: Path) -> None:
    """A repository that was downloaded before, and a hub that does not answer."""
    snapshot = tmp_path / "cache" / "models--me--Tiny-GGUF" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    hub.faults.append(Fault("/api/models/", drop=True, times=None))
    with pytest.raises(Failure) as caught:
        pushed(hub, folder / "Tiny-Q8_0.gguf", create=False)
    assert "no such repository" not in str(caught.value) and caught.value.code == 1


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_the_token_is_never_shown(
    hub: hub_server.Hub,
    folder: Path,
    status: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    body = json.dumps({"error": f"the token {TOKEN} is wrong"}).encode()
    hub.faults.append(Fault("/commit/", methods="POST", status=status, body=body, times=None))
    done = run(command, folder / "Tiny-Q8_0.gguf", REPO, "--create", "--token", TOKEN)
    assert done.exit_code == 1
    shown = capfd.readouterr()
    assert TOKEN not in done.output + shown.out + shown.err + caplog.text


def converted(hub: hub_server.Hub, folder: Path, *more: object, repo: str = REPO) -> Any:
    source = folder.parent / "Tiny"
    out = folder.parent / "new"
    return run(convert_command, source, "-r", "q4_K_M", "--outdir", out, "--no-sync", "--push", repo, *more), out


def test_a_run_is_published_when_it_is_verified(
    hub: hub_server.Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder.parent / "Tiny" / "README.md").write_text("# The original\n", encoding="utf-8")
    done, out = converted(hub, folder, "--private")
    assert done.exit_code == 0, done.output
    assert "published" in done.output and there(hub) == ["README.md", "Tiny-Q4_K_M.gguf"]
    assert (hub.root / REPO / "Tiny-Q4_K_M.gguf").read_bytes() == (out / "Tiny-Q4_K_M.gguf").read_bytes()
    assert hub.uploads.private == {REPO}
    assert "hf download me/Tiny-GGUF" in (hub.root / REPO / "README.md").read_text(encoding="utf-8")


def test_what_prevents_publishing_is_said_before_the_work(
    hub: hub_server.Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    without, out = converted(hub, folder)
    assert without.exit_code == 2 and "no token" in without.output
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    missing, _ = converted(hub, folder)
    assert missing.exit_code == 2 and "--create" in missing.output
    (hub.root / REPO).mkdir(parents=True)
    (hub.root / REPO / "Tiny-Q4_K_M.gguf").write_bytes(b"another")
    taken, _ = converted(hub, folder)
    assert taken.exit_code == 6 and "--replace" in taken.output
    named, _ = converted(hub, folder, repo="no name")
    assert named.exit_code == 2
    assert not out.exists() or not list(out.iterdir())
    lonely = run(convert_command, folder.parent / "Tiny", "--outdir", out, "--private")
    assert lonely.exit_code == 2 and "--push" in lonely.output


def test_what_was_made_stays_if_publishing_fails(
    hub: hub_server.Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults.append(Fault("/commit/", methods="POST", status=403, times=None))
    done, out = converted(hub, folder, "--create")
    assert done.exit_code == 1 and "refuses" in done.output
    assert (out / "Tiny-Q4_K_M.gguf").is_file() and there(hub) == []


def test_the_card_of_a_checkpoint_is_not_published(hub: hub_server.Hub, folder: Path) -> None:
    source = folder.parent / "Tiny"
    (source / "README.md").write_text("# The original\n", encoding="utf-8")
    convert(request(source, "q8_0"))
    pushed(hub, source)
    assert MARK in (hub.root / REPO / "README.md").read_text(encoding="utf-8")
