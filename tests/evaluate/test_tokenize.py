"""Text to token ids; that they are llama.cpp's is shown in tests/conformance/test_text_ids.py."""

from dataclasses import replace

import numpy as np
import pytest
from gguf.constants import TokenType

import vocabularies
from ggufsmith.container.errors import Unsupported
from ggufsmith.evaluate.tokenize import tokenizer_of
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.restore import vocabulary_of
from ggufsmith.tokenizer.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vocabulary]:
    found = {}
    for kind in ("llama-spm", "qwen2-bpe"):
        folder = tmp_path_factory.mktemp(kind)
        size = vocabularies.write(kind, folder)
        found[kind] = read_vocabulary(folder, config={}, size=size, architecture="LlamaForCausalLM")
    return found


def pieces(vocabulary: Vocabulary, text: str) -> list[str]:
    return [vocabulary.tokens[token] for token in tokenizer_of(vocabulary)(text).tolist()]


def test_a_folder_and_the_keys_made_of_it_give_the_same_ids(kinds: dict[str, Vocabulary]) -> None:
    for vocabulary in kinds.values():
        ids = tokenizer_of(vocabulary)("Once upon a time, naïve 你好 \n\n 1234.")
        assert ids.dtype == np.int32 and len(ids) > 8
        again = tokenizer_of(vocabulary_of(vocabulary.metadata(), "keys"))("Once upon a time, naïve 你好 \n\n 1234.")
        assert ids.tolist() == again.tolist()


def test_what_is_added_around_a_text(kinds: dict[str, Vocabulary]) -> None:
    spm, bpe = kinds["llama-spm"], kinds["qwen2-bpe"]
    assert pieces(spm, "")[0] == "<s>" and pieces(bpe, "") == []
    both = replace(spm, add={"bos": True, "eos": True})
    assert pieces(both, "a")[0] == "<s>" and pieces(both, "a")[-1] == "</s>"
    assert tokenizer_of(replace(spm, add={"bos": False})).bos is None
    assert tokenizer_of(spm).bos == spm.special["bos"]


def test_control_tokens_in_a_text_are_text(kinds: dict[str, Vocabulary]) -> None:
    bpe = kinds["qwen2-bpe"]
    control = next(t for t, kind in zip(bpe.tokens, bpe.types, strict=True) if kind == TokenType.CONTROL)
    assert control not in pieces(bpe, f"a{control}b")
    types = bpe.types.copy()
    types[bpe.tokens.index(control)] = TokenType.USER_DEFINED
    assert control not in pieces(replace(bpe, types=types), f"a{control}b"), "an end of generation stays one"


def test_user_defined_tokens_are_found_longest_first(kinds: dict[str, Vocabulary]) -> None:
    bpe = kinds["qwen2-bpe"]
    tokens = (*bpe.tokens, "<think", "<think>")
    types = np.append(bpe.types, np.array([TokenType.USER_DEFINED] * 2, np.int32))
    assert pieces(replace(bpe, tokens=tokens, types=types), "<think><think")[-2:] == ["<think>", "<think"]


@pytest.mark.parametrize("pre", ["gemma4", "sarvam-moe", "afmoe", "a name of tomorrow"])
def test_splits_that_cannot_be_made_are_refused(kinds: dict[str, Vocabulary], pre: str) -> None:
    with pytest.raises(Unsupported, match=rf"the pre-tokenizer '{pre}'"):
        tokenizer_of(replace(kinds["qwen2-bpe"], pre=pre))


def test_merges_into_nothing_are_refused(kinds: dict[str, Vocabulary]) -> None:
    bpe = kinds["qwen2-bpe"]
    with pytest.raises(Unsupported, match="is not a token"):
        tokenizer_of(replace(bpe, merges=(*bpe.merges, "zzz qqq")))


def test_a_character_without_a_token_is_named(kinds: dict[str, Vocabulary]) -> None:
    spm = kinds["llama-spm"]
    types = spm.types.copy()
    types[types == TokenType.BYTE] = TokenType.NORMAL
    tokenizer = tokenizer_of(replace(spm, types=types))
    assert len(tokenizer("the"))
    with pytest.raises(Unsupported, match="has no tokens for '🜚'"):
        tokenizer("the 🜚")


def test_chats_without_a_template_are_plain_text(kinds: dict[str, Vocabulary]) -> None:
    bpe = replace(kinds["qwen2-bpe"], chat_template=None)
    tokenizer = tokenizer_of(bpe)
    chat = tokenizer.chat(({"role": "user", "content": "the"}, {"role": "assistant", "content": "of"}))
    assert chat.tolist() == tokenizer("User: the\n\nAssistant: of\n\n").tolist()
    assert tokenizer.chat_notes == ("the model has no chat template, so chats are laid out as plain text",)
    strange = tokenizer_of(replace(bpe, chat_template="{{ messages }}"))
    assert "not one of the known formats" in strange.chat_notes[0]
    known = tokenizer_of(replace(bpe, chat_template="<|im_start|><|im_end|>"))
    assert known.chat_notes == ("chats are laid out in the format chatml",)


def test_a_long_text_is_tokenized_whole(kinds: dict[str, Vocabulary]) -> None:
    """A megabyte without a line end: time that grew with the square of its length would be hours."""
    spm = kinds["llama-spm"]
    text = "the time of day, naïve " * 40_000
    assert len(tokenizer_of(spm)(text)) > 200_000
