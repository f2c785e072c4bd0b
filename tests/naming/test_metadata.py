"""The general.* keys: each source, their order, and cards and overrides that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import Keys

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.layout import lay_out
from ggufsmith.container.values import Metadata, f32, i32, string, strings, u32
from ggufsmith.naming import card as cards
from ggufsmith.naming.card import read_card
from ggufsmith.naming.identity import Parameters
from ggufsmith.naming.metadata import OVERRIDES, general_metadata, read_overrides

General = Keys.General
PARAMETERS = Parameters(7_615_616_512, 7_615_616_512)


def model(tmp_path: Path, name: str = "DeepSeek-R1-Distill-Qwen-7B", card: str = "", **files: Any) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# text\n", encoding="utf-8")
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def described(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> tuple[Metadata, list[str]]:
    notes: list[str] = []
    parameters = options.pop("parameters", PARAMETERS)
    found = general_metadata(
        folder, config or {}, parameters, architecture="qwen2", file_type=1, note=notes.append, **options
    )
    lay_out(found, [])  # whatever the sources hold, it can be written
    return found, notes


def test_from_the_folder_name_alone(tmp_path: Path) -> None:
    found, notes = described(model(tmp_path))
    assert found == {
        General.ARCHITECTURE: string("qwen2"),
        General.TYPE: string("model"),
        General.NAME: string("DeepSeek R1 Distill Qwen 7B"),
        General.BASENAME: string("DeepSeek-R1-Distill-Qwen"),
        General.SIZE_LABEL: string("7B"),
        General.QUANTIZATION_VERSION: u32(2),
        General.FILE_TYPE: u32(1),
    }
    assert notes == []


def test_size_label_from_the_count_where_the_name_has_none(tmp_path: Path) -> None:
    found, _ = described(model(tmp_path, "llama"))
    assert found[General.SIZE_LABEL] == string("7.6B")
    assert General.BASENAME not in found
    found, _ = described(tmp_path / "llama", parameters=Parameters())
    assert General.SIZE_LABEL not in found


def test_a_relative_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model(tmp_path))
    assert described(Path())[0][General.NAME] == string("DeepSeek R1 Distill Qwen 7B")


CARD = """
license: [apache-2.0, mit]
license_name: custom
license_link: https://example.org/license
language:
- en
- no
tags: [chat]
pipeline_tag:\ttext-generation
model_name: The Model
model_creator: Somebody
version: 1.10
url: https://example.org
base_model:
- Qwen/Qwen2.5-7B
- https://huggingface.co/mistralai/Mistral-7B-v0.1
- https://example.org/x
- {name: Own, doi: 10.1/2, unknown: 1}
- 7
datasets: wikitext/v0.2
"""


def test_from_a_card(tmp_path: Path) -> None:
    found, notes = described(model(tmp_path, card=CARD))
    base = "general.base_model."
    expected = {
        General.LICENSE: string("apache-2.0,mit"),
        General.LICENSE_NAME: string("custom"),
        General.LICENSE_LINK: string("https://example.org/license"),
        General.LANGUAGES: strings(["en", "no"]),
        General.TAGS: strings(["chat", "text-generation"]),
        General.NAME: string("The Model"),
        General.AUTHOR: string("Somebody"),
        General.VERSION: string("1.1"),
        General.SOURCE_URL: string("https://example.org"),
        General.BASENAME: string("DeepSeek-R1-Distill-Qwen"),
        f"{base}count": u32(5),
        f"{base}0.name": string("Qwen2.5 7B"),
        f"{base}0.organization": string("Qwen"),
        f"{base}0.repo_url": string("https://huggingface.co/Qwen/Qwen2.5-7B"),
        f"{base}1.name": string("Mistral 7B v0.1"),
        f"{base}1.organization": string("Mistralai"),
        f"{base}1.version": string("v0.1"),
        f"{base}1.repo_url": string("https://huggingface.co/mistralai/Mistral-7B-v0.1"),
        f"{base}2.repo_url": string("https://example.org/x"),
        f"{base}3.name": string("Own"),
        f"{base}3.doi": string("10.1/2"),
        "general.dataset.count": u32(1),
        "general.dataset.0.name": string("v0.2"),
        "general.dataset.0.organization": string("Wikitext"),
        "general.dataset.0.version": string("v0.2"),
        "general.dataset.0.repo_url": string("https://huggingface.co/wikitext/v0.2"),
    }
    assert {key: found[key] for key in expected} == expected
    assert {key for key in found if key.startswith((base, "general.dataset."))} <= expected.keys()
    assert notes == ["model card: 7 names neither a model nor a data set"]


def test_sampling(tmp_path: Path) -> None:
    generation = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": None,
        "do_sample": True,
        "eos_token_id": [1, 2],
    }
    found, _ = described(model(tmp_path, generation_config=generation))
    assert {key: value for key, value in found.items() if "sampling" in key} == {
        General.SAMPLING_TOP_K: i32(20),
        General.SAMPLING_TOP_P: f32(0.95),
        General.SAMPLING_TEMP: f32(0.6),
    }


@pytest.mark.parametrize("value", ["hot", [1], 1e300, float("nan"), float("inf"), 10**400, {}])
def test_sampling_that_is_no_number(tmp_path: Path, value: Any) -> None:
    found, notes = described(model(tmp_path, generation_config={"temperature": value, "top_k": value}))
    assert not [key for key in found if "sampling" in key]
    assert len(notes) == 2


def test_order_of_the_sources(tmp_path: Path) -> None:
    config = {"_name_or_path": "acme/Rocket-9B-Chat-v3"}
    folder = model(tmp_path, card="name: Card\nsize_label: 1B", generation_config={"top_k": 5})
    found, _ = described(folder, config)
    assert found[General.NAME] == string("Card")
    assert found[General.ORGANIZATION] == string("Acme")
    assert (found[General.BASENAME], found[General.FINETUNE]) == (string("Rocket"), string("Chat"))
    assert (found[General.SIZE_LABEL], found[General.VERSION]) == (string("1B"), string("v3"))

    overrides = {General.NAME: "Override", General.SAMPLING_TOP_K: 7, General.URL: "https://a", General.VERSION: None}
    found, _ = described(folder, config, overrides=overrides)
    assert found[General.NAME] == string("Override")
    assert found[General.SAMPLING_TOP_K] == i32(7)
    assert found[General.URL] == string("https://a")
    assert General.VERSION not in found
    assert described(folder, config, overrides=overrides, name="Option")[0][General.NAME] == string("Option")


@pytest.mark.parametrize("path", ["/home/me/models/x-7B", 7, None, "a/b/c"])
def test_a_path_is_no_model_id(tmp_path: Path, path: Any) -> None:
    assert described(model(tmp_path), {"_name_or_path": path}) == described(tmp_path / "DeepSeek-R1-Distill-Qwen-7B")


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ("a: [", "while parsing"),
        ("- a", "is a list"),
        ("a: " + "[" * 100_000, "nested deeper"),
        ("- " * 50_000, "nested deeper"),
        ('a: !!int ""', "not used"),
        ("a: !!timestamp x", "not used"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: 2024-99-99", "not used"),
        ("a: b\n\x00", "not used"),
    ],
)
def test_cards_that_cannot_be_read(tmp_path: Path, card: str, match: str) -> None:
    folder = model(tmp_path, card=card)
    notes: list[str] = []
    assert read_card(folder, notes.append) == {}
    assert len(notes) == 1
    assert match in notes[0]
    assert "\n" not in notes[0]


def test_more_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    path = tmp_path / "README.md"
    for text in ("", "# no front matter", "---", "---\n---\n", "\n---\na: 1\n---"):
        path.write_text(text, encoding="utf-8")
        assert read_card(tmp_path, notes.append) == {}
    path.write_bytes(b"\xef\xbb\xbf---\r\na: 1\r\n---\r\n")
    assert read_card(tmp_path, notes.append) == {"a": 1}
    assert notes == []
    path.write_bytes(b"---\na: \xff\n---\n")
    assert read_card(tmp_path, notes.append) == {}
    monkeypatch.setattr(cards, "MAX_FRONT_MATTER", 20)
    path.write_text("---\na: 0123456789012345\n---\n", encoding="utf-8")
    assert read_card(tmp_path, notes.append) == {}
    assert len(notes) == 2
    assert "more than 20" in notes[1]


@pytest.mark.parametrize("language", ["no", "[no, en]", "\n- no\n- en"])
def test_norwegian_is_a_language(tmp_path: Path, language: str) -> None:
    found, _ = described(model(tmp_path, card=f"language: {language}"))
    assert found[General.LANGUAGES] in (strings(["no"]), strings(["no", "en"]))


def test_aliases_that_would_explode(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)), "tags: [*a29, ok]"]
    card = "\n".join([*lines, "license: *a29", "description: *a29", "base_model: [*a29, {name: *a29}]"])
    found, notes = described(model(tmp_path, card=card))
    assert found[General.TAGS] == strings(["ok"])
    assert found["general.base_model.count"] == u32(2)
    assert General.LICENSE not in found
    assert len(notes) == 6
    assert all(len(note) < 300 for note in notes)


def test_what_a_card_says_in_another_shape_is_told(tmp_path: Path) -> None:
    card = "tags: {a: b}\nlanguage: [en, [de]]\nbase_model: {name: x}\ndatasets: 5\nlicense: [mit, {a: b}]"
    found, notes = described(model(tmp_path, card=card))
    assert found[General.LANGUAGES] == strings(["en"]) and found[General.LICENSE] == string("mit")
    assert not {General.TAGS, "general.base_model.count", "general.dataset.count"} & found.keys()
    assert sorted(note.partition(" is ")[0] for note in notes) == [
        "general.languages: ['de']",
        "general.license: {'a': 'b'}",
        "model card: base_model: {'name': 'x'}",
        "model card: datasets: 5",
        "model card: tags: {'a': 'b'}",
    ]


def test_broken_generation_config(tmp_path: Path) -> None:
    folder = model(tmp_path, generation_config=[1])
    assert len(described(folder)[1]) == 1
    for text in ("{", "[" * 100_000, "\udcff"):
        (folder / "generation_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert len(described(folder)[1]) == 1


def test_override_files(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text(json.dumps({General.NAME: "é", "general.datasets": ["a/b-7B"]}), encoding="utf-8")
    found, _ = described(model(tmp_path), overrides=read_overrides(path))
    assert found[General.NAME] == string("é")
    assert found["general.dataset.0.repo_url"] == string("https://huggingface.co/a/b-7B")
    path.write_text('{"general.nam": "x"}', encoding="utf-8")
    with pytest.raises(Usage, match=r"nearest such key is 'general\.name'"):
        read_overrides(path)
    for text in ("[]", "{", "\x80"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(Malformed):
            read_overrides(path)
    with pytest.raises(Usage):
        read_overrides(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "value", [None, "", "text", 1, 1.5, True, [], ["a"], [None], [[]], {}, {"a": {}}, [{"name": [1]}]]
)
def test_any_override_value_is_survived(tmp_path: Path, value: Any) -> None:
    described(model(tmp_path), overrides=dict.fromkeys(OVERRIDES, value))
