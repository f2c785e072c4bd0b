"""Vocabularies against the reference converter, llama.cpp and Hugging Face.

Differences from the reference converter on folders that are not ordinary, all on purpose:

- Llama-style BPE without tokenizer.model: scores follow the merge ranks (the reference writes -1000 everywhere, and
  llama.cpp then merges from left to right), and added tokens marked special are control tokens.
- `eom` or `eot` for a stated end of generation that llama.cpp does not know by its text.
- `bos` and `eos` from generation_config.json or by text where config.json gives none.
- add_bos false where llama.cpp would add BOS and no file of the model does.
- add_space_prefix false from tokenizer.model itself, not from the class of the model.
"""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizer_oracles as oracles
from gguf.constants import Keys

import vocabularies
from ggufsmith.tokenizer import pretokenizers
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.vocabulary import Vocabulary

pytestmark = pytest.mark.conformance

KEY = Keys.Tokenizer
NAMES = [*oracles.REAL, *vocabularies.KINDS]


def folder_and_config(name: str, scratch: Path) -> tuple[Path, dict[str, Any]]:
    if name in oracles.REAL:
        return oracles.real_folder(name), oracles.REAL[name]
    folder = scratch / name
    size = vocabularies.write(name, folder)
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    base = oracles.GEMMA2 if name.startswith("gemma") else oracles.LLAMA
    # The reference leaves out an EOS that is an array.
    ids = {key: value[0] if isinstance(value, list) else value for key, value in generation.items()}
    return folder, {**base, "vocab_size": size, **ids}


def read(folder: Path, config: dict[str, Any]) -> Vocabulary:
    return read_vocabulary(folder, config=config, size=config["vocab_size"], architecture=config["architectures"][0])


@pytest.mark.parametrize("name", [*oracles.REAL, "llama-spm", "gemma-spm"])
def test_keys_equal_those_of_the_reference_converter(name: str, tmp_path: Path) -> None:
    folder, config = folder_and_config(name, tmp_path)
    assert read(folder, config).metadata() == oracles.reference_metadata(folder, config, tmp_path)


def test_byte_fallback_differs_from_the_reference_only_as_documented(tmp_path: Path) -> None:
    folder, config = folder_and_config("llama-bpe-fallback", tmp_path)
    ours, theirs = read(folder, config).metadata(), oracles.reference_metadata(folder, config, tmp_path)
    assert {key for key in ours if ours[key] != theirs[key]} == {KEY.SCORES, KEY.TOKEN_TYPE}
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_gives_the_ids_of_the_source(name: str, tmp_path: Path) -> None:
    """No text is excluded; what llama.cpp does by design is in the docstrings of the oracles."""
    folder, config = folder_and_config(name, tmp_path)
    vocabulary = read(folder, config)
    source: oracles.Oracle
    if (folder / "tokenizer.json").is_file():
        source = oracles.HuggingFace(folder)
    else:
        source = oracles.SentencePiece(folder, vocabulary)
    specials = [text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (3, 4)]
    wrong = []
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        for parse in (True, False):
            texts = [t for t in oracles.probes(specials[:40]) if source.comparable(t, parse_special=parse)]
            assert len(texts) >= 500
            for add in (False, True):
                for text in texts:
                    found = llama.encode(source.for_llama(text), add_special=add, parse_special=parse)
                    if found != source.encode(text, add_special=add, parse_special=parse):
                        wrong.append((parse, add, text))
        ends = {token for token in vocabulary.eog if not llama.is_eog(token)}
    assert wrong == []
    assert ends == set()


def has_mark(text: str) -> bool:
    return any(unicodedata.category(character).startswith("M") for character in text)


# Where llama.cpp only approximates the publisher's split, the texts on which it may be wrong (src/llama-vocab.cpp).
APPROXIMATE: dict[str, Callable[[str], bool]] = {
    # \p{M} is left out of the classes of letters, because std::regex cannot have it there.
    "gpt-4o": has_mark,
    "tekken": has_mark,
    # "(?=(?:\d{3})*\b)" is done by a hand-written splitter for ASCII digits between non-letters.
    "tiny_aya": lambda text: any(character.isnumeric() for character in text),
    # "\s?[　-。]+" before an ideographic space: std::wregex leaves the space out of the match.
    "deepseek-llm": lambda text: " \u3000" in text,
    # The reference names it falcon3, but llama.cpp splits it like Llama 3: punctuation, white space and endings differ.
    "falcon3": lambda text: not all(character.isalpha() or character == " " for character in text),
}


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
