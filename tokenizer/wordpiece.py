"""WordPiece, the vocabulary of BERT, as GGUF tokens of llama.cpp's tokenizer "bert".

WordPiece marks what continues a word (##ing), llama.cpp what begins one (▁play), so the marks change sides. llama.cpp
splits words as BERT's own code does and takes the longest token at every place; the keys under `normalizer` say whether
it makes letters small and removes accents.

Source: llama.cpp's conversion/bert.py (`phantom`) and src/llama-vocab.cpp (llm_tokenizer_wpm_session).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import TokenType

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.untrusted import Json, child, expect, shown
from ggufsmith.container.values import Metadata, boolean
from ggufsmith.tokenizer.added import SPACE, read_added
from ggufsmith.tokenizer.around import read_frame
from ggufsmith.tokenizer.bpe import check_room, check_vocab
from ggufsmith.tokenizer.files import TokenizerFiles
from ggufsmith.tokenizer.parts import Parts
from ggufsmith.tokenizer.table import TokenTable

CONTINUES = "##"  # the only prefix that vocabularies have been published with
# Keys of gguf-py's later releases.
LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"
ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def read_wordpiece(files: TokenizerFiles, rows: int | None, notes: list[str]) -> Parts:
    """The vocabulary of a WordPiece tokenizer.json.

    rows: of the embedding. notes: where sentences for the report are added. Malformed: damaged. Unsupported: another
    split into words than BERT's, another mark than ##.
    """
    assert files.tokenizer is not None
    where = files.path("tokenizer.json")
    model = expect(files.tokenizer.get("model"), dict, where=where, key="model")
    vocab = expect(model.get("vocab"), dict, where=where, key="model.vocab")
    check_vocab(vocab, where, "model.vocab")
    prefix = child(model, "continuing_subword_prefix", str, where=where, path="model.")
    if prefix not in (None, CONTINUES):
        raise Unsupported(f"pieces begin with {shown(prefix)}; llama.cpp's WordPiece has {CONTINUES}", where=where)
    split = child(files.tokenizer, "pre_tokenizer", dict, where=where) or {}
    if split.get("type") != "BertPreTokenizer":
        raise Unsupported(
            f"words are split by {shown(split.get('type'))}, but llama.cpp splits them as BertPreTokenizer does",
            where=f"{where}: pre_tokenizer",
        )
    added = read_added(files, vocab, rows, renames=False)
    check_room(vocab, rows, where)
    table = TokenTable.of(1 + max(*vocab.values(), added.last) if rows is None else rows)
    for text, token in vocab.items():
        table.tokens[token] = text
        table.types[token] = TokenType.NORMAL
    table.notes += added.notes
    for entry in added.tokens:
        table.put(entry, settles=True)
    tokens = tuple(
        text if kind in ADDED else marked(text) for text, kind in zip(table.finish(where), table.types, strict=True)
    )
    if len(set(tokens)) < len(tokens):
        twice = next(text for k, text in enumerate(tokens) if text in tokens[:k])
        raise Unsupported(f"two tokens would both be {shown(twice)} in llama.cpp's spelling", where=where)
    more, said = _normalizer(files.tokenizer, where)
    notes += said
    ids = {text: vocab.get(text, token) for text, token in added.ids["tokenizer.json"].items()}
    return Parts(
        "bert",
        "default",
        table,
        tokens,
        added.tokens,
        ids,
        read_frame(files.tokenizer, where),
        adds_bos=True,
        more=more,
    )


def marked(piece: str) -> str:
    """A piece as llama.cpp spells it."""
    return piece.removeprefix(CONTINUES) if piece.startswith(CONTINUES) else SPACE + piece


def unmarked(token: str) -> str:
    """The piece of a token; the opposite of `marked`."""
    return token.removeprefix(SPACE) if token.startswith(SPACE) else CONTINUES + token


def _normalizer(tokenizer: Json, where: Path) -> tuple[Metadata, list[str]]:
    """The keys about letters, and sentences on what llama.cpp does otherwise."""
    top = child(tokenizer, "normalizer", dict, where=where)
    keys: dict[str, bool] = {}
    notes = []
    for step in _steps(top, where):
        kind = step.get("type")
        if kind == "BertNormalizer":
            for name, key in (("lowercase", LOWERCASE), ("strip_accents", STRIP_ACCENTS)):
                value = child(step, name, bool, where=where, path="normalizer.")
                if value is not None:
                    keys[key] = value
            if child(step, "handle_chinese_chars", bool, where=where, path="normalizer.") is False:
                notes.append("llama.cpp takes every Chinese character as a word, but this tokenizer does not")
        elif kind in ("Lowercase", "StripAccents"):
            keys[LOWERCASE if kind == "Lowercase" else STRIP_ACCENTS] = True
        elif kind not in ("NFD", "NFC"):
            notes.append(f"llama.cpp does not apply the normalizer {shown(kind)}")
    if LOWERCASE not in keys:  # llama.cpp's default is true
        keys[LOWERCASE] = False
    return {key: boolean(value) for key, value in keys.items()}, notes


def _steps(node: Json | None, where: Path) -> Iterator[Json]:
    inner: Any = child(node or {}, "normalizers", list, where=where, path="normalizer.")
    if inner is None:
        yield from [node] if node else []
        return
    for step in inner:
        yield expect(step, dict, where=where, key="normalizer.normalizers")


def piece_of(token: str, kind: int) -> str:
    """The text of a token in a tokenizer.json, by its type in GGUF."""
    return token if kind in ADDED else unmarked(token)


def is_padding(tokens: tuple[str, ...], types: Any) -> Any:
    """For every token, whether it stands for a row of the embedding that no piece has."""
    unused = np.flatnonzero(types == TokenType.UNUSED).tolist()
    found = np.zeros(len(tokens), bool)
    found[[token for token in unused if tokens[token] == f"{SPACE}[PAD{token}]"]] = True
    return found
