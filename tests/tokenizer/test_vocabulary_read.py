"""Tokens, types, scores and merges of every kind of folder."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import Keys, TokenType
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer
from vocabulary_folders import Json, added, folder_of, made, put, read

import vocabularies
from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.layout import lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.tokenizer.read import read_vocabulary

KEY = Keys.Tokenizer


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_metadata_survives_a_gguf_file(kind: str, tmp_path: Path) -> None:
    metadata = read(folder_of(kind, tmp_path / "model")).metadata()
    path = tmp_path / "v.gguf"
    path.write_bytes(lay_out(metadata, []).header)
    with open_gguf(path) as file:
        assert dict(file.metadata) == metadata
    assert list(metadata)[:3] == [KEY.MODEL, KEY.PRE, KEY.LIST]


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_as_many_tokens_as_the_fixture_says(kind: str, tmp_path: Path) -> None:
    size, _ = made(kind)
    vocabulary = read(folder_of(kind, tmp_path))
    assert len(vocabulary.tokens) == len(vocabulary.types) == size
    assert TokenType.UNUSED not in vocabulary.types
    assert vocabulary.notes == ()


def test_a_sentencepiece_model_keeps_pieces_scores_and_types(tmp_path: Path) -> None:
    vocabulary = read(folder_of("llama-spm", tmp_path))
    assert (vocabulary.model, vocabulary.pre, vocabulary.merges) == ("llama", "default", ())
    assert vocabulary.tokens[:3] == ("<unk>", "<s>", "</s>")
    assert vocabulary.tokens[3:259] == tuple(f"<0x{byte:02X}>" for byte in range(256))
    assert set(vocabulary.types[3:259].tolist()) == {TokenType.BYTE}
    assert vocabulary.types[:3].tolist() == [TokenType.CONTROL] * 3
    assert vocabulary.types[900:].tolist() == [TokenType.CONTROL] * 2 + [TokenType.USER_DEFINED] * 2
    assert vocabulary.scores is not None
    assert vocabulary.scores[259:263].tolist() == [0.0, -1.0, -2.0, -3.0]
    assert vocabulary.scores[900:].tolist() == [-1000.0] * 4
    assert vocabulary.scores.dtype == np.float32


def test_without_added_tokens_the_types_are_those_of_the_model(tmp_path: Path) -> None:
    folder = folder_of("llama-spm", tmp_path)
    (folder / "tokenizer_config.json").unlink()
    types = read(folder).types
    assert types[:3].tolist() == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]


def test_gemma_adds_no_space_and_shows_spaces_as_spaces(tmp_path: Path) -> None:
    vocabulary = read(folder_of("gemma-spm", tmp_path))
    assert vocabulary.add_space_prefix is False
    assert vocabulary.tokens[9:11] == ("   ", "    ")
    assert vocabulary.types[9:11].tolist() == [TokenType.USER_DEFINED] * 2
    unused = vocabulary.tokens.index("<unused0>")
    assert vocabulary.types[unused] == TokenType.CONTROL  # not marked special by its publisher


def test_byte_fallback_bpe_becomes_a_scored_vocabulary(tmp_path: Path) -> None:
    """The merge ranks order the tokens as the SentencePiece model they were made from does."""
    scored = read(folder_of("llama-bpe-fallback", tmp_path / "bpe"))
    source = read(folder_of("llama-spm", tmp_path / "spm"))
    assert (scored.model, scored.merges, scored.tokens) == ("llama", (), source.tokens)
    assert scored.types.tolist() == source.types.tolist()
    assert scored.scores is not None and source.scores is not None
    merged = source.scores[259:900] > source.scores[259:900].min()
    assert scored.scores[259] == 0.0
    assert (np.diff(scored.scores[259:900][merged][:300]) < 0).all()


def test_the_first_merge_of_a_token_gives_its_score(tmp_path: Path) -> None:
    def two_ways(tokenizer: Json) -> None:
        tokenizer["added_tokens"] = []
        tokenizer["model"] |= {
            "vocab": {"<unk>": 0, "a": 1, "b": 2, "c": 3, "bc": 4, "abc": 5, "ab": 6, "<0x41>": 7},
            "merges": [["b", "c"], ["a", "bc"], ["a", "b"], ["ab", "c"]],
        }

    vocabulary = read(folder_of("llama-bpe-fallback", tmp_path, tokenizer=two_ways, tokenizer_config=dict.clear))
    assert vocabulary.scores is not None
    assert vocabulary.scores[:8].tolist() == [-4.0, -4.0, -4.0, -4.0, 0.0, -1.0, -2.0, 0.0]


def test_pieces_beyond_the_embedding_are_left_out(tmp_path: Path) -> None:
    vocabulary = read(folder_of("llama-spm", tmp_path), size=880)
    assert len(vocabulary.tokens) == len(vocabulary.types) == 880
    assert any("the last 20 are left out" in note for note in vocabulary.notes)


def test_an_unused_piece(tmp_path: Path) -> None:
    folder = folder_of("gemma-spm", tmp_path)
    model = (folder / "tokenizer.model").read_bytes()
    piece = b"<unused0>\x15" + bytes(4) + b"\x18"
    (folder / "tokenizer.model").write_bytes(model.replace(piece + b"\x04", piece + b"\x05"))
    put(folder, "tokenizer_config.json", {})
    assert read(folder).types[6] == TokenType.UNUSED


def test_merges_as_strings_and_as_pairs_are_the_same(tmp_path: Path) -> None:
    """transformers writes pairs since 4.45 (llama.cpp issue 9696)."""

    def join(tokenizer: Json) -> None:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]

    pairs = read(folder_of("llama3-bpe", tmp_path / "pairs"))
    strings = read(folder_of("llama3-bpe", tmp_path / "strings", tokenizer=join))
    assert pairs.merges == strings.merges
    assert pairs.metadata() == strings.metadata()
    assert all(merge.count(" ") == 1 for merge in pairs.merges)


def test_a_llama_class_with_byte_level_bpe_is_gpt2(tmp_path: Path) -> None:
    """llama.cpp issue 2865."""
    vocabulary = read(folder_of("llama3-bpe", tmp_path), architecture="LlamaForCausalLM")
    assert (vocabulary.model, vocabulary.pre, vocabulary.scores) == ("gpt2", "llama-bpe", None)


def test_a_padded_vocabulary_is_filled_with_unused_tokens(tmp_path: Path) -> None:
    """config 152064, tokenizer 151665 (mergekit issue 425): the ids in between have names of their own."""
    folder = folder_of("qwen2-bpe", tmp_path)
    vocabulary = read(folder, config={"vocab_size": 640})
    assert vocabulary.tokens[604:] == tuple(f"[PAD{i}]" for i in range(604, 640))
    assert set(vocabulary.types[604:].tolist()) == {TokenType.UNUSED}
    assert vocabulary.types[603] == TokenType.USER_DEFINED
    assert any("36 of 640" in note for note in vocabulary.notes)


def test_padding_of_a_scored_vocabulary(tmp_path: Path) -> None:
    vocabulary = read(folder_of("llama-spm", tmp_path), config={"vocab_size": 960})
    assert vocabulary.tokens[959] == "[PAD959]"
    assert vocabulary.scores is not None and vocabulary.scores[959] == -10000.0


def test_the_embedding_decides_over_the_config(tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path)
    vocabulary = read(folder, config={"vocab_size": 604}, size=608)
    assert len(vocabulary.tokens) == 608
    assert any("604" in note and "608" in note for note in vocabulary.notes)
    assert len(read(folder, config={"text_config": {"vocab_size": 610}}).tokens) == 610


@pytest.mark.parametrize("kind", ["qwen2-bpe", "llama-spm", "llama-bpe-fallback"])
def test_added_tokens_beyond_the_embedding_are_left_out(kind: str, tmp_path: Path) -> None:
    """llama.cpp issue 8682."""
    size, _ = made(kind)
    vocabulary = read(folder_of(kind, tmp_path), size=size - 1)
    assert len(vocabulary.tokens) == size - 1
    assert any("no row in the embedding" in note for note in vocabulary.notes)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"goes up to id 599, but the embedding has 500 rows"):
        read(folder_of("qwen2-bpe", tmp_path), size=500)


def test_ids_need_not_be_contiguous(tmp_path: Path) -> None:
    """The ids of the file are kept, although the tokenizers library counts on from the last one; it is reported."""

    def move(tokenizer: Json) -> None:
        tokenizer["added_tokens"].append(added(700, "<far>"))

    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=move)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<far>") == 604
    vocabulary = read(folder)
    assert any("700" in note and "renumber" in note for note in vocabulary.notes)
    assert (len(vocabulary.tokens), vocabulary.tokens[700], vocabulary.tokens[650]) == (701, "<far>", "[PAD650]")


def test_added_tokens_of_the_decoder_alone_count(tmp_path: Path) -> None:
    def more(config: Json) -> None:
        config["added_tokens_decoder"]["604"] = {"content": "<tool>", "special": False}

    vocabulary = read(folder_of("qwen2-bpe", tmp_path, tokenizer_config=more))
    assert (vocabulary.tokens[604], vocabulary.types[604]) == ("<tool>", TokenType.USER_DEFINED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("extra_special_tokens", ["<a>"]),
        ("extra_special_tokens", {"image": "<a>"}),
        ("additional_special_tokens", ["<a>"]),
    ],
)
def test_extra_special_tokens_may_be_a_list(key: str, value: object, tmp_path: Path) -> None:
    """A list crashed AutoTokenizer (llama.cpp issue 18065). What is listed is special."""
    folder = folder_of(
        "qwen2-bpe",
        tmp_path,
        tokenizer=lambda t: t["added_tokens"].append(added(604, "<a>")),
        tokenizer_config=lambda c: c.update({key: value}),
    )
    assert read(folder).types[604] == TokenType.CONTROL


def test_a_text_has_one_id_as_in_the_tokenizers_library(tmp_path: Path) -> None:
    """The vocabulary's, or that of the first added token (Yi lists one twice)."""

    def twice(tokenizer: Json) -> None:
        tokenizer["added_tokens"] += [added(604, "<x>"), added(605, "<x>"), added(606, "'ll")]

    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=twice)
    vocabulary = read(folder)
    ids = [vocabulary.tokens.index(text) for text in ("'ll", "<x>")]
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("'ll<x>").ids == ids
    assert vocabulary.tokens[604:] == ("<x>", "[PAD605]", "[PAD606]")
    assert vocabulary.types[ids[0]] == TokenType.USER_DEFINED


@pytest.mark.parametrize("text", ["<|fim_prefix|>", "<｜User｜>", "<unused7>", "<mask>", "<pad>"])
def test_tokens_that_look_special_are_control_tokens(text: str, tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=lambda t: t["added_tokens"].append(added(604, text)))
    assert read(folder).types[604] == TokenType.CONTROL


def test_user_defined_tokens_hold_plain_spaces(tmp_path: Path) -> None:
    """llama.cpp looks for them before it replaces spaces."""
    folder = folder_of("llama-bpe-fallback", tmp_path, tokenizer=lambda t: t["added_tokens"].append(added(904, "▁▁x")))
    assert read(folder).tokens[904] == "  x"


def test_vocab_json_and_merges_txt(tmp_path: Path) -> None:
    """Read as UTF-8 whatever the platform's default (llama.cpp issue 4566), with either line end."""
    whole = read(folder_of("qwen2-bpe", tmp_path / "json"))
    folder = folder_of("qwen2-bpe", tmp_path / "pairs")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    put(folder, "vocab.json", tokenizer["model"]["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer["model"]["merges"]), ""]
    for end in ("\n", "\r\n"):
        (folder / "merges.txt").write_bytes(end.join(lines).encode())
        assert read(folder).metadata() == whole.metadata()
    assert any("Ġ" in merge for merge in whole.merges)


def test_vocab_json_needs_a_class_that_says_how_text_is_split(tmp_path: Path) -> None:
    put(tmp_path, "vocab.json", {"a": 0})
    (tmp_path / "merges.txt").write_text("", encoding="utf-8")
    put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "OwnTokenizer"})
    with pytest.raises(Unsupported, match="OwnTokenizer"):
        read(tmp_path)


def test_a_folder_without_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"there is no vocabulary: no tokenizer\.json, tokenizer\.model"):
        read(tmp_path)


def test_a_rank_list_called_tokenizer_model_is_not_sentencepiece(tmp_path: Path) -> None:
    """Meta ships Llama 3 with one beside tokenizer.json."""
    folder = folder_of("llama3-bpe", tmp_path)
    expected = read(folder).metadata()
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    assert read(folder).metadata() == expected


def test_a_rank_list_alone_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(Unsupported, match="tiktoken"):
        read(tmp_path)


def test_a_model_that_llama_cpp_only_approximates_is_reported(tmp_path: Path) -> None:
    model, lines = io.BytesIO(), iter(vocabularies.corpus())
    SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=400, model_type="unigram", minloglevel=2
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    notes = " ".join(read(tmp_path).notes)
    assert "unigram" in notes
    assert "normalizes" in notes


def test_tokenizer_model_is_preferred(tmp_path: Path) -> None:
    folder = folder_of("llama3-bpe", tmp_path)
    (folder / "tokenizer.model").write_bytes(made("llama-spm")[1]["tokenizer.model"])
    put(folder, "tokenizer_config.json", {})
    assert read(folder).model == "llama"


def test_a_pre_override_is_refused_where_there_is_no_pretokenizer(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="byte-level BPE"):
        read(folder_of("llama-spm", tmp_path), pre="qwen2")


def test_byte_fallback_claimed_by_a_byte_level_vocabulary(tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=lambda t: t["model"].update(byte_fallback=True))
    assert read(folder).model == "gpt2"


def test_stages_that_llama_cpp_leaves_out_are_reported(tmp_path: Path) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    folder = folder_of("llama-bpe-fallback", tmp_path / "a", tokenizer=lambda t: t.update(pre_tokenizer=digits))
    assert any("Digits each" in note for note in read(folder).notes)
    folder = folder_of("qwen2-bpe", tmp_path / "b", tokenizer=lambda t: t.update(normalizer={"type": "Lowercase"}))
    assert any("Lowercase" in note for note in read(folder).notes)


def test_unknown_is_marked_where_it_is_no_added_token(tmp_path: Path) -> None:
    folder = folder_of("llama-bpe-fallback", tmp_path, tokenizer=lambda t: t.update(added_tokens=[]))
    put(folder, "tokenizer_config.json", {})
    assert read(folder).types[0] == TokenType.UNKNOWN


@pytest.mark.parametrize(
    ("prepended", "pre_tokenizer", "expected"),
    [
        (True, None, None),
        (False, None, False),
        (False, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, None),
        (False, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}, False),
    ],
)
def test_the_space_before_a_text_comes_from_the_structure(
    prepended: bool, pre_tokenizer: Json | None, expected: bool | None, tmp_path: Path
) -> None:
    def change(tokenizer: Json) -> None:
        tokenizer["pre_tokenizer"] = pre_tokenizer
        if not prepended:
            del tokenizer["normalizer"]["normalizers"][0]

    vocabulary = read(folder_of("llama-bpe-fallback", tmp_path, tokenizer=change), architecture="Qwen2ForCausalLM")
    assert vocabulary.add_space_prefix is expected
    assert (KEY.ADD_PREFIX in vocabulary.metadata()) == (expected is not None)


def test_two_reads_are_equal(tmp_path: Path) -> None:
    folder = folder_of("llama3-bpe", tmp_path)
    first, second = read(folder).metadata(), read(folder).metadata()
    assert first == second
    assert list(first) == list(second)


@pytest.mark.parametrize(("extra", "said"), [(-1, "extra_ids is -1"), (1 << 40, "extra_ids is"), (True, "extra_ids")])
def test_further_tokens_of_t5_that_cannot_be(extra: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(made("t5-unigram")[1]["spiece.model"])
    put(tmp_path, "tokenizer_config.json", {"extra_ids": extra})
    with pytest.raises(Malformed, match=said):
        read_vocabulary(tmp_path, config={"model_type": "t5"}, size=None, architecture="T5EncoderModel")


def test_pieces_of_t5_without_probabilities(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(made("llama-spm")[1]["tokenizer.model"])
    with pytest.raises(Unsupported, match="the pieces have no probabilities"):
        read_vocabulary(tmp_path, config={"model_type": "t5"}, size=None, architecture="T5EncoderModel")
