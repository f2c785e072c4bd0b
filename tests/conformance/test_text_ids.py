"""Texts and chats as token ids against llama.cpp's tokenizer and transformers' chat templates."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizer_oracles as oracles
from gguf.constants import TokenType

import published
import vocabularies
from ggufsmith.evaluate.texts import shipped
from ggufsmith.evaluate.tokenize import stages_for, tokenizer_of
from ggufsmith.tokenizer import pretokenizers
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.restore import vocabulary_of
from ggufsmith.tokenizer.vocabulary import Vocabulary

pytestmark = pytest.mark.conformance

GGUFS = """llama-spm llama-bpe qwen2 qwen35 deepseek-llm deepseek-coder falcon gpt-2 refact starcoder mpt baichuan phi-3
command-r""".split()


def texts(vocabulary: Vocabulary) -> list[str]:
    """Odd strings with the vocabulary's special tokens in them, and some of the texts that ship with the package."""
    special = zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True)
    marks = [text for text, kind in special if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    return [*oracles.probes(marks[:40]), *(each.text for each in shipped("test") if each.text)]


def unlike(pre: str, text: str) -> bool:
    """Whether llama.cpp splits this text otherwise than any regular expression would.

    Its std::wregex leaves an ideographic space out of "\\s?[\u3000-\u3002]+" where a space stands before it.
    """
    return pre == "deepseek-llm" and " \u3000" in text


def differences(vocabulary: Vocabulary, scratch: Path, name: str = "model") -> list[str]:
    """The texts for which llama.cpp gives other ids."""
    ours = tokenizer_of(vocabulary, name)
    with oracles.in_llama(vocabulary, scratch, name) as llama:
        return [
            text
            for text in texts(vocabulary)
            if llama.encode(text, add_special=True, parse_special=False) != ours(text).tolist()
        ]


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *(
            (kind, "Gemma2ForCausalLM" if kind.startswith("gemma") else "LlamaForCausalLM")
            for kind in vocabularies.KINDS
            if not kind.startswith(("bert-", "xlmr-", "t5-"))  # of encoders, and T5, which are not run on texts here
        ),
        ("gemma-bpe", "Gemma4ForCausalLM"),
    ],
)
def test_ids_are_those_of_llama_cpp(kind: str, architecture: str, tmp_path: Path) -> None:
    size = vocabularies.write(kind, tmp_path / "folder")
    vocabulary = read_vocabulary(tmp_path / "folder", config={}, size=size, architecture=architecture)
    assert len(texts(vocabulary)) >= 500
    for add in ({}, {"bos": True}, {"bos": False}, {"bos": True, "eos": True}):
        assert differences(replace(vocabulary, add={**vocabulary.add, **add}), tmp_path) == []


@pytest.mark.parametrize("prefix", [True, False, None])
def test_the_space_before_a_text_is_that_of_llama_cpp(prefix: bool | None, tmp_path: Path) -> None:
    size = vocabularies.write("llama-spm", tmp_path / "folder")
    vocabulary = read_vocabulary(tmp_path / "folder", config={}, size=size, architecture="LlamaForCausalLM")
    assert differences(replace(vocabulary, add_space_prefix=prefix), tmp_path) == []


@pytest.mark.parametrize("name", GGUFS)
def test_ids_of_published_vocabularies_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    vocabulary = vocabulary_of(published.published_keys(name), name)
    found = differences(vocabulary, tmp_path, "Phi-3" if name == "phi-3" else "model")
    assert [text for text in found if not unlike(name, text)] == []


ROWS = [row for row in pretokenizers.TABLE if stages_for(row)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_split_is_that_of_llama_cpp(row: pretokenizers.Pretokenizer, tmp_path: Path) -> None:
    whole = vocabularies.train(pretokenizers.pre_tokenizer_of(stages_for(row)), 1500, ignore_merges=row.ignore_merges)
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path, config={}, size=None, architecture="", pre=row.name)
    found = differences(vocabulary, tmp_path)
    assert [text for text in found if not unlike(row.name, text)] == []
