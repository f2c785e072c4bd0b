"""Vocabularies of GGUF files written as Hugging Face's files: reading those gives the same vocabulary."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import TokenType

import vocabularies
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.values import Metadata, array, i32, string, strings, u32
from ggufsmith.tokenizer.pretokenizers import TABLE, pre_tokenizer_of, stages_of
from ggufsmith.tokenizer.proto import model_proto
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.restore import ends_of_generation, vocabulary_of
from ggufsmith.tokenizer.spm import parse_pieces
from ggufsmith.tokenizer.vocabulary import Vocabulary
from ggufsmith.tokenizer.write import tokenizer_files

GPT2 = Vocabulary(
    model="gpt2",
    pre="qwen2",
    tokens=("a", "b", "ab", "<x>", "<|end|>"),
    types=np.array([1, 1, 1, 4, 3], np.int32),
    merges=("a b",),
    special={"eos": 4},
)


def read(folder: Path, size: int, **ids: int) -> Vocabulary:
    config = {"vocab_size": size, **{f"{role}_token_id": token for role, token in ids.items()}}
    return read_vocabulary(folder, config=config, size=size, architecture="LlamaForCausalLM")


def written(vocabulary: Vocabulary, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files(vocabulary, "LlamaTokenizer", 2048).items():
        (folder / name).write_bytes(content)
    return folder


def again(vocabulary: Vocabulary, folder: Path) -> Vocabulary:
    ids = {role: vocabulary.special[role] for role in ("bos", "eos", "unk", "pad") if role in vocabulary.special}
    return read(written(vocabulary, folder), len(vocabulary.tokens), **ids)


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_keys_come_back(kind: str, tmp_path: Path) -> None:
    size = vocabularies.write(kind, tmp_path / "source")
    keys = read(tmp_path / "source", size).metadata()
    restored = vocabulary_of(keys, "m.gguf")
    assert restored.metadata() == keys
    assert again(restored, tmp_path / "back").metadata() == keys


def test_padding_and_holes_keep_every_id(tmp_path: Path) -> None:
    """Tokens behind a hole would be renumbered by the tokenizers library if the vocabulary did not hold them."""
    from tokenizers import Tokenizer

    tokens = ("a", "[PAD1]", "b", "ab", "<x>", "[PAD5]", "<|end|>", "[PAD7]")
    holed = replace(GPT2, tokens=tokens, types=np.array([1, 5, 1, 1, 4, 5, 3, 5], np.int32), special={"eos": 6})
    folder = written(holed, tmp_path / "back")
    assert read(folder, 8, eos=6).tokens == tokens
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert library.encode("abb<x><|end|>").ids == [3, 2, 4, 6]


def test_added_tokens_behind_the_vocabulary_are_not_in_it(tmp_path: Path) -> None:
    whole = json.loads(tokenizer_files(GPT2, "", 1)["tokenizer.json"])
    assert whole["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2}
    assert [(t["id"], t["content"], t["special"]) for t in whole["added_tokens"]] == [
        (3, "<x>", False),
        (4, "<|end|>", True),
    ]
    assert whole["normalizer"] == {"type": "NFC"}
    assert again(GPT2, tmp_path / "back").metadata() == GPT2.metadata()


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_what_is_added_around_a_text(bos: bool, eos: bool, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    vocabulary = replace(GPT2, special={"bos": 3, "eos": 4}, add={"bos": bos, "eos": eos})
    folder = written(vocabulary, tmp_path / "back")
    expected = [3] * bos + [2] + [4] * eos
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("ab").ids == expected
    assert read(folder, 5, bos=3, eos=4).add == {"bos": bos, "eos": eos}


def test_templates_and_infill_tokens_come_back(tmp_path: Path) -> None:
    vocabulary = replace(
        GPT2, special={"eos": 4, "fim_pre": 3}, chat_template="{{ a }}", chat_templates={"tool_use": "{{ b }}"}
    )
    assert again(vocabulary, tmp_path / "back").metadata() == vocabulary.metadata()


def test_ends_of_generation_are_those_at_which_llama_cpp_stops() -> None:
    tokens = ("a", "<|im_end|>", "<|endoftext|>", "<stop>")
    vocabulary = replace(GPT2, tokens=tokens, types=np.array([1, 3, 3, 3], np.int32), special={"eos": 2, "eot": 3})
    assert ends_of_generation(vocabulary) == (2, 3, 1)


def spm(tokens: tuple[str, ...], types: list[int], scores: list[float] | None = None, **changes: Any) -> Vocabulary:
    values = np.array(scores or [0.0] * len(tokens), np.float32)
    return Vocabulary("llama", "default", tokens, np.array(types, np.int32), values, **changes)


def test_sentencepiece_finds_user_defined_tokens_in_its_own_spelling(tmp_path: Path) -> None:
    tokens = ("<unk>", "▁", "a", "▁a", "   ", "<x y>")
    vocabulary = spm(tokens, [2, 1, 1, 1, 4, 4], [0, -1, -2, -3, -1000, -1000], special={"unk": 0})
    folder = written(vocabulary, tmp_path / "back")
    pieces = parse_pieces((folder / "tokenizer.model").read_bytes(), folder)
    assert pieces.tokens == ["<unk>", "▁", "a", "▁a"]  # the last two are added tokens
    moved = replace(vocabulary, tokens=(*tokens, "b"), types=np.array([2, 1, 1, 1, 4, 4, 1], np.int32))
    moved = replace(moved, scores=np.array([0, -1, -2, -3, -1000, -1000, -4], np.float32))
    folder = written(moved, tmp_path / "moved")
    assert parse_pieces((folder / "tokenizer.model").read_bytes(), folder).tokens[4:6] == ["▁▁▁", "<x▁y>"]
    assert read(folder, 7, unk=0).metadata() == moved.metadata()


def test_a_score_that_looks_like_that_of_an_added_token_is_kept(tmp_path: Path) -> None:
    vocabulary = spm(("<unk>", "a", "b"), [2, 1, 1], [0, -1000, -3], special={"unk": 0})
    assert again(vocabulary, tmp_path / "back").metadata() == vocabulary.metadata()


def test_the_unknown_token_is_found_by_name() -> None:
    pieces = parse_pieces(
        tokenizer_files(spm(("<s>", "<unk>", "a"), [3, 3, 1]), "LlamaTokenizer", 1)["tokenizer.model"], Path()
    )
    assert pieces.types == [TokenType.CONTROL, TokenType.UNKNOWN, TokenType.NORMAL]
    with pytest.raises(Unsupported, match="no unknown token"):
        tokenizer_files(spm(("a", "b"), [1, 1]), "LlamaTokenizer", 1)


def test_proto_by_hand() -> None:
    """One piece, as protobuf's documentation encodes it: tag, length, then fields in order."""
    raw = model_proto([("ab", -2.0, TokenType.UNKNOWN)], {"unk": 0}, add_dummy_prefix=True)
    assert raw.startswith(b"\x0a\x0b\x0a\x02ab\x15\x00\x00\x00\xc0\x18\x02")
    assert raw.endswith(b"\x1a\x10\x0a\x08identity\x18\x01\x20\x00\x28\x01")


@pytest.mark.parametrize("row", [row for row in TABLE if row.stages], ids=lambda row: row.name)
def test_pre_tokenizers_are_written_as_they_are_recognised(row: Any) -> None:
    for stages in row.stages:
        assert stages_of({"pre_tokenizer": pre_tokenizer_of(stages)}, Path()) == stages


def test_what_no_tokenizer_json_can_say_is_refused() -> None:
    with pytest.raises(Unsupported, match="'sarvam-moe' cannot be written"):
        tokenizer_files(replace(GPT2, pre="sarvam-moe"), "", 1)
    with pytest.raises(Failure, match="does not accept this vocabulary"):
        tokenizer_files(replace(GPT2, merges=("a x",)), "", 1)


KEYS = GPT2.metadata()
BAD: dict[str, tuple[Metadata, type[Failure], str]] = {
    "no tokens": ({"tokenizer.ggml.tokens": u32(1)}, Malformed, "array of strings"),
    "bytes": ({"tokenizer.ggml.tokens": strings(["\udcff"] * 5)}, Unsupported, "not UTF-8"),
    "types too short": ({"tokenizer.ggml.token_type": array(np.ones(4, np.int32))}, Malformed, "array of 5 numbers"),
    "no such type": ({"tokenizer.ggml.token_type": array(np.full(5, 9, np.int32))}, Malformed, "not a token type"),
    "id of another type": ({"tokenizer.ggml.eos_token_id": string("x")}, Malformed, "holds STRING"),
    "no merges": ({"tokenizer.ggml.merges": i32(1)}, Malformed, "array of strings"),
    "model": ({"tokenizer.ggml.model": string("rwkv")}, Unsupported, "only llama, gpt2, gemma4, bert, t5"),
    "scores not finite": (
        {
            "tokenizer.ggml.model": string("llama"),
            "tokenizer.ggml.scores": array(np.array([0, np.nan, 0, 0, 0], np.float32)),
        },
        Malformed,
        "not finite",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_keys_are_refused(name: str) -> None:
    change, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        vocabulary_of({**KEYS, **change}, "m.gguf")


def test_ids_outside_the_vocabulary_mean_none() -> None:
    assert "eos" not in vocabulary_of({**KEYS, "tokenizer.ggml.eos_token_id": u32(2**32 - 1)}, "m.gguf").special
