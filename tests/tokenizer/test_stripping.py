"""Flags of added tokens for which GGUF has no place: what llama.cpp will not do is said, or a name makes it do so.

llama.cpp issue 7685: Phi-3's special tokens take the white space behind them.
"""

import json
from pathlib import Path

import pytest
from vocabulary_folders import Json, put, read

import vocabularies
from ggufsmith.tokenizer.stripping import name_for, name_notes, strip_notes
from ggufsmith.tokenizer.vocabulary import Vocabulary

SPECIAL = {"special": True}
PHI3: dict[str, Json] = {
    "</s>": {"special": False, "rstrip": True},
    "<|endoftext|>": SPECIAL,
    **{text: {"special": True, "rstrip": True} for text in ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")},
}


FLAGS = [("lstrip", "before"), ("rstrip", "after"), ("single_word", "inside words")]
NORMALIZERS = [("Prepend", True), ("Lowercase", True), ("NFC", False), (None, False)]


def phi3(folder: Path, sources: tuple[str, ...] = ("added_tokens_decoder",), **more: Json) -> Vocabulary:
    """A vocabulary with Phi-3's tokens; BPE, with the four that llama.cpp asks for."""
    vocabularies.write_naming("qwen2-bpe", folder, sources, {"<unk>": SPECIAL, "<s>": SPECIAL, **PHI3, **more})
    return read(folder)


@pytest.mark.parametrize("source", ["added_tokens_decoder", "tokenizer.json"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My Support Bot", "My Support Bot (Phi-3)"),
        ("Phi 3 Mini 4K Instruct", "Phi-3 Mini 4K Instruct"),
        ("My phi_3.5 tune", "My Phi-3.5 tune"),
        ("Phi-3-mini", "Phi-3-mini"),
        ("my PHI3", "my PHI3"),
    ],
)
def test_a_name_makes_llama_cpp_take_white_space(source: str, name: str, expected: str, tmp_path: Path) -> None:
    vocabulary = phi3(tmp_path, (source,))
    assert name_for(vocabulary, name) == expected
    assert any(strip_notes(vocabulary, expected)) is False
    assert any("after" in note for note in strip_notes(vocabulary, "My Support Bot"))
    notes = list(name_notes(vocabulary, name, stated=False))
    assert [expected in note for note in notes] == ([True] if name != expected else [])
    assert [repr(name) in note for note in name_notes(vocabulary, name, stated=True)] == [True] * len(notes)


def test_tokens_of_ones_own_do_not_change_the_name_but_are_said(tmp_path: Path) -> None:
    vocabulary = phi3(tmp_path, **{"<|tool|>": SPECIAL})
    name = name_for(vocabulary, "Bot")
    assert name == "Bot (Phi-3)"
    assert ["'<|tool|>'" in note for note in strip_notes(vocabulary, name)] == [True]


def test_a_name_under_which_llama_cpp_loads_nothing_is_changed(tmp_path: Path) -> None:
    """Phi-3-Small, and distillations that only have the name: llama.cpp looks four tokens up and does not find them."""
    vocabularies.write_naming("qwen2-bpe", tmp_path, ["added_tokens_decoder"], {"<|user|>": SPECIAL})
    vocabulary = read(tmp_path)
    assert name_for(vocabulary, "phi3-distill") == "phi 3-distill"
    assert name_for(vocabulary, "My Phi-3 Tune") == "My Phi 3 Tune"
    assert any("cannot load" in note for note in name_notes(vocabulary, "My Phi-3 Tune", stated=True))
    assert name_for(vocabulary, "Delphi 3") == "Delphi 3"


def test_a_vocabulary_without_such_tokens_keeps_its_name(tmp_path: Path) -> None:
    for kind in vocabularies.KINDS:
        vocabularies.write(kind, tmp_path / kind)
        vocabulary = read(tmp_path / kind)
        assert name_for(vocabulary, "Bot") == "Bot"
        assert [*strip_notes(vocabulary, "Bot"), *name_notes(vocabulary, "Bot", stated=False)] == []


@pytest.mark.parametrize("kind", ["llama-spm", "llama-bpe-fallback", "qwen2-bpe", "qwen2-pairs", "gemma-spm"])
@pytest.mark.parametrize(("flag", "word"), FLAGS)
def test_flags_that_llama_cpp_does_not_know_are_said(kind: str, flag: str, word: str, tmp_path: Path) -> None:
    vocabularies.write_naming(kind, tmp_path, ["added_tokens_decoder"], {"<a>": {"special": True, flag: True}})
    vocabulary = read(tmp_path)
    notes = [*vocabulary.notes, *strip_notes(vocabulary, "Bot")]
    assert any("'<a>'" in note and word in note for note in notes)


@pytest.mark.parametrize(("normalizer", "said"), NORMALIZERS)
def test_normalized_matters_only_if_normalization_changes_the_token(
    normalizer: str | None, said: bool, tmp_path: Path
) -> None:
    flags = {"special": True, "normalized": True}
    vocabularies.write_naming("llama-bpe-fallback", tmp_path, ["tokenizer.json"], {"<A>": flags})
    whole = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    step = {"type": normalizer, **({"prepend": "▁"} if normalizer == "Prepend" else {})}
    put(tmp_path, "tokenizer.json", {**whole, "normalizer": step if normalizer else None})
    assert any("normalized" in note and "'<A>'" in note for note in read(tmp_path).notes) == said
