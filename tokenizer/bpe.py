"""tokenizer.json: its vocabulary, merges and added tokens as GGUF tokens, types and scores."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import TokenType
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.tokenizer.source import MAX_TOKENS, Json, child, expect, shown, token_text

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
SPACE = "▁"  # SentencePiece's visible space
NO_SCORE = -1000.0  # score of added tokens: llama.cpp looks them up before it merges
PAD_SCORE = -10000.0

# Added tokens that publishers forgot to mark as special (llama.cpp, conversion/base.py, does_token_look_special).
LOOKS_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL)


@dataclass(frozen=True)
class Added:
    """One added token. special: matched only when special tokens are parsed, and not shown."""

    id: int
    text: str
    special: bool

    @property
    def control(self) -> bool:
        return self.special or LOOKS_SPECIAL.fullmatch(self.text) is not None

    @property
    def piece(self) -> str:
        """The text as llama.cpp must find it in the input: user-defined tokens are matched before normalization."""
        return self.text if self.control else self.text.replace(SPACE, " ")


@dataclass(frozen=True)
class Bpe:
    """The `model` of a tokenizer.json. vocab: text -> id. merges: "left right" by rank."""

    vocab: Mapping[str, int]
    merges: tuple[str, ...]
    byte_fallback: bool
    ignore_merges: bool
    unknown: str | None


def read_bpe(tokenizer: Json, where: Path) -> Bpe:
    """The BPE model, checked. Unsupported: WordPiece, Unigram, and subword prefixes, which llama.cpp's BPE has not."""
    model = expect(tokenizer.get("model"), dict, where=where, key="model")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise Unsupported(
            f"model.type is {shown(kind)}, only BPE can be converted from tokenizer.json",
            where=where,
            fix="A SentencePiece vocabulary converts from its tokenizer.model; put that file into the folder.",
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise Unsupported(f"model.{key} is {shown(model[key])}; llama.cpp's BPE has none", where=where)
    vocab = expect(model.get("vocab"), dict, where=where, key="model.vocab")
    check_vocab(vocab, where, "model.vocab")
    return Bpe(
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


def read_added(
    tokenizer: Json, tokenizer_config: Json, folder: Path, named: Container[str] = frozenset()
) -> list[Added]:
    """Added tokens of tokenizer.json, then those that only `added_tokens_decoder` of tokenizer_config.json has.

    named: texts that a file names as bos, eos, ... or as a further special token; transformers makes them special.
    """
    found: dict[int, Added] = {}
    where = folder / "tokenizer.json"
    for number, entry in enumerate(child(tokenizer, "added_tokens", list, where=where) or []):
        key = f"added_tokens[{number}]"
        entry = expect(entry, dict, where=where, key=key)
        _add(found, expect(entry.get("id"), int, where=where, key=f"{key}.id"), entry, where, key)
    listed = set(found)
    for token, entry in read_decoder(tokenizer_config, folder / "tokenizer_config.json").items():
        if token not in listed:
            found[token] = entry
    return [replace(token, special=token.special or token.text in named) for token in found.values()]


def read_decoder(tokenizer_config: Json, where: Path) -> dict[int, Added]:
    """`added_tokens_decoder` of tokenizer_config.json: id -> token."""
    found: dict[int, Added] = {}
    for number, entry in (child(tokenizer_config, "added_tokens_decoder", dict, where=where) or {}).items():
        key = f"added_tokens_decoder[{shown(number)}]"
        if not re.fullmatch("[0-9]{1,9}", number):
            raise Malformed(f"{key}: the key is not a token id", where=where)
        _add(found, int(number), entry if isinstance(entry, dict) else {"content": entry}, where, key)
    return found


def _add(found: dict[int, Added], token: int, entry: Json, where: Path, key: str) -> None:
    if not 0 <= token < MAX_TOKENS:
        raise Malformed(f"{key} has the id {token}, outside 0..{MAX_TOKENS - 1}", where=where)
    text = expect(token_text(entry, where=where, key=key), str, where=where, key=f"{key}.content")
    if token in found and found[token].text != text:
        raise Malformed(f"the id {token} is given to {shown(found[token].text)} and to {shown(text)}", where=where)
    if not text:
        raise Malformed(f"{key} is empty", where=where)
    found[token] = Added(token, text, bool(child(entry, "special", bool, where=where, path=f"{key}.")))


@dataclass
class Table:
    """Tokens by id while they are put together. None: no such id yet."""

    tokens: list[str | None]
    types: NDArray[np.int32]
    scores: NDArray[np.float32]
    notes: list[str]

    @classmethod
    def of(cls, size: int) -> "Table":
        types = np.full(size, TokenType.UNUSED, np.int32)
        return cls([None] * size, types, np.full(size, PAD_SCORE, np.float32), [])

    def put(self, added: Added) -> None:
        """Set an added token; ids outside the table have no row in the embedding, so the model cannot use them."""
        if added.id >= len(self.tokens):
            self.notes.append(f"token {added.id} {shown(added.text)} has no row in the embedding: left out")
            return
        before = self.tokens[added.id]
        if before is not None and before != added.text:
            self.notes.append(
                f"token {added.id} is {shown(added.text)} as an added token, {shown(before)} in the vocabulary"
            )
        self.tokens[added.id] = added.piece
        self.types[added.id] = TokenType.CONTROL if added.control else TokenType.USER_DEFINED
        self.scores[added.id] = NO_SCORE

    def finish(self, where: Path) -> tuple[str, ...]:
        """All tokens, ids without a text named [PADn]. Malformed: equal texts (llama.cpp aborts), lone surrogates."""
        holes = [i for i, text in enumerate(self.tokens) if text is None]
        if holes:
            self.notes.append(f"{len(holes)} of {len(self.tokens)} ids have no token: written as unused [PADn]")
        tokens = tuple(f"[PAD{i}]" if text is None else text for i, text in enumerate(self.tokens))
        try:
            "".join(tokens).encode()
        except UnicodeEncodeError:
            broken = next(i for i, text in enumerate(tokens) if any("\ud800" <= c <= "\udfff" for c in text))
            raise Malformed(f"token {broken} holds half of a surrogate pair", where=where) from None
        if len(set(tokens)) != len(tokens):
            first: dict[str, int] = {}
            for i, text in enumerate(tokens):
                if first.setdefault(text, i) != i:
                    raise Malformed(f"tokens {first[text]} and {i} are both {shown(text)}", where=where)
        return tokens


def table_of(bpe: Bpe, added: list[Added], size: int | None, where: Path, *, scored: bool) -> Table:
    """All tokens of a tokenizer.json. Malformed if the vocabulary proper does not fit into `size` rows."""
    last = max(bpe.vocab.values())
    if size is not None and last >= size:
        raise Malformed(
            f"model.vocab goes up to id {last}, but the embedding has {size} rows",
            where=where,
            fix="The tokenizer belongs to another model, or the embedding was cut.",
        )
    table = Table.of(1 + max(last, *(token.id for token in added), 0) if size is None else size)
    for text, token in bpe.vocab.items():
        table.tokens[token] = text
    ids = np.fromiter(bpe.vocab.values(), np.int64, len(bpe.vocab))
    table.types[ids] = TokenType.NORMAL
    if scored:
        _score(table, bpe)
    owners = dict(bpe.vocab)
    gap = next((t for i, t in enumerate(t for t in added if t.text not in owners) if t.id != len(bpe.vocab) + i), None)
    if gap is not None:
        table.notes.append(
            f"added token {gap.id} {shown(gap.text)} does not follow the one before: transformers renumbers it"
        )
    for entry in added:
        # Like the tokenizers library: a text has one id, that of the vocabulary or of the first added token.
        owner = owners.setdefault(entry.text, entry.id)
        if owner != entry.id:
            table.notes.append(
                f"added token {entry.id} {shown(entry.text)} is token {owner} already: its own id is unused"
            )
        table.put(replace(entry, id=owner))
    return table


def _score(table: Table, bpe: Bpe) -> None:
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
