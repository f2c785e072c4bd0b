"""Downloads through huggingface_hub, from a hub that misbehaves in every way we could think of."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import hub_server
from ggufsmith.container.errors import Failure, Malformed, NoSpace, Unsupported, Usage
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.hub.download import download, hub_of
from ggufsmith.convert.hub.huggingface import HuggingFace
from ggufsmith.convert.hub.names import HubModel, Located
from hub_server import COMMIT, MODEL, Fault
from requesting import plan, request

NEEDED = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    *(f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)),
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def get(hub: hub_server.Hub, cache: Path, name: str = MODEL, revision: str | None = None, **options: Any) -> Located:
    client = HuggingFace(options.pop("token", None), endpoint=hub.url, cache=cache, pause=0.01)
    return download(HubModel("hf", name, revision), client, **options)


def stored(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def same(folder: Path, original: Path) -> bool:
    return all((folder / name).read_bytes() == (original / name).read_bytes() for name in stored(folder))


def test_only_what_a_conversion_needs_into_the_ordinary_cache(hub: hub_server.Hub, tmp_path: Path) -> None:
    found = get(hub, tmp_path)
    assert found.folder == tmp_path / "models--org--Tiny-1B" / "snapshots" / COMMIT
    assert stored(found.folder) == NEEDED
    assert same(found.folder, hub.root / MODEL)
    assert len(open_checkpoint(found.folder).tensors) > 10
    prepared = plan(request(found.folder, outdir=tmp_path))
    assert prepared.output.path == tmp_path / "Tiny-1B-F16.gguf"
    general = {key: value.data for key, value in prepared.layout.metadata.items() if key.startswith("general.")}
    assert (general["general.name"], general["general.organization"]) == ("Tiny 1B", "Org")


def test_without_weights(hub: hub_server.Hub, tmp_path: Path) -> None:
    assert stored(get(hub, tmp_path, weights=False).folder) == {n for n in NEEDED if not n.endswith(".safetensors")}


def test_pickled_weights_where_there_are_no_others(hub: hub_server.Hub, tmp_path: Path) -> None:
    assert "pytorch_model.bin" in stored(get(hub, tmp_path, "org/Pickled-1B").folder)


def test_the_second_time_asks_for_the_listing_only(hub: hub_server.Hub, tmp_path: Path) -> None:
    get(hub, tmp_path)
    hub.requests.clear()
    get(hub, tmp_path)
    assert [request.path for request in hub.requests] == [f"/api/models/{MODEL}"]


def test_what_is_missing_or_cut_in_the_cache_is_fetched(hub: hub_server.Hub, tmp_path: Path) -> None:
    folder = get(hub, tmp_path).folder
    (folder / "config.json").unlink()
    cut = folder / "model-00002-of-00003.safetensors"
    cut.resolve().write_bytes(cut.read_bytes()[:1000])
    assert same(get(hub, tmp_path).folder, hub.root / MODEL)
    assert stored(folder) == NEEDED


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "/config.json"])
def test_wrong_bytes_are_fetched_again_and_never_kept(hub: hub_server.Hub, tmp_path: Path, name: str) -> None:
    hub.faults = [Fault(name, flip=200)]
    assert same(get(hub, tmp_path / "once").folder, hub.root / MODEL)
    hub.faults.append(Fault(name, flip=200, times=None))
    with pytest.raises(Malformed, match="hash") as error:
        get(hub, tmp_path / "always")
    assert name.strip("/") in str(error.value)
    assert not list((tmp_path / "always").rglob(name.strip("/")))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("resolve.*config.json", status=503),
        Fault("resolve.*config.json", status=429, headers={"Retry-After": "0"}),
        Fault("resolve.*config.json", methods="HEAD", status=500),
        Fault("cdn", status=502),
        Fault("cdn", cut=5000),
        Fault("cdn", pause=0.3),
        Fault("api/models", status=503),
        Fault("api/models", status=429, headers={"Retry-After": "0"}),
    ],
    ids=lambda fault: f"{fault.path}-{fault.status or ('cut' if fault.cut else 'slow')}-{fault.methods}",
)
def test_what_passes_is_waited_for(hub: hub_server.Hub, tmp_path: Path, fault: Fault) -> None:
    hub.faults = [fault]
    assert same(get(hub, tmp_path).folder, hub.root / MODEL)
    assert hub.used == {0: 1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("api/models", status=429, times=None, headers={"Retry-After": "0"}), "request limit"),
        (Fault("api/models", status=429, times=None, headers={"Retry-After": "9999"}), "request limit"),
        (Fault("api/models", status=500, times=None), r"error \(500\)"),
        (Fault("api/models", status=403, times=None), r"refuses the access \(403\)"),
        (Fault("api/models", times=None, drop=True), "cannot be reached"),
        (Fault("cdn", status=500, times=None), r"error \(500\)"),
        (Fault("cdn", cut=0, times=None), "failed|reached"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_stays_is_a_clear_error(
    hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, message: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of huggingface_hub's own attempts
    hub.faults = [fault]
    with pytest.raises(Failure, match=message) as error:
        get(hub, tmp_path)
    assert MODEL in str(error.value)
    assert error.value.fix


def answer(**changes: Any) -> bytes:
    """A listing with something changed in it; of None nothing is left."""
    file = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40}
    found = {"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": [file], **changes}
    return json.dumps({key: value for key, value in found.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"sha": ' + b"9" * 5000 + b"}",
        answer(sha=None),
        answer(sha=7),
        answer(sha="../../x"),
        answer(sha=""),
        answer(siblings=None),
        answer(siblings=7),
        answer(siblings=[7]),
        answer(siblings=[{}]),
        answer(siblings=[{"rfilename": 7}]),
        answer(siblings=[{"rfilename": "../x", "size": 1}]),
        answer(siblings=[{"rfilename": "config.json", "size": "many"}]),
        answer(siblings=[{"rfilename": "config.json", "size": -1}]),
        answer(siblings=[{"rfilename": "config.json", "size": 1, "lfs": 7}]),
        answer(siblings=[{"rfilename": "config.json", "size": 1, "lfs": {"size": 1, "sha256": 7, "pointerSize": 1}}]),
    ],
    ids=lambda body: repr(body[:90]),
)
def test_an_answer_that_is_no_listing(
    hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    headers = {"Content-Type": "application/json"}
    hub.faults = [Fault("api/models", status=200, times=None, headers=headers, body=body)]
    with pytest.raises(Failure) as error:
        get(hub, tmp_path / "cache")
    assert MODEL in str(error.value) and error.value.fix
    assert len(str(error.value)) < 1000
    assert stored(tmp_path) <= {"cache"}


def test_the_note_of_a_revision_is_replaced_whole(
    hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads refs/main meanwhile, or after a crash, finds the old commit or the new one."""
    get(hub, tmp_path)
    reference = tmp_path / "models--org--Tiny-1B" / "refs" / "main"
    assert reference.read_text(encoding="utf-8") == COMMIT
    reference.write_text("0" * 40, encoding="utf-8")
    (tmp_path / "models--org--Tiny-1B" / "snapshots" / COMMIT / "config.json").unlink()
    seen: list[str] = []
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target) == reference:
            seen.append(reference.read_text(encoding="utf-8") + Path(source).read_text(encoding="utf-8"))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    get(hub, tmp_path)
    assert seen == ["0" * 40 + COMMIT]
    assert [path.name for path in reference.parent.iterdir()] == ["main"]


@pytest.mark.parametrize("noted", [b"../../../x", b"\xff", b"", b"/etc", b"c" * 10**6])
def test_a_note_that_leads_elsewhere(hub: hub_server.Hub, tmp_path: Path, noted: bytes) -> None:
    """What the cache says of a revision is no more to be trusted than the hub."""
    get(hub, tmp_path)
    (tmp_path / "models--org--Tiny-1B" / "refs" / "main").write_bytes(noted)
    hub.faults = [Fault("", drop=True, times=None)]
    with pytest.raises(Failure, match="cannot be reached"):
        get(hub, tmp_path)


def test_a_gated_model_needs_a_token_that_only_the_hub_sees(hub: hub_server.Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with pytest.raises(Failure, match="gated") as error:
        get(hub, tmp_path)
    assert "https://huggingface.co/org/Tiny-1B" in str(error.value)
    assert "--token" in str(error.value)
    assert same(get(hub, tmp_path, token="hf_secret").folder, hub.root / MODEL)
    assert {request.token for request in hub.requests if request.host == "localhost"} == {None}


@pytest.mark.parametrize(("name", "revision"), [("org/Nothing", None), (MODEL, "v9")])
def test_what_the_hub_does_not_have(hub: hub_server.Hub, tmp_path: Path, name: str, revision: str | None) -> None:
    with pytest.raises(Usage, match="no revision 'v9'" if revision else "no such model"):
        get(hub, tmp_path, name, revision)


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_without_a_network_the_cache_serves(
    hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    with pytest.raises(Failure, match="HF_HUB_OFFLINE"), monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        get(hub, tmp_path, revision=revision)
    folder = get(hub, tmp_path, revision=revision).folder
    hub.faults = [Fault("", drop=True, times=None)]
    assert get(hub, tmp_path, revision=revision).folder == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(hub, tmp_path, revision=revision).folder == folder


def test_without_a_network_half_a_model_in_the_cache_does_not_serve(hub: hub_server.Hub, tmp_path: Path) -> None:
    folder = get(hub, tmp_path).folder
    hub.faults = [Fault("", drop=True, times=None)]
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(Failure, match="cannot be reached"):
        get(hub, tmp_path)
    assert get(hub, tmp_path, weights=False).folder == folder


def test_the_space_is_checked_before_the_download(
    hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(NoSpace, match="--stream"):
        get(hub, tmp_path)
    assert not [request for request in hub.requests if "safetensors" in request.path and "index" not in request.path]


def test_progress_counts_the_bytes(hub: hub_server.Hub, tmp_path: Path) -> None:
    sizes: list[int] = []
    done: list[int] = []

    @contextmanager
    def progress(size: int) -> Iterator[Callable[[int], None]]:
        sizes.append(size)
        yield done.append

    folder = get(hub, tmp_path, progress=progress).folder
    assert sum(sizes) == sum(done) == sum((folder / name).stat().st_size for name in NEEDED)


def test_modelscope_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(Unsupported, match=r"pip install 'ggufsmith\[modelscope\]'"):
        hub_of(HubModel("modelscope", MODEL))


def test_other_weights_of_the_model_are_named(hub: hub_server.Hub, tmp_path: Path) -> None:
    notes = "\n".join(get(hub, tmp_path).notes)
    assert "model.safetensors.index.json" in notes and "pytorch_model.bin" in notes and "consolidated" in notes


def test_one_file_beside_the_shards_of_another_save_is_an_error_before_the_download(
    hub: hub_server.Hub, tmp_path: Path
) -> None:
    model = hub.root / "org" / "Twice-1B"
    shutil.copytree(hub.root / MODEL, model)
    shutil.copyfile(model / "model-00001-of-00003.safetensors", model / "model.safetensors")
    with pytest.raises(Malformed, match=r"(?s)model.safetensors.*hf download org/Twice-1B .*--exclude"):
        get(hub, tmp_path, "org/Twice-1B")
    assert not [request for request in hub.requests if request.path.endswith(".safetensors")]
