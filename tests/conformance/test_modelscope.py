"""Models on ModelScope, through its own library, from a hub on the loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints
import hub_server
from ggufsmith.container.errors import Failure, Malformed, Usage
from ggufsmith.convert.hub.download import download, streamed
from ggufsmith.convert.hub.modelscope import ModelScope
from ggufsmith.convert.hub.names import HubModel
from hub_server import MODEL, Fault
from requesting import plan, request, run

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    checkpoints.write("qwen2", root / MODEL, shards=2)
    (root / MODEL / "pytorch_model.bin").write_bytes(b"not needed")
    return root


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.Hub]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    with hub_server.serving(root) as hub:
        yield hub


def client(hub: hub_server.Hub, cache: Path, token: str | None = None) -> ModelScope:
    return ModelScope(token, endpoint=hub.url, cache=cache)


def test_download_and_stream_give_the_same_bytes(hub: hub_server.Hub, tmp_path: Path) -> None:
    model = HubModel("modelscope", MODEL)
    found = download(model, client(hub, tmp_path / "cache"))
    names = {path.name for path in found.folder.iterdir()}
    assert {"config.json", "tokenizer.json", "model-00001-of-00002.safetensors"} < names
    assert "pytorch_model.bin" not in names
    assert plan(request(found.folder, outdir=tmp_path)).output.path.name == "Tiny-1B-F16.gguf"
    run(request(found.folder, outfile=tmp_path / "a.gguf"))
    with streamed(model, client(hub, tmp_path / "other")) as far:
        run(request(far.folder, outfile=tmp_path / "b.gguf"), open_files=far.open_files)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert not list((tmp_path / "other").rglob("*.safetensors"))


def test_the_token_is_sent(hub: hub_server.Hub, tmp_path: Path) -> None:
    download(HubModel("modelscope", MODEL), client(hub, tmp_path, token="ms-secret"), weights=False)
    assert "ms-secret" in {request.token for request in hub.requests}


def test_wrong_bytes(hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)  # its pauses add up to 30 s
    hub.faults = [Fault("/repo$", flip=5, times=None)]
    with pytest.raises(Malformed, match="hash"):
        download(HubModel("modelscope", MODEL), client(hub, tmp_path))


@pytest.mark.parametrize(("name", "revision"), [("org/Nothing", None), (MODEL, "v9")])
def test_what_the_hub_does_not_have(hub: hub_server.Hub, tmp_path: Path, name: str, revision: str | None) -> None:
    with pytest.raises(Usage, match="no such model or revision"):
        download(HubModel("modelscope", name, revision), client(hub, tmp_path))


@pytest.mark.parametrize("status", [403, 400])
def test_what_the_hub_refuses(hub: hub_server.Hub, tmp_path: Path, status: int) -> None:
    hub.faults = [Fault("/repo/files", status=status, times=None)]
    with pytest.raises(Failure, match=r"refuses|cannot be read") as error:
        download(HubModel("modelscope", MODEL), client(hub, tmp_path))
    assert error.value.fix
