"""Which tokens are put around a text: tokenizer.json's post-processor against the flags of tokenizer_config.json.

transformers 5 reads the flags only where there is no tokenizer.json (llama.cpp issue 8990: prompts that end in EOS).
"""

import json
from itertools import product
from pathlib import Path

import pytest
from vocabulary_folders import Json, put, read

import vocabularies
from frames import FRAMES, KINDS, folder_with, template


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("processor", "bos", "eos"), FRAMES)
@pytest.mark.parametrize("flags", [{}, *({"bos": b, "eos": e} for b, e in product((True, False), repeat=2))])
def test_the_post_processor_decides(
    kind: str, processor: Json | None, bos: bool, eos: bool, flags: dict[str, bool], tmp_path: Path
) -> None:
    stated = {f"add_{role}_token": flag for role, flag in flags.items()}
    vocabulary = read(folder_with(kind, tmp_path, processor, **stated))
    by_default = vocabulary.model == "llama"  # llama.cpp adds BOS to such a vocabulary
    assert vocabulary.add.get("bos", by_default) == bos
    assert vocabulary.add.get("eos", False) == eos
    for role, does in (("bos", bos), ("eos", eos)):
        disagrees = role in flags and flags[role] != does
        assert any(f"add_{role}_token" in note and "tokenizer.json" in note for note in vocabulary.notes) == disagrees


@pytest.mark.parametrize("kind", ["llama-spm", "qwen2-pairs"])
@pytest.mark.parametrize(("bos", "eos"), [*product((True, False), repeat=2)])
def test_flags_decide_without_a_tokenizer_json(kind: str, bos: bool, eos: bool, tmp_path: Path) -> None:
    vocabularies.write_naming(kind, tmp_path, ["added_tokens_decoder"], {"<b>": {"special": True}})
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {"bos_token": "<b>", "eos_token": "<b>"}
    put(tmp_path, "tokenizer_config.json", {**stated, **names, "add_bos_token": bos, "add_eos_token": eos})
    vocabulary = read(tmp_path)
    assert vocabulary.add == {"bos": bos, "eos": eos}
    assert vocabulary.notes == ()


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_token_that_is_null_is_not_added(role: str, tmp_path: Path) -> None:
    """As in transformers; config.json may give the id all the same."""
    vocabularies.write_naming("qwen2-pairs", tmp_path, ["added_tokens_decoder"], {"<b>": {"special": True}})
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    put(tmp_path, "tokenizer_config.json", {**stated, f"{role}_token": None, f"add_{role}_token": True})
    vocabulary = read(tmp_path, config={f"{role}_token_id": 600})
    assert vocabulary.add[role] is False
    assert any(f"{role}_token is null" in note for note in vocabulary.notes)


def test_what_llama_cpp_cannot_add_is_said(tmp_path: Path) -> None:
    """It adds one token on each side, and only those with the roles of BOS and EOS."""
    vocabulary = read(folder_with("qwen2-bpe", tmp_path / "two", template("<b>", "<c>", "A")))
    assert vocabulary.add["bos"] is True
    assert any("'<b>', '<c>'" in note and "one" in note for note in vocabulary.notes)
    vocabulary = read(folder_with("qwen2-bpe", tmp_path / "other", template("<c>", "A")))
    assert vocabulary.add["bos"] is False
    assert any("'<c>'" in note and "'<b>'" in note for note in vocabulary.notes)


@pytest.mark.parametrize("kind", ["llama-spm", "llama-bpe-fallback"])
@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_space_that_llama_cpp_puts_more_often_is_said(kind: str, scheme: str, tmp_path: Path) -> None:
    vocabularies.write_naming(kind, tmp_path, ["tokenizer.json"], {})
    whole = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    put(tmp_path, "tokenizer.json", {**whole, "normalizer": None, "pre_tokenizer": metaspace})
    vocabulary = read(tmp_path)
    assert vocabulary.add_space_prefix is None
    assert any("after every special token" in note for note in vocabulary.notes) == (scheme == "first")


@pytest.mark.parametrize("kind", ["llama-spm", "llama-bpe-fallback"])
@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_the_space_before_a_text(kind: str, flag: bool | None, tokenizer_class: str, tmp_path: Path) -> None:
    """transformers' Llama tokenizers follow add_prefix_space, others the structure of the tokenizer."""
    vocabularies.write_naming(kind, tmp_path, [], {})
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    stated |= {"tokenizer_class": tokenizer_class} | ({} if flag is None else {"add_prefix_space": flag})
    put(tmp_path, "tokenizer_config.json", stated)
    vocabulary = read(tmp_path, architecture="Phi3ForCausalLM")
    follows = flag is False and tokenizer_class == "LlamaTokenizer"
    assert (vocabulary.add_space_prefix is False) == follows
    assert any("add_prefix_space" in note for note in vocabulary.notes) == (flag is False)
