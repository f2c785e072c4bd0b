"""Which file decides about BOS, EOS, ends of generation and what is added around a text."""

from pathlib import Path
from typing import Any

import pytest
from gguf.constants import Keys
from vocabulary_folders import Json, added, folder_of, put, read

from ggufsmith.tokenizer.special import EOG_TEXTS

KEY = Keys.Tokenizer


def bare(kind: str, folder: Path, **edits: Any) -> Path:
    """A folder that says nothing of special tokens but its tokenizer."""
    folder_of(kind, folder, **edits)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        (folder / name).unlink()
    return folder


def test_names_decide_over_ids(tmp_path: Path) -> None:
    """Two EOS truths (TensorRT-Model-Connect issue 640): <|im_end|> by name, <|endoftext|> by id."""
    vocabulary = read(folder_of("qwen2-bpe", tmp_path), config={"eos_token_id": 600, "bos_token_id": 600})
    assert vocabulary.special["eos"] == 602
    assert vocabulary.special["bos"] == 600
    assert set(vocabulary.eog) == {600, 602}


def test_ids_of_the_config_where_no_name_is_given(tmp_path: Path) -> None:
    folder = bare("qwen2-bpe", tmp_path)
    assert read(folder, config={"eos_token_id": 602}).special == {"eos": 602}
    assert read(folder, config={"text_config": {"eos_token_id": 601}}).special == {"eos": 601}


def test_names_are_looked_up_among_added_tokens(tmp_path: Path) -> None:
    """As the reference does: without tokenizer.json only BOS and EOS are found, which llama.cpp needs."""
    spm = folder_of("llama-spm", tmp_path / "spm")
    assert read(spm).special == {"bos": 1, "eos": 2}
    assert read(folder_of("llama-bpe-fallback", tmp_path / "bpe")).special == {"bos": 1, "eos": 2, "unk": 0}


def test_eos_as_a_list(tmp_path: Path) -> None:
    """distributed-llama issue 177."""
    vocabulary = read(bare("qwen2-bpe", tmp_path), config={"eos_token_id": [602, 600]})
    assert vocabulary.special["eos"] == 602
    assert vocabulary.eog == (602, 600)


def test_generation_config_is_the_last_resort_for_bos_and_eos(tmp_path: Path) -> None:
    """llama.cpp would take 11 for both."""
    folder = bare("qwen2-bpe", tmp_path)
    put(folder, "generation_config.json", {"bos_token_id": 600, "eos_token_id": [602, 600], "pad_token_id": 600})
    assert read(folder).special == {"bos": 600, "eos": 602}
    assert read(folder, config={"bos_token_id": 601}).special["bos"] == 601


def test_special_tokens_map_stands_in_for_a_missing_config(tmp_path: Path) -> None:
    folder = bare("qwen2-bpe", tmp_path)
    put(folder, "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"})
    assert read(folder).special == {"eos": 602, "pad": 600}


def test_a_pad_id_of_minus_one_means_none(tmp_path: Path) -> None:
    """llama.cpp issue 2981."""
    vocabulary = read(folder_of("llama-spm", tmp_path), config={"pad_token_id": -1, "eos_token_id": [-1, 2]})
    assert "pad" not in vocabulary.special
    assert vocabulary.special["eos"] == 2
    assert KEY.PAD_ID not in vocabulary.metadata()


def test_ids_outside_the_vocabulary_are_left_out_and_reported(tmp_path: Path) -> None:
    vocabulary = read(folder_of("llama-spm", tmp_path), config={"pad_token_id": 32000, "vocab_size": 904})
    assert "pad" not in vocabulary.special
    assert any("32000" in note and "904" in note for note in vocabulary.notes)


def test_a_name_that_is_no_token_is_reported(tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path, tokenizer_config=lambda c: c.update(pad_token="<nowhere>"))
    vocabulary = read(folder, config={"pad_token_id": 603})
    assert vocabulary.special["pad"] == 603
    assert any("'<nowhere>'" in note for note in vocabulary.notes)


def test_an_unknown_end_of_generation_gets_a_key(tmp_path: Path) -> None:
    """llama.cpp recognises the others by their text; this one would never stop a generation."""
    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=lambda t: t["added_tokens"].append(added(604, "<stop>")))
    vocabulary = read(folder, config={"eos_token_id": [602, 604]})
    assert (vocabulary.special["eos"], vocabulary.special["eom"]) == (602, 604)
    assert "eot" not in vocabulary.special  # left to llama.cpp, which finds it by its text
    assert "<|im_end|>" in EOG_TEXTS


def test_more_ends_than_keys_are_reported(tmp_path: Path) -> None:
    def stops(tokenizer: Json) -> None:
        tokenizer["added_tokens"] += [added(604 + i, f"<stop{i}>") for i in range(3)]

    vocabulary = read(folder_of("qwen2-bpe", tmp_path, tokenizer=stops), config={"eos_token_id": [604, 605, 606]})
    assert (vocabulary.special["eom"], vocabulary.special["eot"]) == (604, 605)
    assert any("'<stop2>'" in note and "no key left" in note for note in vocabulary.notes)
    assert set(vocabulary.eog) == {600, 602, 604, 605, 606}


def test_a_reserved_token_ends_nothing(tmp_path: Path) -> None:
    folder = folder_of(
        "llama3-bpe",
        tmp_path,
        tokenizer=lambda t: t["added_tokens"].append(added(604, "<|reserved_special_token_4|>", special=True)),
    )
    vocabulary = read(folder, config={"eos_token_id": [601, 602, 604]})
    assert "eom" not in vocabulary.special
    assert any("reserved_special_token_4" in note for note in vocabulary.notes)


def test_the_template_says_that_bos_is_added(tmp_path: Path) -> None:
    vocabulary = read(folder_of("llama3-bpe", tmp_path))
    assert vocabulary.add == {"bos": True, "sep": False}
    assert vocabulary.metadata()[KEY.ADD_BOS].data is True


def test_the_template_wins_over_an_explicit_flag(tmp_path: Path) -> None:
    """transformers 5 does not read the flag beside a tokenizer.json."""
    folder = folder_of("llama3-bpe", tmp_path, tokenizer_config=lambda c: c.update(add_bos_token=False))
    vocabulary = read(folder)
    assert vocabulary.add["bos"] is True
    assert any("add_bos_token" in note for note in vocabulary.notes)


def test_no_bos_is_said_where_llama_cpp_would_add_one(tmp_path: Path) -> None:
    def plain(tokenizer: Json) -> None:
        tokenizer["post_processor"] = tokenizer["post_processor"]["processors"][0]

    assert read(folder_of("llama3-bpe", tmp_path, tokenizer=plain)).add == {"bos": False}


def template(*pieces: str) -> Json:
    """A TemplateProcessing whose single form is these pieces; A is the text."""
    single = [{"Sequence" if p == "A" else "SpecialToken": {"id": p, "type_id": 0}} for p in pieces]
    pair = [*single, *({**p, **({"Sequence": {"id": "B", "type_id": 1}} if "Sequence" in p else {})} for p in single)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}


def test_a_token_put_last_is_the_eos(tmp_path: Path) -> None:
    """Qwen3-Embedding appends <|endoftext|> while its config calls <|im_end|> EOS (llama.cpp issues 14314, 15023)."""

    def append(tokenizer: Json) -> None:
        tokenizer["post_processor"] = template("A", "<|endoftext|>")

    vocabulary = read(folder_of("qwen2-bpe", tmp_path, tokenizer=append))
    assert (vocabulary.special["eos"], vocabulary.special["eot"]) == (600, 602)
    assert vocabulary.add["eos"] is True


def test_an_unknown_first_token_is_no_bos(tmp_path: Path) -> None:
    def prepend(tokenizer: Json) -> None:
        tokenizer["post_processor"] = template("<|im_start|>", "A")

    folder = folder_of(
        "qwen2-bpe",
        tmp_path,
        tokenizer=prepend,
        tokenizer_config=lambda c: c.update(bos_token="<|endoftext|>", add_bos_token=None),
    )
    assert read(folder).add["bos"] is False


def test_a_first_token_without_a_name_is_the_bos(tmp_path: Path) -> None:
    folder = bare("qwen2-bpe", tmp_path, tokenizer=lambda t: t.update(post_processor=template("<|im_start|>", "A")))
    put(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    vocabulary = read(folder)
    assert (vocabulary.special["bos"], vocabulary.add["bos"]) == (601, True)


def test_a_separator_between_two_texts(tmp_path: Path) -> None:
    def separate(tokenizer: Json) -> None:
        a, b = ({"Sequence": {"id": s, "type_id": 0}} for s in "AB")
        eos = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
        tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": [a], "pair": [a, eos, b]}

    vocabulary = read(folder_of("qwen2-bpe", tmp_path, tokenizer=separate))
    assert vocabulary.add["sep"] is True
    assert vocabulary.special["sep"] == 602


def test_infill_tokens_that_the_config_names(tmp_path: Path) -> None:
    """CodeLlama."""
    names = {"prefix_token": "[INST]", "suffix_token": "[/INST]", "middle_token": "<think>", "eot_token": "</think>"}
    folder = folder_of("llama-spm", tmp_path, tokenizer_config=lambda c: c.update(names))
    special = read(folder).special
    assert [special[role] for role in ("fim_pre", "fim_suf", "fim_mid", "eot")] == [900, 901, 902, 903]


def test_keys_that_the_reference_writes_for_some_classes_only(tmp_path: Path) -> None:
    llama = folder_of("qwen2-bpe", tmp_path / "a")
    assert read(llama, architecture="LlamaForCausalLM").add_space_prefix is False
    assert read(llama, architecture="Qwen2ForCausalLM").add_space_prefix is None
    gemma = folder_of("gemma-spm", tmp_path / "b")
    assert read(gemma, architecture="GemmaForCausalLM").special["eot"] == 5
    assert "eot" not in read(gemma, architecture="Gemma2ForCausalLM").special
    small = bare("qwen2-bpe", tmp_path / "c")
    assert read(small, config={"vocab_size": 49152}, architecture="LlamaForCausalLM").add == {"bos": False}


@pytest.mark.parametrize("value", [True, "2", 2.0, [2, "x"], {"id": 2}])
def test_an_id_that_is_no_integer(value: object, tmp_path: Path) -> None:
    from ggufsmith.container.errors import Malformed

    with pytest.raises(Malformed, match=r"config\.json: eos_token_id is"):
        read(folder_of("llama-spm", tmp_path), config={"eos_token_id": value})
