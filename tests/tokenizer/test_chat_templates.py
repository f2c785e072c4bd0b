"""Chat templates are copied from wherever they are, and never rendered."""

from dataclasses import replace
from pathlib import Path

import pytest
from gguf.constants import Keys
from vocabulary_folders import folder_of, put, read

from ggufsmith.container.errors import Malformed
from ggufsmith.tokenizer.templates import template_notes

KEY = Keys.Tokenizer
EVIL = "{{ ''.__class__.__mro__ }}\r\n{% raise %}{{ 'é🚀' }}"


def plain(folder: Path) -> Path:
    return folder_of("llama-spm", folder, tokenizer_config=lambda c: c.pop("chat_template"))


def test_a_string_in_the_config_is_copied_as_it_is(tmp_path: Path) -> None:
    vocabulary = read(folder_of("llama-spm", tmp_path, tokenizer_config=lambda c: c.update(chat_template=EVIL)))
    assert vocabulary.chat_template == EVIL
    assert vocabulary.metadata()[KEY.CHAT_TEMPLATE].data == EVIL


def test_named_templates(tmp_path: Path) -> None:
    entries = [{"name": n, "template": t} for n, t in (("default", "D"), ("tool use", "T"), ("rag", "R"))]
    folder = folder_of("llama-spm", tmp_path, tokenizer_config=lambda c: c.update(chat_template=entries))
    metadata = read(folder).metadata()
    assert metadata[KEY.CHAT_TEMPLATE].data == "D"
    assert metadata[KEY.CHAT_TEMPLATES].data == ("rag", "tool_use")
    assert metadata["tokenizer.chat_template.tool_use"].data == "T"
    named = [key for key in metadata if key.startswith("tokenizer.chat_template.")]
    assert named == ["tokenizer.chat_template.rag", "tokenizer.chat_template.tool_use"]
    assert metadata["tokenizer.chat_template.rag"].data == "R"


def test_named_templates_need_no_default(tmp_path: Path) -> None:
    entries = [{"name": "rag", "template": "R"}]
    folder = folder_of("llama-spm", tmp_path, tokenizer_config=lambda c: c.update(chat_template=entries))
    metadata = read(folder).metadata()
    assert KEY.CHAT_TEMPLATE not in metadata
    assert metadata[KEY.CHAT_TEMPLATES].data == ("rag",)


def test_a_file_of_its_own(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    (folder / "chat_template.jinja").write_bytes(EVIL.encode())
    assert read(folder).chat_template == EVIL.replace("\r\n", "\n")


ENDS = "{% if a %}\r\n{{ b }}\r{{ '\\r\\n' }}\n{% endif %}"


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["", "byte order mark"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_line_ends_of_files_are_those_that_every_reader_sees(name: str, start: str, tmp_path: Path) -> None:
    """transformers and llama.cpp's converter open these files as text."""
    folder = plain(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes((start + ENDS).encode())
    vocabulary = read(folder)
    found = vocabulary.chat_template if name == "chat_template.jinja" else vocabulary.chat_templates["rag"]
    assert found == (folder / name).read_text(encoding="utf-8-sig") == ENDS.replace("\r\n", "\n").replace("\r", "\n")


def test_templates_that_differ_in_their_line_ends_only_do_not_differ(tmp_path: Path) -> None:
    """A template in a JSON file is copied as it is: whatever renders it takes either line end for the same."""
    folder = folder_of("llama-spm", tmp_path, tokenizer_config=lambda c: c.update(chat_template=ENDS))
    (folder / "chat_template.jinja").write_bytes(ENDS.replace("\r\n", "\n").encode())
    vocabulary = read(folder)
    assert vocabulary.chat_template == ENDS
    assert vocabulary.notes == ()


def test_templates_without_a_default_are_said(tmp_path: Path) -> None:
    vocabulary = read(plain(tmp_path))
    assert list(template_notes(vocabulary)) == []
    assert list(template_notes(replace(vocabulary, chat_template="x"))) == []
    named = replace(vocabulary, chat_templates={"rag": "x"})
    assert ["'rag'" in note and "no default" in note for note in template_notes(named)] == [True]


def test_additional_files_in_a_fixed_order(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    (folder / "chat_template.jinja").write_text("D", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    for name in ("z", "a"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(name.upper(), encoding="utf-8")
    vocabulary = read(folder)
    assert vocabulary.chat_template == "D"
    assert list(vocabulary.metadata()[KEY.CHAT_TEMPLATES].data) == ["a", "z"]


def test_a_json_file_of_its_own(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    put(folder, "chat_template.json", {"chat_template": "J"})
    assert read(folder).chat_template == "J"
    (folder / "chat_template.jinja").write_text("D", encoding="utf-8")
    assert read(folder).chat_template == "D"


def test_the_config_wins_and_the_difference_is_reported(tmp_path: Path) -> None:
    folder = folder_of("llama-spm", tmp_path)
    (folder / "chat_template.jinja").write_text("other", encoding="utf-8")
    vocabulary = read(folder)
    assert vocabulary.chat_template != "other"
    assert any("two chat templates differ" in note for note in vocabulary.notes)


def test_a_null_in_the_config_is_no_template(tmp_path: Path) -> None:
    folder = folder_of("llama-spm", tmp_path, tokenizer_config=lambda c: c.update(chat_template=None))
    (folder / "chat_template.jinja").write_text("D", encoding="utf-8")
    assert read(folder).chat_template == "D"


T = "T"
DAMAGED = [
    *(3, {"default": T}, [T], [{"name": "a"}], [{"template": T}]),
    *([{"name": 3, "template": T}], [{"name": "", "template": T}]),
    [{"name": "a b", "template": "1"}, {"name": "a_b", "template": "2"}],
]


@pytest.mark.parametrize("value", DAMAGED)
def test_damaged_templates(value: object, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"tokenizer_config\.json"):
        read(folder_of("llama-spm", tmp_path, tokenizer_config=lambda c: c.update(chat_template=value)))


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"ok \xff")
    with pytest.raises(Malformed, match=r"chat_template\.jinja: not UTF-8 at byte 3"):
        read(folder)


def link(source: Path, target: Path) -> None:
    try:
        source.symlink_to(target)
    except OSError:
        pytest.skip("this system does not let the tests make symbolic links")


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "tokenizer.model"])
def test_a_link_out_of_the_folder_is_not_followed(name: str, tmp_path: Path) -> None:
    """A template linked to a private file would put it into the model."""
    folder = plain(tmp_path / "model")
    secret = tmp_path / "secret"
    secret.write_text("{}", encoding="utf-8")
    (folder / name).unlink(missing_ok=True)
    link(folder / name, secret)
    with pytest.raises(Malformed, match="outside the model folder"):
        read(folder)


def test_links_into_the_blobs_of_the_cache_are_followed(tmp_path: Path) -> None:
    snapshot = plain(tmp_path / "snapshots" / "abc")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1f").write_text("D", encoding="utf-8")
    link(snapshot / "chat_template.jinja", Path("../../blobs/1f"))
    assert read(snapshot).chat_template == "D"


def test_a_folder_of_templates_outside_is_not_read(tmp_path: Path) -> None:
    folder = plain(tmp_path / "model")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.jinja").write_text("secret", encoding="utf-8")
    link(folder / "additional_chat_templates", outside)
    assert read(folder).chat_templates == {}
