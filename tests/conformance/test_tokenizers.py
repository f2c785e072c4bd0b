"""Vocabularies against the reference converter, llama.cpp and Hugging Face.

Differences from the reference converter on folders that are not ordinary, all on purpose:

- Llama-style BPE without tokenizer.model: scores follow the merge ranks (the reference writes -1000 everywhere, and
  llama.cpp then merges from left to right), and added tokens marked special are control tokens.
- `eom` or `eot` for a stated end of generation that llama.cpp does not know by its text.
- `bos` and `eos` from generation_config.json or by text where config.json gives none.
- add_bos false where llama.cpp would add BOS and no file of the model does.
- add_bos and add_eos are not written where they are false and llama.cpp takes them for false without being told.
- add_space_prefix false from tokenizer.model itself, not from the class of the model.
- Added tokens that only tokenizer.json names, beside a tokenizer.model, have their rows; so have special tokens that a
  file names without an id, as far as the embedding has rows.
- User-defined pieces of tokenizer.model are user-defined, whatever stands beside it.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizer_oracles as oracles
from gguf.constants import Keys, TokenType

import encoder_vocabularies
import frames
import published
import vocabularies
from ggufsmith.convert.hf.config import token_ids
from ggufsmith.tokenizer import pretokenizers
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.restore import CLS_ID, vocabulary_of
from ggufsmith.tokenizer.stripping import name_for
from ggufsmith.tokenizer.vocabulary import Vocabulary
from ggufsmith.tokenizer.wordpiece import LOWERCASE
from ggufsmith.tokenizer.write import tokenizer_files

pytestmark = pytest.mark.conformance

KEY = Keys.Tokenizer
NAMES = [*published.FOLDERS, *vocabularies.KINDS]
HASH = "WordPiece has no pre-tokenizers in llama.cpp; the reference names those that it knows by their hash"
# Keys that are not the reference's for a published folder, and why.
DIFFERENT: dict[str, dict[str, str]] = {
    "nomic-moe": {KEY.UNK_ID: "the folder names no unknown token, but its model does"},
    "phi-3": {KEY.EOM_ID: "<|assistant|>, stated as an end of generation, which llama.cpp does not know by its text"},
    "deepseek-v4": {KEY.PRE: "the reference's hash gives another name, joyai-llm, for the split of deepseek-v3"},
    "mistral-v0.3": dict.fromkeys(
        (KEY.TOKEN_TYPE, KEY.SCORES), "user-defined pieces that no other file lists are ordinary ones in the reference"
    ),
    "bge": {KEY.PRE: HASH},
    "qwen3.5": {KEY.PRE: "it is Qwen 2's vocabulary with the split of Qwen 3.5; its hash is that of Qwen 2"},
}
# Vocabularies of llama.cpp, and the keys that are not the same after the way through a folder, and why.
STATED = "the file leaves it to the pre-tokenizer, for which llama.cpp adds BOS"
SPECIAL = "added tokens that look special were user-defined for llama.cpp's converter of 2024, or unknown"
GGUFS: dict[str, dict[str, str]] = {
    **{name: {} for name in ("llama-spm", "qwen2", "qwen35", "deepseek-llm", "falcon", "gpt-2", "refact", "starcoder")},
    "llama-bpe": {KEY.ADD_BOS: STATED},
    "baichuan": {KEY.PRE: "it was made before there was this key"},
    "bert-bge": {
        KEY.PRE: HASH,
        CLS_ID: "it was made before BOS and EOS stood for what begins and ends a text",
        **dict.fromkeys((KEY.BOS_ID, KEY.EOS_ID, KEY.ADD_BOS, KEY.ADD_EOS, KEY.ADD_SEP, LOWERCASE), "the same"),
    },
    "nomic-bert-moe": {
        KEY.ADD_SEP: "it was made before there was this key",
        KEY.LIST: "rows without a piece are numbered from the row before",
    },
    "mpt": {KEY.PRE: "olmo and mpt are names of one split"},
    "deepseek-coder": {KEY.TOKEN_TYPE: SPECIAL},
    "phi-3": {KEY.TOKEN_TYPE: SPECIAL},
    "command-r": {KEY.TOKEN_TYPE: SPECIAL, KEY.CHAT_TEMPLATES: "the names of the templates, in another order"},
}
# Llama.cpp has no texts with ids for the last.
FROM_GGUF = [name for name, record in published.FOLDERS.items() if record.gguf and name != "nomic-moe"]

GEMMA2 = {
    **published.SHAPE,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}


TOKENS = {"<turn>": {"special": True}, "<think>": {"special": False}, "<|x|>": {"special": True}}


@pytest.mark.parametrize(("kind", "sources"), vocabularies.NAMINGS, ids=str)
def test_added_tokens_are_those_of_transformers(kind: str, sources: Sequence[str], tmp_path: Path) -> None:
    """From whichever files: what transformers adds, the file has, under the same id, and llama.cpp finds it.

    The reverse holds but for two things that transformers (5.24) reads in no other folder: additional_special_tokens of
    special_tokens_map.json beside a tokenizer.model, and added_tokens.json beside an added_tokens_decoder.
    """
    from transformers import AutoTokenizer

    count = vocabularies.write_naming(kind, tmp_path, sources, TOKENS)
    source = AutoTokenizer.from_pretrained(tmp_path)
    vocabulary = read_vocabulary(tmp_path, config={}, size=count + 8, architecture="")
    added = {token: (each.content, each.special) for token, each in source.added_tokens_decoder.items()}
    added = {token: each for token, each in added.items() if each[0] in TOKENS}
    ours = {token: vocabulary.tokens[token] for token in range(count, count + 8)}
    assert {token: text for token, (text, _) in added.items()}.items() <= ours.items()
    legacy = "special_tokens_map.json" in sources and "added_tokens_decoder" not in sources
    for token, (text, special) in added.items():
        plain = not special and not legacy and text != "<|x|>"  # which looks special
        assert not plain or vocabulary.types[token] == TokenType.USER_DEFINED
        assert not special or vocabulary.types[token] == TokenType.CONTROL
    texts = [f"the{text}of" for text in TOKENS] + [f"{text}" for text in TOKENS] + ["it<turn><think>is<|x|>\n<turn> on"]
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        for text in texts if len(added) == len(TOKENS) or not kind.endswith("spm") else ():
            found = llama.encode(text, add_special=False, parse_special=True)
            if kind.startswith("llama"):  # llama.cpp puts a space behind every special token, transformers does not
                assert [t for t in found if t >= count] == [t for t in source.encode(text) if t >= count]
            else:
                assert found == source.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize(("processor", "bos", "eos"), frames.FRAMES)
@pytest.mark.parametrize("kind", frames.KINDS)
def test_what_is_added_around_a_text_is_what_transformers_adds(
    kind: str, processor: Any, bos: bool, eos: bool, flags: dict[str, bool], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = frames.folder_with(kind, tmp_path, processor, **flags)
    vocabulary = read_vocabulary(folder, config={}, size=None, architecture="")
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        found = llama.encode("the of", add_special=True, parse_special=False)
    assert found == AutoTokenizer.from_pretrained(folder).encode("the of")
    assert (found[0] == vocabulary.special["bos"], found[-1] == vocabulary.special["eos"]) == (bos, eos)


RSTRIP = {"special": True, "rstrip": True}
PHI3 = {
    **{text: {"special": True} for text in ("<unk>", "<s>", "<|endoftext|>")},
    "</s>": {"special": False, "rstrip": True},
    **dict.fromkeys(("<|user|>", "<|assistant|>", "<|end|>"), RSTRIP),
}


@pytest.mark.parametrize("name", ["My Support Bot", "Phi 3 Mini 4K Instruct"])
def test_a_name_makes_llama_cpp_take_white_space_as_transformers_does(name: str, tmp_path: Path) -> None:
    """llama.cpp issue 7685."""
    from transformers import AutoTokenizer

    vocabularies.write_naming("qwen2-bpe", tmp_path, ["tokenizer.json"], PHI3)
    vocabulary = read_vocabulary(tmp_path, config={}, size=None, architecture="")
    text = "<|user|>\nthe of<|end|> \n <|assistant|>\n a</s> b<s> c<|endoftext|>\n"
    expected = AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False)
    for written, same in ((name, False), (name_for(vocabulary, name), True)):
        with oracles.in_llama(vocabulary, tmp_path, written) as llama:
            assert (llama.encode(text, add_special=False, parse_special=True) == expected) == same


def test_a_name_under_which_llama_cpp_loads_nothing(tmp_path: Path) -> None:
    vocabularies.write_naming("qwen2-bpe", tmp_path, ["tokenizer.json"], {"<|user|>": {"special": True}})
    vocabulary = read_vocabulary(tmp_path, config={}, size=None, architecture="")
    with pytest.raises(RuntimeError, match="cannot load"), oracles.in_llama(vocabulary, tmp_path, "Phi-3-distill"):
        pass
    with oracles.in_llama(vocabulary, tmp_path, name_for(vocabulary, "Phi-3-distill")) as llama:
        assert llama.encode("the", add_special=False, parse_special=False)


def has_mark(text: str) -> bool:
    return any(unicodedata.category(character).startswith("M") for character in text)


# Where llama.cpp only approximates the publisher's split, the texts on which it may be wrong (src/llama-vocab.cpp).
APPROXIMATE: dict[str, Callable[[str], bool]] = {
    # \p{M} is left out of the classes of letters, because std::regex cannot have it there.
    "gpt-4o": has_mark,
    "tekken": has_mark,
    # A hand-written splitter, which leaves marks out of letters and passes over changes of case.
    "kimi-k2": lambda text: has_mark(text) or text != text.lower(),
    # "(?=(?:\d{3})*\b)" is done by a hand-written splitter for ASCII digits between non-letters.
    "tiny_aya": lambda text: any(character.isnumeric() for character in text),
    # "\s?[　-。]+" before an ideographic space: std::wregex leaves the space out of the match.
    "deepseek-llm": lambda text: " \u3000" in text,
    # The reference names it falcon3, but llama.cpp splits it like Llama 3: punctuation, white space and endings differ.
    "falcon3": lambda text: not all(character.isalpha() or character == " " for character in text),
    # Of Unigram: the library replaces whole clusters by the charsmap before it looks at characters.
    "t5": lambda text: "\u200d\u0301" in text,
}


def folder_and_config(name: str, scratch: Path) -> tuple[Path, dict[str, Any]]:
    folder = scratch / name
    if name in published.FOLDERS:
        return folder, published.write(name, folder)
    size = vocabularies.write(name, folder)
    if name in encoder_vocabularies.ENCODERS:
        return folder, {**published.BERT, "vocab_size": size}
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    base = GEMMA2 if name.startswith("gemma") else published.LLAMA
    # The reference leaves out an EOS that is an array.
    ids = {key: value[0] if isinstance(value, list) else value for key, value in generation.items()}
    return folder, {**base, "vocab_size": size, **ids}


def read(folder: Path, config: dict[str, Any]) -> Vocabulary:
    return read_vocabulary(folder, config=config, size=config["vocab_size"], architecture=config["architectures"][0])


def source_of(folder: Path, vocabulary: Vocabulary) -> oracles.Oracle:
    if (folder / "tokenizer.json").is_file():
        return oracles.HuggingFace(folder)
    if vocabulary.model in ("bert", "t5"):  # what transformers makes of the other files
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "whole")
        return oracles.HuggingFace(folder / "whole")
    return oracles.SentencePiece(folder, vocabulary)


@pytest.mark.parametrize("name", [*published.FOLDERS, "llama-spm", "gemma-spm"])
def test_keys_equal_those_of_the_reference_converter(name: str, tmp_path: Path) -> None:
    folder, config = folder_and_config(name, tmp_path)
    vocabulary = read(folder, config)
    ours, theirs = vocabulary.metadata(), oracles.reference_metadata(folder, config, tmp_path)
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        unneeded = oracles.only_stated(ours, theirs, llama)
    different = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert different - unneeded == DIFFERENT.get(name, {}).keys()


@pytest.mark.parametrize("name", GGUFS)
def test_published_files_come_back(name: str, tmp_path: Path) -> None:
    """GGUF to a folder to GGUF: the keys that llama.cpp published, but for the named ones."""
    keys = published.published_keys(name)
    vocabulary = vocabulary_of(keys, name)
    for file, content in tokenizer_files(vocabulary, "LlamaTokenizer", 4096).items():
        (tmp_path / file).write_bytes(content)
    size = len(vocabulary.tokens)
    again = read_vocabulary(tmp_path, config=token_ids(vocabulary), size=size, architecture="LlamaForCausalLM")
    found = again.metadata()
    different = {key for key in keys.keys() | found.keys() if keys.get(key) != found.get(key)}
    assert different == GGUFS[name].keys()


def test_byte_fallback_differs_from_the_reference_only_as_documented(tmp_path: Path) -> None:
    folder, config = folder_and_config("llama-bpe-fallback", tmp_path)
    ours, theirs = read(folder, config).metadata(), oracles.reference_metadata(folder, config, tmp_path)
    assert {key for key in ours if ours[key] != theirs[key]} == {KEY.SCORES, KEY.TOKEN_TYPE}
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("name", FROM_GGUF)
def test_the_ids_that_the_publishers_tokenizers_give(name: str, tmp_path: Path) -> None:
    """By our folder in Hugging Face's libraries, and by our file in llama.cpp.

    llama.cpp normalizes nothing, and some published ids of Qwen 3.5 are its own: of texts that are not in NFC.
    """
    folder, config = folder_and_config(name, tmp_path)
    vocabulary = read(folder, config)
    source = source_of(folder, vocabulary)
    cases = published.published_ids(published.FOLDERS[name].gguf)
    assert len(cases) >= 46
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        for text, ids in cases:
            assert llama.encode(text, add_special=False, parse_special=False) == ids, text
            if source.for_llama(text) == text:
                assert source.encode(text, add_special=False, parse_special=False) == ids, text


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_gives_the_ids_of_the_source(name: str, tmp_path: Path) -> None:
    """No text is excluded but by APPROXIMATE; what llama.cpp does by design is in the docstrings of the oracles."""
    folder, config = folder_and_config(name, tmp_path)
    vocabulary = read(folder, config)
    source = source_of(folder, vocabulary)
    approximate = APPROXIMATE.get("t5" if vocabulary.model == "t5" else vocabulary.pre, lambda text: False)
    specials = [text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (3, 4)]
    wrong = []
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        for parse in (True, False):
            probes = dict.fromkeys(source.within(text) for text in oracles.probes(specials[:40]))
            texts = [t for t in probes if source.comparable(t, parse_special=parse)]
            texts = [text for text in texts if not approximate(text)]
            assert len(texts) >= 500
            for add in (False, True):
                for text in texts:
                    found = llama.encode(source.for_llama(text), add_special=add, parse_special=parse)
                    if found != source.encode(text, add_special=add, parse_special=parse):
                        wrong.append((parse, add, text))
        ends = {token for token in vocabulary.eog if not llama.is_eog(token)}
    assert wrong == []
    assert ends == set()


ROWS = [(row, stages) for row in pretokenizers.TABLE for stages in row.stages]


@pytest.mark.parametrize(("row", "stages"), ROWS, ids=[row.name for row, _ in ROWS])
def test_every_row_splits_in_llama_cpp_as_its_stages_do(
    row: pretokenizers.Pretokenizer, stages: pretokenizers.Stages, tmp_path: Path
) -> None:
    whole = vocabularies.train(pretokenizers.pre_tokenizer_of(stages), 1500, ignore_merges=row.ignore_merges)
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path, config={}, size=None, architecture="", pre=row.name)
    source = oracles.HuggingFace(tmp_path)
    excluded = APPROXIMATE.get(row.name, lambda text: False)
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        wrong = [
            text
            for text in oracles.probes([])
            if llama.encode(text, add_special=False, parse_special=False)
            != source.encode(text, add_special=False, parse_special=False)
        ]
    assert [text for text in wrong if not excluded(text)] == []
    assert bool(wrong) == (row.name in APPROXIMATE)
