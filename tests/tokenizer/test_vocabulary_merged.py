"""Tokens that were added to a vocabulary: every file of a folder that names them counts, and what they say is one view.

unslothai/unsloth issue 5070: transformers 5 writes them into tokenizer.json and nowhere else.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import TokenType
from vocabulary_folders import Json, put, read

import vocabularies
from ggufsmith.container.errors import Malformed
from ggufsmith.tokenizer.vocabulary import Vocabulary

JSON, DECODER, ADDED, MAP, EXTRA = vocabularies.SOURCES
TOKENS: Mapping[str, Json] = {"<turn>": {"special": True}, "<think>": {"special": False}}


def edit(folder: Path, name: str, change: Any) -> None:
    whole = json.loads((folder / name).read_text(encoding="utf-8"))
    change(whole)
    put(folder, name, whole)


def kinds(vocabulary: Vocabulary, first: int) -> Iterator[tuple[str, int]]:
    return zip(vocabulary.tokens[first:], vocabulary.types[first:].tolist(), strict=True)


def noted(vocabulary: Vocabulary, *words: str) -> bool:
    return any(all(word in note for word in words) for note in vocabulary.notes)


@pytest.mark.parametrize(("kind", "sources"), vocabularies.NAMINGS, ids=str)
def test_a_token_that_any_source_names_has_its_row(kind: str, sources: Sequence[str], tmp_path: Path) -> None:
    count = vocabularies.write_naming(kind, tmp_path, sources, TOKENS)
    vocabulary = read(tmp_path, size=count + 3)
    with_ids = {JSON, DECODER, ADDED} & {*sources}
    with_flags = {*sources} != {ADDED}
    turn = TokenType.CONTROL if with_flags else TokenType.USER_DEFINED
    think = ("<think>", TokenType.USER_DEFINED) if with_ids else (f"[PAD{count + 1}]", TokenType.UNUSED)
    assert list(kinds(vocabulary, count)) == [("<turn>", turn), think, (f"[PAD{count + 2}]", TokenType.UNUSED)]
    assert noted(vocabulary, "<turn>", "without an id") == (not with_ids)


@pytest.mark.parametrize("kind", ["llama-spm", "gemma-spm"])
def test_a_tokenizer_json_that_says_nothing_new_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Its added tokens are control pieces of tokenizer.model, which keep their scores, as in llama.cpp's converter."""
    count, files, config = vocabularies.bare(kind, json_too=True)
    (tmp_path / "alone").mkdir()
    (tmp_path / "both").mkdir()
    for folder, names in (("alone", ["tokenizer.model"]), ("both", files)):
        for name in names:
            content = files[name]
            (tmp_path / folder / name).write_bytes(
                content if isinstance(content, bytes) else json.dumps(content).encode()
            )
        put(tmp_path / folder, "tokenizer_config.json", config)
    alone, both = read(tmp_path / "alone"), read(tmp_path / "both")
    assert len(alone.tokens) == count
    assert (alone.tokens, alone.types.tolist()) == (both.tokens, both.types.tolist())
    assert alone.scores is not None and both.scores is not None
    assert alone.scores.tolist() == both.scores.tolist()


def retyped(raw: bytes, piece: str, kind: TokenType) -> bytes:
    """A tokenizer.model in which one piece, of score zero, has another type."""
    start = raw.index(bytes((len(piece),)) + piece.encode() + b"\x15") + 1 + len(piece)
    assert raw[start + 5 : start + 6] == b"\x18", "the piece has a type of its own"
    return raw[: start + 6] + bytes((kind,)) + raw[start + 7 :]


@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.USER_DEFINED])
@pytest.mark.parametrize("sources", [s for s in vocabularies.SUBSETS if s != (ADDED,)], ids="+".join)
def test_pieces_that_a_file_calls_special_are_control_tokens(
    kind: TokenType, sources: Sequence[str], tmp_path: Path
) -> None:
    """The turns of Gemma 3 are plain pieces of its tokenizer.model; llama.cpp would cut them into characters."""
    raw, pieces = vocabularies.gemma_model(["<turn>", "<other>"])
    place = pieces.index("<turn>")
    vocabularies.write_naming("gemma-spm", tmp_path, sources, {})
    (tmp_path / "tokenizer.model").write_bytes(retyped(raw, "<turn>", kind))
    entry = {**vocabularies.added_token(place, "<turn>", True)}
    if JSON in sources:
        whole = vocabularies.byte_fallback(pieces, 6 + 256, [entry])
        put(tmp_path, "tokenizer.json", whole)
    if ADDED in sources:
        put(tmp_path, "added_tokens.json", {"<turn>": place})
    if MAP in sources:
        put(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["<turn>"]})
    edit(
        tmp_path,
        "tokenizer_config.json",
        lambda c: c.update(
            {
                **({"added_tokens_decoder": vocabularies.decoder_of([entry])} if DECODER in sources else {}),
                **({"extra_special_tokens": ["<turn>"]} if EXTRA in sources else {}),
            }
        ),
    )
    vocabulary = read(tmp_path)
    assert (vocabulary.tokens[place], vocabulary.types[place]) == ("<turn>", TokenType.CONTROL)
    assert vocabulary.types[pieces.index("<other>")] == TokenType.USER_DEFINED


def test_user_defined_pieces_need_no_file_beside_the_model(tmp_path: Path) -> None:
    """sentencepiece never splits them, and neither must llama.cpp, which finds them by their plain text."""
    raw, pieces = vocabularies.gemma_model(["<turn>", "▁▁▁"])
    (tmp_path / "tokenizer.model").write_bytes(raw)
    vocabulary = read(tmp_path)
    for text, plain in (("<turn>", "<turn>"), ("▁▁▁", "   ")):
        place = pieces.index(text)
        assert (vocabulary.tokens[place], vocabulary.types[place]) == (plain, TokenType.USER_DEFINED)


@pytest.mark.parametrize("kind", ["llama-spm", "llama-bpe-fallback", "qwen2-bpe"])
@pytest.mark.parametrize("special", [True, False])
def test_disagreeing_flags_are_those_of_the_config_and_said(kind: str, special: bool, tmp_path: Path) -> None:
    """transformers adds the tokens of added_tokens_decoder after those of tokenizer.json."""
    count = vocabularies.write_naming(kind, tmp_path, [JSON, DECODER], {"<turn>": {"special": special}})
    edit(tmp_path, "tokenizer.json", lambda t: t["added_tokens"][-1].update(special=not special))
    vocabulary = read(tmp_path)
    assert vocabulary.types[count] == (TokenType.CONTROL if special else TokenType.USER_DEFINED)
    assert noted(vocabulary, "<turn>", "tokenizer.json", "tokenizer_config.json", "special")


def test_agreeing_sources_need_no_note(tmp_path: Path) -> None:
    for kind in vocabularies.BARE:
        if not kind.endswith("pairs"):
            vocabularies.write_naming(kind, tmp_path / kind, vocabularies.SOURCES, TOKENS)
            assert read(tmp_path / kind).notes == ()


def with_token(source: str, token: int, text: str) -> Any:
    """An edit of a folder that names one more token in one source."""

    def change(folder: Path) -> None:
        entry = vocabularies.added_token(token, text, True)
        if source == JSON:
            edit(folder, "tokenizer.json", lambda t: t["added_tokens"].append(entry))
        elif source == DECODER:
            edit(
                folder,
                "tokenizer_config.json",
                lambda c: c.setdefault("added_tokens_decoder", {}).update(vocabularies.decoder_of([entry])),
            )
        else:
            put(folder, "added_tokens.json", {text: token})

    return change


@pytest.mark.parametrize("kind", ["llama-spm", "llama-bpe-fallback", "qwen2-bpe"])
@pytest.mark.parametrize(("one", "other"), [(JSON, DECODER), (JSON, ADDED), (DECODER, ADDED)])
def test_one_id_for_two_texts_is_refused(kind: str, one: str, other: str, tmp_path: Path) -> None:
    count = vocabularies.write_naming(kind, tmp_path, [JSON], {})
    with_token(one, count, "<a>")(tmp_path)
    with_token(other, count, "<b>")(tmp_path)
    with pytest.raises(Malformed) as caught:
        read(tmp_path)
    for word in ("<a>", "<b>", str(count), one.replace(DECODER, "tokenizer_config.json"), "Delete"):
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["llama-spm", "llama-bpe-fallback", "qwen2-bpe"])
@pytest.mark.parametrize(("one", "other"), [(JSON, DECODER), (JSON, ADDED), (DECODER, ADDED)])
def test_two_ids_for_one_text_are_refused(kind: str, one: str, other: str, tmp_path: Path) -> None:
    count = vocabularies.write_naming(kind, tmp_path, [JSON], {})
    with_token(one, count, "<a>")(tmp_path)
    with_token(other, count + 1, "<a>")(tmp_path)
    with pytest.raises(Malformed) as caught:
        read(tmp_path)
    for word in ("<a>", str(count), str(count + 1), other.replace(DECODER, "tokenizer_config.json")):
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["llama-spm", "llama-bpe-fallback", "qwen2-bpe"])
@pytest.mark.parametrize("source", [JSON, DECODER, ADDED])
def test_a_token_of_the_vocabulary_keeps_its_id(kind: str, source: str, tmp_path: Path) -> None:
    """As in the tokenizers library; the id that the file gives it otherwise is left unused."""
    count = vocabularies.write_naming(kind, tmp_path, [JSON], {})
    text = read(tmp_path).tokens[count - 1]
    with_token(source, count, text)(tmp_path)
    vocabulary = read(tmp_path, size=count + 1)
    assert vocabulary.types[count - 1] == (TokenType.USER_DEFINED if source == ADDED else TokenType.CONTROL)
    assert vocabulary.tokens[count] == f"[PAD{count}]"
    assert noted(vocabulary, f"added token {count} {text!r} is already token {count - 1}")


def test_a_renamed_piece_is_said(tmp_path: Path) -> None:
    vocabularies.write_naming("llama-spm", tmp_path, [JSON], {})
    with_token(DECODER, 500, "<tool>")(tmp_path)
    vocabulary = read(tmp_path)
    assert (vocabulary.tokens[500], vocabulary.types[500]) == ("<tool>", TokenType.CONTROL)
    assert noted(vocabulary, "500", "<tool>", "in the vocabulary")


def test_a_tokenizer_json_of_another_vocabulary_names_no_ids(tmp_path: Path) -> None:
    """Of a base model, say, that was extended: only tokenizer.model counts then, and it is said."""
    vocabularies.write_naming("llama-spm", tmp_path, [JSON], TOKENS)
    other, pieces = vocabularies.gemma_model([])
    (tmp_path / "tokenizer.model").write_bytes(other)
    put(tmp_path, "tokenizer_config.json", {})
    vocabulary = read(tmp_path, size=len(pieces) + 2)
    assert set(vocabulary.types[len(pieces) :].tolist()) == {TokenType.UNUSED}
    assert noted(vocabulary, "tokenizer.json", "the vocabulary in tokenizer.json differs")


def test_a_few_pieces_that_differ_are_refused(tmp_path: Path) -> None:
    vocabularies.write_naming("llama-spm", tmp_path, [JSON], {})

    def swap(tokenizer: Json) -> None:
        vocab = tokenizer["model"]["vocab"]
        one, other = list(vocab)[300:302]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    edit(tmp_path, "tokenizer.json", swap)
    with pytest.raises(Malformed, match=r"token 300 is .* in tokenizer\.model and .* in tokenizer\.json"):
        read(tmp_path)


def test_rows_that_only_the_vocabulary_of_tokenizer_json_names(tmp_path: Path) -> None:
    """A vocabulary that was extended in tokenizer.json alone: its words are found after all others."""
    count = vocabularies.write_naming("llama-spm", tmp_path, [JSON], {})

    def extend(tokenizer: Json) -> None:
        tokenizer["model"]["vocab"] |= {"thethe": count, "thethethe": count + 1}
        tokenizer["model"]["merges"] += [["the", "the"], ["thethe", "the"]]

    edit(tmp_path, "tokenizer.json", extend)
    vocabulary = read(tmp_path, size=count + 2)
    assert list(kinds(vocabulary, count)) == [("thethe", TokenType.NORMAL), ("thethethe", TokenType.NORMAL)]
    assert vocabulary.scores is not None
    first, second = vocabulary.scores[count:].tolist()
    assert second < first < vocabulary.scores[:count].min()
    assert noted(vocabulary, "tokenizer.json", "'thethe'")


@pytest.mark.parametrize("kind", vocabularies.BARE)
def test_names_without_an_id_beyond_the_embedding_are_left_out(kind: str, tmp_path: Path) -> None:
    count = vocabularies.write_naming(kind, tmp_path, [EXTRA], TOKENS)
    vocabulary = read(tmp_path, size=count)
    assert len(vocabulary.tokens) == count
    assert noted(vocabulary, "<turn>", "not in the vocabulary")


@pytest.mark.parametrize("kind", vocabularies.BARE)
def test_names_without_an_id_follow_the_last_token(kind: str, tmp_path: Path) -> None:
    """In the order in which transformers adds them: roles first, then the further ones."""
    count = vocabularies.write_naming(kind, tmp_path, [DECODER], TOKENS)
    edit(tmp_path, "tokenizer_config.json", lambda c: c.update(extra_special_tokens=["<z>", "<a>"], pad_token="<p>"))
    vocabulary = read(tmp_path, size=count + 6)
    assert vocabulary.tokens[count + 2 :] == ("<p>", "<z>", "<a>", f"[PAD{count + 5}]")
    assert set(vocabulary.types[count + 2 : count + 5].tolist()) == {TokenType.CONTROL}


def test_tokens_of_a_role_of_their_own_are_special(tmp_path: Path) -> None:
    """transformers takes every `..._token` for a special token (image_token and others)."""
    count = vocabularies.write_naming("qwen2-bpe", tmp_path, [JSON], {"<image>": {"special": False}})
    edit(tmp_path, "tokenizer_config.json", lambda c: c.update(image_token="<image>"))
    assert read(tmp_path).types[count] == TokenType.CONTROL
