"""What a name means: a path, a model on a hub, or nothing."""

from pathlib import Path
from typing import Any

import pytest

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.convert.hub.listing import HubFile, Listing
from ggufsmith.convert.hub.names import HubModel, hub_model


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", HubModel("hf", "Qwen/Qwen2.5-7B-Instruct")),
        ("hf://org/name", HubModel("hf", "org/name")),
        ("modelscope://deepseek-ai/DeepSeek-R1", HubModel("modelscope", "deepseek-ai/DeepSeek-R1")),
    ],
)
def test_models_on_hubs(text: str, model: HubModel) -> None:
    assert hub_model(text) == model
    assert hub_model(text, "v1") == HubModel(model.hub, model.id, "v1")


def test_a_folder_of_that_name_wins() -> None:
    Path("org/name").mkdir(parents=True)
    assert hub_model("org/name") is None
    assert hub_model("hf://org/name") == HubModel("hf", "org/name")


@pytest.mark.parametrize("text", ["missing", "./org/name", "/tmp/no/such/folder", "a/b/c", "../org", "org/", "-o/x"])
def test_neither_a_path_nor_a_name(text: str) -> None:
    with pytest.raises(Usage, match="no such folder"):
        hub_model(text)


@pytest.mark.parametrize(
    "text", ["s3://bucket/model", "hf://name", "hf://org/name/more", "hf://../x", "hf://org/na me"]
)
def test_malformed_names(text: str) -> None:
    with pytest.raises(Usage):
        hub_model(text)


def test_a_local_folder_has_no_revision() -> None:
    Path("model").mkdir()
    with pytest.raises(Usage, match="--revision"):
        hub_model("model", "main")


OUTSIDE = ["../x", "a/../../b", "/etc/passwd", "C:x", "a\\..\\b", "a//b", "..", ".", "a/", "x\0y", "a\nb"]


@pytest.mark.parametrize("revision", OUTSIDE)
def test_a_revision_stays_in_the_cache(revision: str) -> None:
    with pytest.raises(Usage, match="not the name of a revision"):
        hub_model("org/name", revision)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0", "feature/x_y-z", "0" * 40])
def test_revisions(revision: str) -> None:
    assert hub_model("org/name", revision) == HubModel("hf", "org/name", revision)


@pytest.mark.parametrize("commit", [*OUTSIDE, ""])
def test_a_commit_stays_in_the_cache(commit: str) -> None:
    with pytest.raises(Malformed, match="commit"):
        Listing(HubModel("hf", "org/name"), commit, {})


@pytest.mark.parametrize(
    "size",
    [-1, 1.5, "7", None, True, 2**63, 1 << 20000],
    ids=lambda size: f"{size!r:.9}" if size != 1 << 20000 else "huge",
)
def test_listed_sizes_are_sizes(size: Any) -> None:
    with pytest.raises(Malformed, match="size"):
        Listing(HubModel("hf", "org/name"), "c0ffee", {"x": HubFile("x", size)})


@pytest.mark.parametrize("digest", ["", "x" * 64, "0" * 63, 7, "²" * 64])
def test_listed_hashes_are_hashes(digest: Any) -> None:
    with pytest.raises(Malformed, match="SHA-256"):
        Listing(HubModel("hf", "org/name"), "c0ffee", {"x": HubFile("x", 1, digest)})


@pytest.mark.parametrize("name", ["../x.json", "a/../../config.json", "/etc/passwd", "C:x", "a\\..\\b", "", "a//b"])
def test_listed_files_stay_in_the_folder(name: str) -> None:
    with pytest.raises(Malformed, match="points outside the model's folder"):
        Listing(HubModel("hf", "org/name"), "c0ffee", {name: HubFile(name, 1)})
