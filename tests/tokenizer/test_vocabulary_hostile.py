"""Files that are damaged, contradictory or made to do harm: one typed error that names the file and the key."""

import json
import math
import os
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary_folders import Json, added, folder_of, made, read

from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.tokenizer.files import optional_bytes

JSON_FILES = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "is an array, expected an object"),
        (b"null", "is null, expected an object"),
        (b'"text"', "is a string, expected an object"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_files_that_are_no_objects(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(Malformed) as caught:
        read(folder)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path)
    content = (folder / "tokenizer.json").read_bytes()
    expected = read(folder).metadata()
    (folder / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert read(folder).metadata() == expected


def set_in(*path: Any, value: Any) -> Any:
    """An edit that sets one value deep in the file; Ellipsis as value removes the key."""

    def edit(whole: Any) -> None:
        for key in path[:-1]:
            whole = whole[key]
        if value is ...:
            del whole[path[-1]]
        else:
            whole[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model"], ..., "model is null"),
        (["model"], [], "model is an array"),
        (["model", "vocab"], ..., "model.vocab is null"),
        (["model", "vocab"], [["a", 0]], "model.vocab is an array"),
        (["model", "vocab"], {}, "model.vocab is empty"),
        (["model", "vocab", "a"], "7", "model.vocab['a'] is '7'"),
        (["model", "vocab", "a"], True, "model.vocab['a'] is True"),
        (["model", "vocab", "a"], 1.0, "model.vocab['a'] is 1.0"),
        (["model", "vocab", "a"], -1, "id -1"),
        (["model", "vocab", "a"], 10**12, "id 1000000000000"),
        (["model", "vocab", "a"], 66, "gives the id 66 to"),
        (["model", "vocab", "\ud800"], 599, "id 599"),
        (["model", "merges"], ..., "model.merges is null"),
        (["model", "merges"], {"a": "b"}, "model.merges is an object"),
        (["model", "merges", 0], "a", "model.merges[0]"),
        (["model", "merges", 0], "a b c", "model.merges[0]"),
        (["model", "merges", 0], ["a"], "model.merges[0]"),
        (["model", "merges", 0], ["a", 3], "model.merges[0]"),
        (["model", "merges", 0], 3, "model.merges[0]"),
        (["model", "merges", 0], ["qqqq", "a"], "needs the token 'qqqq'"),
        (["model", "merges", 0], ["q", "z"], "needs the token 'qz'"),
        (["model", "byte_fallback"], 1, "model.byte_fallback is an integer"),
        (["model", "ignore_merges"], "no", "model.ignore_merges is a string"),
        (["model", "unk_token"], 3, "model.unk_token is an integer"),
        (["added_tokens"], {"a": 1}, "added_tokens is an object"),
        (["added_tokens", 0], "a", "added_tokens[0] is a string"),
        (["added_tokens", 0, "id"], ..., "added_tokens[0].id is null"),
        (["added_tokens", 0, "id"], "600", "added_tokens[0].id is a string"),
        (["added_tokens", 0, "id"], -1, "id -1"),
        (["added_tokens", 0, "id"], 2**40, "id 1099511627776"),
        (["added_tokens", 0, "id"], 601, "the id 601 is given to"),
        (["added_tokens", 0, "content"], ..., "added_tokens[0].content is null"),
        (["added_tokens", 0, "content"], "", "added_tokens[0] is empty"),
        (["added_tokens", 0, "content"], "\udc80", "half of a surrogate pair"),
        (["added_tokens", 0, "special"], "yes", "special is a string"),
        (["normalizer"], "NFC", "normalizer is a string"),
        (["normalizer"], {"type": "Sequence", "normalizers": [1]}, "normalizer.normalizers is an integer"),
        (["post_processor"], [], "post_processor is an array"),
        (["post_processor"], {"type": "Sequence", "processors": {}}, "post_processor.processors is an object"),
        (["post_processor"], {"type": "Sequence", "processors": [3]}, "post_processor.processors is an integer"),
        (["post_processor"], {"type": "BertProcessing", "sep": "x"}, "post_processor.cls is null"),
        (["post_processor"], {"type": "BertProcessing", "cls": ["x", 0], "sep": []}, "post_processor.sep[0] is null"),
        (["post_processor"], {"type": "TemplateProcessing", "single": 3}, "post_processor.single is an integer"),
        (["post_processor"], {"type": "TemplateProcessing", "single": [3]}, "post_processor.single is an integer"),
        (
            ["post_processor"],
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": 3}}]},
            "post_processor.single.id is an integer",
        ),
    ],
)
def test_damaged_tokenizer_json(path: list[Any], value: Any, message: str, tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    set_in(*path, value=value)(whole)
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(Malformed) as caught:
        read(folder)
    assert message in str(caught.value)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model", "type"], "WordLevel", "'WordLevel'"),
        (["model", "type"], "WordPiece", "BertPreTokenizer"),
        (["model", "continuing_subword_prefix"], "##", "'##'"),
        (["model", "end_of_word_suffix"], "</w>", "'</w>'"),
    ],
)
def test_kinds_that_llama_cpp_cannot_hold(path: list[Any], value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=message):
        read(folder_of("qwen2-bpe", tmp_path, tokenizer=set_in(*path, value=value)))


def test_a_merge_with_a_plain_space(tmp_path: Path) -> None:
    """GGUF separates the two sides of a merge with one."""

    def spaced(tokenizer: Json) -> None:
        tokenizer["model"]["vocab"] |= {"a b": 600, "a bc": 601}
        tokenizer["model"]["merges"].append(["a b", "c"])
        tokenizer["added_tokens"] = []

    with pytest.raises(Unsupported, match="merges a plain space"):
        read(folder_of("qwen2-bpe", tmp_path, tokenizer=spaced))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("added_tokens_decoder", [], "added_tokens_decoder is an array"),
        ("added_tokens_decoder", {"x": {"content": "a"}}, "not a token id"),
        ("added_tokens_decoder", {"-1": {"content": "a"}}, "not a token id"),
        ("added_tokens_decoder", {"9" * 9: {"content": "a"}}, "id 999999999"),
        ("added_tokens_decoder", {"604": 3}, "content"),
        ("added_tokens_decoder", {"604": {}}, "content is null"),
        ("bos_token", 3, "bos_token is an integer"),
        ("bos_token", {"content": 3}, "bos_token.content is an integer"),
        ("add_bos_token", "yes", "add_bos_token is a string"),
        ("add_prefix_space", 1, "add_prefix_space is an integer"),
        ("additional_special_tokens", "<a>", "additional_special_tokens is a string"),
        ("extra_special_tokens", [3], "extra_special_tokens is an integer"),
    ],
)
def test_damaged_tokenizer_config(key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed) as caught:
        read(folder_of("qwen2-bpe", tmp_path, tokenizer_config=set_in(key, value=value)))
    assert message in str(caught.value)
    assert "tokenizer_config.json" in str(caught.value)


@pytest.mark.parametrize("value", ["many", 0, -5, 2**40, 3.5, True])
def test_damaged_vocab_size(value: object, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"config\.json: vocab_size is"):
        read(folder_of("qwen2-bpe", tmp_path), config={"vocab_size": value})


def test_two_tokens_with_the_same_text(tmp_path: Path) -> None:
    """llama.cpp aborts on such a file."""
    folder = folder_of("llama-spm", tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["added_tokens_decoder"]["904"] = {"content": "[INST]", "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(Malformed, match=r"tokens 900 and 904 are both '\[INST\]'"):
        read(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04" + bytes(100), b"{}", b"version https://git-lfs"])
def test_a_tokenizer_model_that_is_none(content: bytes, tmp_path: Path) -> None:
    folder = folder_of("llama-spm", tmp_path)
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(Malformed, match=r"tokenizer\.model: "):
        read(folder)


@pytest.mark.parametrize("cut", [1, 100, 5000, 13000])
def test_a_truncated_tokenizer_model(cut: int, tmp_path: Path) -> None:
    folder = folder_of("llama-spm", tmp_path)
    whole = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(whole[:cut])
    with pytest.raises(Malformed, match=r"tokenizer\.model: "):
        read(folder)


def test_a_score_that_is_no_number(tmp_path: Path) -> None:
    folder = folder_of("gemma-spm", tmp_path)
    model = (folder / "tokenizer.model").read_bytes()
    scored = b"<unused0>\x15"
    (folder / "tokenizer.model").write_bytes(model.replace(scored + bytes(4), scored + struct.pack("<f", math.nan)))
    with pytest.raises(Malformed, match=r"tokenizer\.model: a score is not finite"):
        read(folder)


def test_damaged_added_tokens_json(tmp_path: Path) -> None:
    folder = folder_of("llama-spm", tmp_path, added_tokens=lambda a: a.update({"<x>": "904"}))
    with pytest.raises(Malformed, match=r"added_tokens\.json"):
        read(folder)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path)
    with pytest.raises(Malformed, match="more than the 100 read at most"):
        optional_bytes(folder, "tokenizer.json", limit=100)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    folder = folder_of("qwen2-bpe", tmp_path)
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")
    assert read(folder).tokens


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
QWEN2 = {name: json.loads(content) for name, content in made("qwen2-bpe")[1].items()}


def paths(value: Any) -> list[list[Any]]:
    """All paths into a JSON value, long objects and arrays cut short."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [[], *([key, *rest] for key, inner in entries[:12] for rest in paths(inner))]


PATHS = [(name, path) for name, value in QWEN2.items() for path in paths(value)]


@settings(deadline=None, max_examples=250)
@given(st.sampled_from(PATHS), VALUES)
def test_any_value_anywhere_gives_a_vocabulary_or_one_failure(place: tuple[str, list[Any]], value: Any) -> None:
    name, path = place
    whole = json.loads(json.dumps(QWEN2[name]))
    if path:
        set_in(*path, value=value)(whole)
    else:
        whole = value
    with TemporaryDirectory() as scratch:
        folder = folder_of("qwen2-bpe", Path(scratch))
        (folder / name).write_text(json.dumps(whole), encoding="utf-8")
        try:
            read(folder).metadata()
        except Failure as failure:
            assert failure.where or failure.fix


def test_the_example_is_read_without_a_change(tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=lambda t: t["added_tokens"].append(added(604, "<x>")))
    assert read(folder).tokens[604] == "<x>"
