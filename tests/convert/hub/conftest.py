"""A hub with a few models, new for every test; the files behind it are made once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints
import hub_server
from hub_server import MODEL

JUNK = ("consolidated.safetensors", "pytorch_model.bin", "training_args.bin", "original/params.json", "model.gguf")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    folder = checkpoints.write("qwen2", root / MODEL, shards=3)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    for name in JUNK:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    pickled = root / "org" / "Pickled-1B"
    shutil.copytree(folder, pickled, ignore=shutil.ignore_patterns("*.safetensors*", "original"))
    return root


@pytest.fixture
def hub(root: Path) -> Iterator[hub_server.Hub]:
    with hub_server.serving(root) as hub:
        yield hub


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own login, cache or proxy."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "MODELSCOPE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
