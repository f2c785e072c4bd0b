"""Names of places on somebody's machine never reach a file: not as names, not as base models, data sets, tags or URLs.

unslothai/unsloth issue 7897: general.name, basename and organization made of a Windows path.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf.constants import Keys

from ggufsmith.container.errors import Usage
from ggufsmith.container.values import Metadata, string, strings, u32
from ggufsmith.naming.cardfacts import CardFile, Publisher
from ggufsmith.naming.identity import Parameters
from ggufsmith.naming.local import folder_name, is_id, is_local, is_path
from ggufsmith.naming.metadata import general_metadata
from ggufsmith.naming.modelcard import model_card

General = Keys.General
CACHED = "models--meta-llama--Llama-2-7b-hf/snapshots/0123456789abcdef0123456789abcdef01234567"
PATHS = [
    *("/home/alice/secret/Llama-2-7b", "/base", "/", "//nas/share/secret/x", "/content/drive/My Drive/secret/x"),
    *("D:\\secret\\Llama-2-7b", "D:/secret/Llama-2-7b", "c:\\", "\\\\nas\\secret\\Llama-2-7b", "\\secret\\x", "D:x"),
    *("~/secret/Llama-2-7b", "~", "~alice/secret/x", "./secret/x", "../secret/x/", "..", ".", ".\\secret\\x", "..\\x"),
    *(
        "file:///data/secret/x",
        "FILE://data/secret/x",
        "file:x",
        "$HOME/secret/x",
        "${DIR}/secret/x",
        "%DIR%\\secret\\x",
    ),
    *(f"/root/.cache/huggingface/hub/{CACHED}", f"hub/{CACHED}", f"C:\\hub\\{CACHED.replace('/', chr(92))}", CACHED),
    *("secret/../Llama-2-7b", "secret\\Llama-2-7b", "outputs/checkpoint-500", "checkpoint-500", "models/secret/x"),
    *(
        " /home/alice/secret/x ",
        "\t./secret/x",
        "https://alice:secret@example.org/Llama-2-7b",
        "s3://secret/Llama-2-7b",
    ),
]
EMPTY = ["", " ", "\t\n", "\u00a0"]
PUBLIC = [
    "ssh://git@example.org/x",
    "Llama-2-7b",
    "meta-llama/Llama-2-7b-hf",
    "My model",
    "a.b",
    "C",
    "https://example.org/a",
    "https://example.org/~a",
]


@pytest.mark.parametrize("text", PATHS)
def test_paths_are_recognised(text: str) -> None:
    assert is_local(text) and not is_id(text)


@pytest.mark.parametrize("text", ["output", "model", "lora_model", "merged", "final", *EMPTY])
def test_folders_of_scripts_are_no_ids(text: str) -> None:
    assert not is_id(text) and not is_path(text)


@pytest.mark.parametrize("text", PUBLIC)
def test_names_are_no_paths(text: str) -> None:
    assert not is_local(text) and is_id(text) == ("://" not in text)


@pytest.mark.parametrize(
    "text",
    ["A/B testing", "Note: a model", "LaTeX \\frac{a}{b} and more", "see https://a.b/c:d", "~7B parameters", "-1"],
)
def test_sentences_are_no_paths(text: str) -> None:
    assert not is_path(text)


def described(folder: Path, card: Any = None, **config: Any) -> tuple[Metadata, list[str]]:
    notes: list[str] = []
    folder.mkdir(exist_ok=True)
    if card is not None:
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n", encoding="utf-8")
    found = general_metadata(folder, config, Parameters(), architecture="llama", file_type=1, note=notes.append)
    return found, notes


def shown(metadata: Metadata) -> str:
    return json.dumps({key: str(value.data) for key, value in metadata.items()})


@pytest.mark.parametrize("text", [*PATHS, *EMPTY, "output", "model", "merged"])
def test_the_name_is_then_that_of_the_folder(text: str, tmp_path: Path) -> None:
    assert described(tmp_path / "My-Tune-v2", _name_or_path=text) == described(tmp_path / "My-Tune-v2")


KEYS = "name model_name organization basename model_type finetune version url repo_url author license_link description"


@pytest.mark.parametrize("key", KEYS.split())
@pytest.mark.parametrize("text", [*PATHS, *EMPTY])
def test_a_card_that_names_a_path_is_passed_over(key: str, text: str, tmp_path: Path) -> None:
    plain, _ = described(tmp_path / "My-Tune-v2")
    found, notes = described(tmp_path / "My-Tune-v2", {key: text})
    if key in ("author", "license_link", "description", "version") and not is_path(text):
        return  # a sentence
    assert found == plain
    assert len(notes) == bool(text.strip())


@pytest.mark.parametrize("key", ["base_model", "datasets", "base_model_sources", "tags"])
@pytest.mark.parametrize("text", PATHS)
@pytest.mark.parametrize("shape", ["text", "list", "mapping"])
def test_base_models_and_data_sets_have_no_paths(key: str, text: str, shape: str, tmp_path: Path) -> None:
    mapping = {"name": text, "organization": text, "repo_url": text, "description": text if is_path(text) else ""}
    value: Any = {"text": text, "list": ["org/kept", text], "mapping": [mapping, {"name": "Kept"}]}[shape]
    if key == "tags":
        value = [f"base_model:{text}", f"base_model:adapter:{text}", "kept", *([text] if is_path(text) else ())]
    found, _ = described(tmp_path / "My-Tune-v2", {key: value})
    for part in ("secret", "alice", "home", ":\\", "snapshots", "checkpoint", "/base", "~"):
        assert part not in shown(found).lower().replace("https://huggingface.co/", "")
    if key != "tags" and shape != "text":
        count = found["general.dataset.count" if key == "datasets" else "general.base_model.count"]
        assert "kept" in shown(found).lower() and count.data >= 1
    if key == "tags":
        assert found[General.TAGS] == strings(["kept"])


def test_what_is_known_of_a_base_is_kept(tmp_path: Path) -> None:
    """A snapshot in the hub's cache says which model it is, and a folder at least what it is called."""
    found, _ = described(tmp_path / "T", {"base_model": [f"/x/{CACHED}", "/home/alice/Llama-2-7b-hf", "./"]})
    base = "general.base_model."
    assert found[f"{base}count"] == u32(2)
    assert found[f"{base}0.repo_url"] == string("https://huggingface.co/meta-llama/Llama-2-7b-hf")
    assert found[f"{base}1.name"] == string("Llama 2 7b Hf")
    assert f"{base}1.organization" not in found and f"{base}1.repo_url" not in found


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("D:\\LLM\\Meta-Llama-3-8B\\", "Meta-Llama-3-8B"),
        ("/data/m/", "m"),
        ("/content/model", None),
        ("outputs/checkpoint-500", None),
        ("~", None),
        ("/", None),
        ("..", None),
        ("D:", None),
        (f"/x/snapshots/{'0' * 40}", None),
    ],
)
def test_the_name_of_a_folder(path: str, name: str | None) -> None:
    assert folder_name(path) == name


def test_a_folder_whose_name_is_blank_has_one(tmp_path: Path) -> None:
    assert described(tmp_path / "  ")[0][General.NAME] == string("Model")


@pytest.mark.parametrize("text", PATHS)
def test_cards_of_files_show_no_paths(text: str) -> None:
    """Headers that others wrote hold them."""
    metadata = {
        General.NAME: string(text),
        General.LICENSE_LINK: string(text if is_path(text) else ""),
        General.TAGS: strings([f"base_model:{text}", "kept"]),
        General.DATASET_REPO_URL.format(id=0): string(text),
        General.SOURCE_REPO_URL: string(text),
    }
    page = model_card(metadata, [CardFile(("x.gguf",), 10, 4.0)], Publisher(), version="1")
    assert text.strip() not in page.replace("./model.gguf", "").replace("https://", "") or text.strip() in (
        "/",
        ".",
        "..",
        "~",
    )
    assert "secret" not in page and "kept" in page
    assert "# Model GGUF" in page


@pytest.mark.parametrize("text", [*PATHS, *EMPTY[1:]])
def test_a_base_model_that_is_a_path_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="org/name"):
        model_card({}, [CardFile(("x.gguf",), 10, 4.0)], Publisher(base_model=text), version="1")
