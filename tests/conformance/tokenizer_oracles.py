"""What is compared with: llama.cpp on a vocabulary-only GGUF, Hugging Face on the source, the reference converter."""

import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Protocol

from gguf.constants import Keys, TokenType
from llama_models import logged

import reference
from ggufsmith.container.layout import lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import Metadata, string, strings
from ggufsmith.tokenizer.vocabulary import Vocabulary

KEY = Keys.Tokenizer
PROBES = Path(__file__).with_name("probes.txt")


def reference_metadata(folder: Path, config: Mapping[str, Any], scratch: Path) -> Metadata:
    """The `tokenizer.*` keys that the reference converter writes for `folder` with this config.json."""
    model = scratch / "Tiny-Fixture"  # it treats models called "phi3" and others in special ways
    model.mkdir()
    for file in folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    out = reference.convert(model, scratch / "reference.gguf", "--vocab-only")
    with open_gguf(out) as file:
        keys = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
        keys.pop(KEY.TOKEN_TYPE_COUNT, None)  # a size of the model
    if names := keys.get("tokenizer.chat_templates"):
        # gguf-py collects them in a set, so that their order changes from process to process; readers look names up.
        keys["tokenizer.chat_templates"] = strings(sorted(names.data))
    return keys


class LlamaVocabulary:
    """llama.cpp's tokenizer on a file that holds only a vocabulary."""

    def __init__(self, path: Path) -> None:
        import llama_cpp as llama

        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        self.llama = llama
        self.model = llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        ids = (self.llama.llama_token * (len(raw) + 8))()
        count = self.llama.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), add_special, parse_special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize returned {count} for {text!r}")
        return list(ids[:count])

    def adds(self, role: str) -> bool:
        """Whether it puts BOS ("bos") before a text, or EOS ("eos") behind it."""
        return bool(getattr(self.llama, f"llama_vocab_get_add_{role}")(self.vocab))

    def is_eog(self, token: int) -> bool:
        return bool(self.llama.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        self.llama.llama_model_free(self.model)


def only_stated(ours: Metadata, theirs: Metadata, llama: LlamaVocabulary) -> set[str]:
    """Keys that the reference writes and ours does not need: that nothing is put before or behind a text, which is what
    llama.cpp, holding our file, does without them.
    """
    flags = {KEY.ADD_BOS: "bos", KEY.ADD_EOS: "eos"}
    missing = {key: role for key, role in flags.items() if key in theirs and key not in ours}
    return {key for key, role in missing.items() if theirs[key].data is False and not llama.adds(role)}


def unlike(path: Path, ours: Metadata, theirs: Metadata, allowed: Collection[str]) -> dict[str, Any]:
    """Keys with other values in the reference's file than in ours, at `path`, but for these and for `only_stated`."""
    llama = LlamaVocabulary(path)
    stated = only_stated(ours, theirs, llama)
    llama.close()
    return {
        key: (ours.get(key), theirs.get(key))
        for key in sorted((ours.keys() | theirs.keys()) - stated - set(allowed))
        if ours.get(key) != theirs.get(key)
    }


@contextmanager
def in_llama(vocabulary: Vocabulary, scratch: Path, name: str = "model") -> Iterator[LlamaVocabulary]:
    """The vocabulary, written to a GGUF of this general.name and loaded by llama.cpp. RuntimeError if it cannot be."""
    path = scratch / "vocabulary.gguf"
    general = {"general.architecture": string("llama"), "general.name": string(name)}
    path.write_bytes(lay_out({**general, **vocabulary.metadata()}, []).header)
    with logged():
        loaded = LlamaVocabulary(path)
        try:
            yield loaded
        finally:
            loaded.close()


class Oracle(Protocol):
    """The source's own tokenizer, and the input for which llama.cpp must give the same ids."""

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def for_llama(self, text: str) -> str: ...

    def comparable(self, text: str, *, parse_special: bool) -> bool: ...

    def within(self, text: str) -> str:
        """The text without what llama.cpp does not know."""
        ...


class HuggingFace:
    """The tokenizers library on a tokenizer.json.

    Two things are llama.cpp's design and are done here before comparing, so that nothing else can differ: it applies no
    Unicode normalization (so it gets the normalized text), and tokens that look special are not parsed as ordinary text
    even where a publisher forgot to mark them (`does_token_look_special` in its converter).

    Left out of texts for WordPiece are the mark that llama.cpp puts before a word, words of more than 100 characters,
    which BERT does not look up, and, where accents are removed, characters of which llama.cpp keeps the first part
    alone (syllables of Korean), and vowels that BERT keeps (spacing marks). Not comparable are, of Unigram, the visible
    space before a combining mark, which the library takes for one character, and texts with a special token that is not
    to be parsed, which the library finds among the pieces; and white space before a token that takes it (lstrip).
    """

    LOOKS_SPECIAL = ("<|", "<｜", "<unused", "<pad>", "<mask>")

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for token in whole["added_tokens"]:
            token["special"] = token["special"] or token["content"].startswith(self.LOOKS_SPECIAL)
        normalizer = whole["normalizer"] or {}
        self.normal = normalizer.get("type") == "NFC"
        self.kind = whole["model"].get("type")
        self.strips = normalizer.get("strip_accents") or (
            normalizer.get("strip_accents") is None and normalizer.get("lowercase", False)
        )
        self.special = [token["content"] for token in whole["added_tokens"] if token["special"]]
        taking = [re.escape(token["content"]) for token in whole["added_tokens"] if token["lstrip"]]
        self.taking = re.compile(rf"\s(?:{'|'.join(taking)})") if taking else None
        self.tokenizer = Tokenizer.from_str(json.dumps(whole))

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self.tokenizer.encode_special_tokens = not parse_special
        return list(self.tokenizer.encode(text, add_special_tokens=add_special).ids)

    def for_llama(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.normal else text

    def comparable(self, text: str, *, parse_special: bool) -> bool:
        if parse_special and self.taking and self.taking.search(text):
            return False
        if self.kind != "Unigram":
            return True
        plain = not parse_special and any(token in text for token in self.special)
        return not plain and not any(a == "▁" and unicodedata.combining(b) for a, b in pairwise(text))

    def within(self, text: str) -> str:
        if self.kind != "WordPiece":
            return text
        kept = "".join(c for c in text if c != "▁" and not (self.strips and _unlike(c)))
        return re.sub(r"\S{90,}", lambda match: match[0][:90], kept)


def _unlike(character: str) -> bool:
    """Whether it is a spacing mark, or consists of several characters that are no accents."""
    parts = [part for part in unicodedata.normalize("NFD", character) if unicodedata.category(part) != "Mn"]
    return len(parts) > 1 or unicodedata.category(character) == "Mc"


class SentencePiece:
    """The sentencepiece library on a tokenizer.model, added tokens cut out first, each fragment with its own space.

    (transformers 5 rebuilds Llama 2 as a tokenizers.Tokenizer that differs from sentencepiece on runs of spaces; the
    model was trained with sentencepiece.) Not comparable, where the vocabulary has user-defined pieces: texts that hold
    one which is a control token in GGUF, without parse_special, as sentencepiece cannot read it as plain text; and a
    visible space beside a real one, which sentencepiece takes for a run of spaces, but llama.cpp, which looks for
    user-defined tokens before it replaces spaces, does not. llama.cpp takes `</s>`, which ends a generation, for a
    control token whatever its type is.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor

        self.processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.ids = {text: i for i, text in enumerate(vocabulary.tokens)}
        kinds = dict(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True))
        self.user = [text for text, kind in kinds.items() if kind == TokenType.USER_DEFINED and text != "</s>"]
        self.special = [text for text, kind in kinds.items() if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
        self.special += ["</s>"] if kinds.get("</s>") == TokenType.USER_DEFINED else []
        self.atomic = [text for text in self.special if self.ids[text] in self.processor.encode(text)]

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        cut = sorted([*self.user, *(self.special if parse_special else ())], key=len, reverse=True)
        ids = [self.processor.bos_id()] if add_special else []
        for part in re.split(f"({'|'.join(map(re.escape, cut))})", text) if cut else [text]:
            ids += [self.ids[part]] if part in cut else self.processor.encode(part)
        return ids

    def for_llama(self, text: str) -> str:
        return text

    def within(self, text: str) -> str:
        return text

    def comparable(self, text: str, *, parse_special: bool) -> bool:
        if self.user and re.search("▁ | ▁", text):
            return False
        return parse_special or not any(token in text for token in self.atomic)


def _plain(line: str) -> str:
    """A line of probes.txt: white space and characters that editors change are written visibly there."""
    for shown, character in zip("␠␤␉␍␀␡", " \n\t\r\0\x7f", strict=True):
        line = line.replace(shown, character)
    return re.sub("⟦([0-9A-F]+)⟧", lambda match: chr(int(match[1], 16)), line)


def probes(specials: list[str]) -> list[str]:
    """At least 500 texts: those of probes.txt, pairs of them, random edge characters, special tokens inside."""
    rng = Random(7)

    def pick(values: list[str]) -> str:
        return values[int(rng.random() * len(values))]

    base = [_plain(line) for line in PROBES.read_text(encoding="utf-8").splitlines()]
    result = list(base)
    result += [pick(base) + pick(["", " ", "\n", "  ", "\n\n", "\t"]) + pick(base) for _ in range(180)]
    edge = list(" \n\t\r.,!?'\"-_/()[]{}0123456789aAbBéßñ你はй𝟙😀\u0301\u200d\u00a0")
    edge += ["  ", "   ", "'s", "'LL", "ing", " the", "The", "\n\n", "123", "ไทย", "नम", "عر", "한국", "▁"]
    result += ["".join(pick(edge) for _ in range(1 + int(rng.random() * 24))) for _ in range(220)]
    result += [f"{pick(base)}{token}{pick(base)}" for token in specials for _ in range(2)]
    result += [" ".join(pick([*specials, *base]) for _ in range(4)) for _ in range(30)]
    result += [
        character * count for character in (" ", "\n", "\t", "a", "1", "=", "é", "😀") for count in (17, 64, 200)
    ]
    return list(dict.fromkeys(result))
