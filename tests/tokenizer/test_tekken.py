"""tekken.json as the vocabulary of a folder; damaged ones are errors that say where."""

import base64
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import TokenType

import tekken
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.vocabulary import Vocabulary


def read(folder: Path, size: int | None = None) -> Vocabulary:
    return read_vocabulary(folder, config={}, size=size, architecture="MistralForCausalLM")


def test_special_tokens_come_first_and_only_as_many_as_count(tmp_path: Path) -> None:
    size = tekken.write(tmp_path)
    found = read(tmp_path)
    assert len(found.tokens) == size
    assert found.tokens[: len(tekken.NAMED)] == tuple(tekken.NAMED)
    assert found.tokens[tekken.SPECIAL - 1] == f"<SPECIAL_{tekken.SPECIAL - 1}>"
    assert set(found.types[: tekken.SPECIAL]) == {TokenType.CONTROL}
    assert set(found.types[tekken.SPECIAL :]) == {TokenType.NORMAL}
    assert found.tokens[tekken.SPECIAL + 0x20] == "Ġ"
    assert (found.model, found.pre) == ("gpt2", "tekken")
    assert found.special == {"bos": 1, "eos": 2, "unk": 0, "pad": 11}
    assert found.add == {"bos": True}
    assert not found.notes


def test_every_token_is_made_of_two(tmp_path: Path) -> None:
    tekken.write(tmp_path)
    found = read(tmp_path)
    made = {merge.replace(" ", "") for merge in found.merges}
    assert made == set(found.tokens[tekken.SPECIAL + 256 :])


def test_old_files_list_no_special_tokens(tmp_path: Path) -> None:
    tekken.write(tmp_path, special_tokens=None)
    found = read(tmp_path)
    assert found.tokens[:3] == ("<unk>", "<s>", "</s>")
    assert found.tokens[20] == "<SPECIAL_20>"


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    tekken.write(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Malformed, match=r"tokenizer\.json"):
        read(tmp_path)


def entry(rank: int, token: bytes = b"a") -> dict[str, Any]:
    return {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}


def config(**changes: Any) -> dict[str, Any]:
    sizes = {"default_num_special_tokens": 2, "default_vocab_size": 4}
    return {"config": {"pattern": tekken.PATTERN, **sizes, **changes}}


def special(*texts: Any) -> dict[str, Any]:
    return {"special_tokens": [{"rank": rank, "token_str": text} for rank, text in enumerate(texts)]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": []}, "config is an array, expected an object"),
        (config(default_vocab_size=None), r"config\.default_vocab_size is null"),
        (config(default_vocab_size=1 << 40), "outside 1"),
        (config(default_vocab_size=1), "there are 2 special tokens"),
        ({**config(pattern=3), **special("c", "d"), "vocab": [entry(0), entry(1, b"b")]}, r"config\.pattern is an"),
        ({**config(), **special("a", "b", "c")}, "3 special tokens, but default_num_special_tokens is 2"),
        ({**config(), **special("a", "a")}, "'a' occurs twice"),
        ({**config(), **special("a", 4)}, r"special_tokens\[1\]\.token_str is an integer"),
        ({**config(), "special_tokens": [{"rank": 1, "token_str": "a"}]}, r"special_tokens\[0\] has the rank 1"),
        (
            {**config(), **special("a", "b"), "vocab": [entry(0)]},
            "1 tokens in vocab, but default_vocab_size asks for 2",
        ),
        ({**config(), **special("a", "b"), "vocab": [entry(0), entry(2)]}, r"vocab\[1\] has the rank 2"),
        ({**config(), **special("a", "b"), "vocab": [entry(0), entry(1)]}, r"vocab\[1\] is the same token"),
        ({**config(), **special("a", "b"), "vocab": [entry(0), entry(1, b"")]}, "empty token"),
        ({**config(), **special("c", "b"), "vocab": [entry(0), entry(1, b"b")]}, "'b' is an ordinary token as well"),
        ({**config(), **special("a", "b"), "vocab": [{"rank": 0, "token_bytes": "!"}] * 2}, "not base64"),
        ({**config(), **special("a", "b"), "vocab": [3, 4]}, r"vocab\[0\] is an integer"),
        ({**config(), **special("a", "b"), "vocab": {}}, "vocab is an object"),
    ],
)
def test_damaged_files(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tekken.write(tmp_path, **changes)
    with pytest.raises(Malformed, match=message) as caught:
        read(tmp_path)
    assert str(caught.value.where).endswith("tekken.json")


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    tekken.write(tmp_path)
    with pytest.raises(Malformed, match="the embedding has 100 rows") as caught:
        read(tmp_path, 100)
    assert str(caught.value.where).endswith("tekken.json")


def test_another_pattern(tmp_path: Path) -> None:
    size = tekken.write(tmp_path)
    count = tekken.SPECIAL
    tekken.write(tmp_path, **config(pattern="[a-z]+", default_vocab_size=size, default_num_special_tokens=count))
    with pytest.raises(Unsupported, match="no pre-tokenizer that splits text like this one"):
        read(tmp_path)
