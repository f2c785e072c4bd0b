"""tokenizer.json: its vocabulary and merges as GGUF tokens, types and scores."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import TokenType

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.untrusted import Json, child, expect, shown
from ggufsmith.tokenizer.added import NAMED, AddedTokens
from ggufsmith.tokenizer.source import MAX_TOKENS
from ggufsmith.tokenizer.table import TokenTable

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class BpeModel:
    """The `model` of a tokenizer.json. vocab: text -> id. merges: "left right" by rank."""

    vocab: Mapping[str, int]
    merges: tuple[str, ...]
    byte_fallback: bool
    ignore_merges: bool
    unknown: str | None


def read_bpe(tokenizer: Json, where: Path) -> BpeModel:
    """The BPE model, checked. Unsupported: other models, and subword prefixes, which llama.cpp lacks."""
    model = expect(tokenizer.get("model"), dict, where=where, key="model")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise Unsupported(
            f"model.type is {shown(kind)}, but only BPE, WordPiece and Unigram can be converted from tokenizer.json",
            where=where,
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise Unsupported(
                f"model.{key} is {shown(model[key])}, which llama.cpp's BPE does not support", where=where
            )
    vocab = expect(model.get("vocab"), dict, where=where, key="model.vocab")
    check_vocab(vocab, where, "model.vocab")
    return BpeModel(
        vocab,
        _merges(expect(model.get("merges"), list, where=where, key="model.merges"), vocab, where),
        bool(child(model, "byte_fallback", bool, where=where, path="model.")),
        bool(child(model, "ignore_merges", bool, where=where, path="model.")),
        child(model, "unk_token", str, where=where, path="model."),
    )


def check_vocab(vocab: Mapping[str, Any], where: object, key: str) -> None:
    """Malformed unless every id is an integer in range and given to one text only."""
    if not vocab:
        raise Malformed(f"{key} is empty", where=where)
    ids = vocab.values()
    if not set(map(type, ids)) <= {int}:
        text = next(text for text, token in vocab.items() if type(token) is not int)
        raise Malformed(f"{key}[{shown(text)}] is {shown(vocab[text])}, not an integer", where=where)
    low, high = min(ids), max(ids)
    if low < 0 or high >= MAX_TOKENS:
        raise Malformed(f"{key} has the id {low if low < 0 else high}, outside 0..{MAX_TOKENS - 1}", where=where)
    if len(set(ids)) != len(vocab):
        owner: dict[int, str] = {}
        for text, token in vocab.items():
            if token in owner:
                raise Malformed(
                    f"{key} gives the id {token} to {shown(owner[token])} and to {shown(text)}", where=where
                )
            owner[token] = text


def check_room(vocab: Mapping[str, int], size: int | None, where: Path) -> None:
    """Malformed if a vocabulary does not fit into the rows of the embedding."""
    last = max(vocab.values())
    if size is not None and last >= size:
        raise Malformed(
            f"model.vocab goes up to id {last}, but the embedding has {size} rows",
            where=where,
            fix="The tokenizer belongs to another model, or the embedding was cut.",
        )


def _merges(stated: list[Any], vocab: Mapping[str, int], where: Path) -> tuple[str, ...]:
    """Merges as "left right". Both forms are read: "a b" and, since transformers 4.45, ["a", "b"]."""
    pairs = []
    for rank, merge in enumerate(stated):
        pair = merge.split(" ") if type(merge) is str else merge
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise Malformed(f'model.merges[{rank}] is {shown(merge)}, expected "left right" or a pair', where=where)
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            missing = next(text for text in (left, right, left + right) if text not in vocab)
            raise Malformed(
                f"model.merges[{rank}] needs the token {shown(missing)}, which model.vocab lacks", where=where
            )
        if " " in left or " " in right:
            raise Unsupported(
                f"model.merges[{rank}] merges a plain space; GGUF separates the two with one", where=where
            )
        pairs.append(f"{left} {right}")
    return tuple(pairs)


def table_of(bpe: BpeModel, added: AddedTokens, size: int | None, where: Path, *, scored: bool) -> TokenTable:
    """All tokens of a tokenizer.json. Malformed if the vocabulary proper does not fit into `size` rows.

    scored: give the tokens the scores of `_score`, and bytes and the unknown token their types.
    """
    check_room(bpe.vocab, size, where)
    last = max(bpe.vocab.values())
    table = TokenTable.of(1 + max(last, added.last) if size is None else size)
    for text, token in bpe.vocab.items():
        table.tokens[token] = text
    ids = np.fromiter(bpe.vocab.values(), np.int64, len(bpe.vocab))
    table.types[ids] = TokenType.NORMAL
    if scored:
        _score(table, bpe)
    table.notes += added.notes
    for entry in added.tokens:
        table.put(entry, settles=entry.source != NAMED)
    return table


def _score(table: TokenTable, bpe: BpeModel) -> None:
    """Scores under which llama.cpp, which joins the neighbours whose union scores highest, merges as the ranks do.

    A merge of rank r gives its result the score -r, as SentencePiece's own BPE trainer does; the first merge counts.
    llama.cpp's LlamaHfVocab writes -1000 everywhere, which merges from left to right instead.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(bpe.merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    for text, token in bpe.vocab.items():
        byte = len(text) == 6 and BYTE.fullmatch(text) is not None
        table.types[token] = TokenType.BYTE if byte else TokenType.NORMAL
        table.scores[token] = 0.0 if byte else -float(ranks.get(text, len(bpe.merges)))
    if bpe.unknown is not None and bpe.unknown in bpe.vocab:
        table.types[bpe.vocab[bpe.unknown]] = TokenType.UNKNOWN
