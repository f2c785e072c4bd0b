"""tokenizer.model: a SentencePiece vocabulary as GGUF tokens, types and scores."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import TokenType

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import LFS_POINTER, Json, shown
from ggufsmith.tokenizer.added import DECODER, JSON, SPACE, AddedToken, AddedTokens, listing
from ggufsmith.tokenizer.proto import USER_DEFINED, piece_types
from ggufsmith.tokenizer.table import TokenTable

MAX_MODEL = 64 * 2**20
TIKTOKEN = re.compile(rb"\A[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True)
class SentencePieces:
    """A vocabulary by id.

    dummy_prefix: a space is put before every text.
    unigram:      not trained as BPE (whose scores are whole numbers).
    normalizes:   full-width letters become plain ones, or two spaces one.
    """

    tokens: list[str]
    scores: list[float]
    types: list[TokenType]
    dummy_prefix: bool
    unigram: bool
    normalizes: bool


def is_tiktoken(raw: bytes) -> bool:
    """Whether a `tokenizer.model` is the rank list that Meta ships with Llama 3, which only shares the name."""
    return TIKTOKEN.match(raw[:4096]) is not None


def parse_pieces(raw: bytes, where: Path) -> SentencePieces:
    """Parse a serialized ModelProto. Malformed if the sentencepiece library refuses it."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(raw)
        ids = list(range(model.vocab_size()))
        tokens, scores = model.id_to_piece(ids), model.get_score(ids)
    except (RuntimeError, OSError, ValueError) as error:
        fix = "Run `git lfs pull`." if raw.startswith(LFS_POINTER) else "Download it again."
        raise Malformed(f"this is not a SentencePiece model: {error}", where=where, fix=fix) from None
    if not np.isfinite(scores).all():
        raise Malformed("a score is not finite", where=where)
    # The library does not tell user-defined pieces, which it never splits, from ordinary ones.
    try:
        stored = piece_types(raw)
    except ValueError as error:
        raise Malformed(f"this is not a SentencePiece model: {error}", where=where, fix="Download it again.") from None
    types = [TokenType.USER_DEFINED if kind == USER_DEFINED else TokenType.NORMAL for kind in stored]
    if len(types) != len(ids):
        raise Malformed(f"{len(types)} pieces are stored, but the library finds {len(ids)}", where=where)
    kinds = (
        (model.is_byte, TokenType.BYTE),
        (model.is_unused, TokenType.UNUSED),
        (model.is_control, TokenType.CONTROL),
        (model.is_unknown, TokenType.UNKNOWN),
    )
    for test, kind in kinds:
        for token in (i for i, yes in zip(ids, test(ids), strict=True) if yes):
            types[token] = kind
    normal = [score for score, kind in zip(scores, types, strict=True) if kind == TokenType.NORMAL]
    probe = model.encode("a", out_type=str)
    return SentencePieces(
        tokens,
        scores,
        types,
        dummy_prefix=bool(probe) and probe[0].startswith(SPACE),
        unigram=any(score % 1 for score in normal),
        normalizes=model.encode("ａ") == model.encode("a") or model.encode("a  a") == model.encode("a a"),
    )


def table_of(pieces: SentencePieces, more: Mapping[int, str], added: AddedTokens, size: int | None) -> TokenTable:
    """All tokens: the model's pieces, the words that only a tokenizer.json beside it has, and the added tokens.

    more: those words, by id. Pieces beyond `size` have no row in the embedding and are left out, as llama.cpp's
    converter does.
    """
    count = len(pieces.tokens)
    ids = [token.id for token in added.tokens]
    table = TokenTable.of(max([count - 1, added.last, *more]) + 1 if size is None else size)
    kept = min(count, len(table.tokens))
    if kept < count:
        table.notes.append(
            f"tokenizer.model has {count} pieces, but the embedding matrix has {kept} rows; the last {count - kept} "
            f"are left out"
        )
    table.tokens[:kept] = pieces.tokens[:kept]
    table.types[:kept] = pieces.types[:kept]
    table.scores[:kept] = pieces.scores[:kept]
    table.notes += added.notes
    for token in {*np.flatnonzero(table.types == TokenType.USER_DEFINED).tolist()} - {*ids}:
        table.put(AddedToken(token, pieces.tokens[token]), settles=True)
    words = {token: text for token, text in more.items() if token < len(table.tokens) and token not in ids}
    if words:
        table.notes.append(f"only the vocabulary of tokenizer.json has {listing(dict.fromkeys(words.values()))}")
    for number, (token, text) in enumerate(sorted(words.items()), 1):
        table.tokens[token] = text
        table.types[token] = TokenType.NORMAL
        table.scores[token] = min(pieces.scores) - number  # merged after all others
    for entry in added.tokens:
        table.put(entry, settles=entry.source == DECODER or (entry.source == JSON and not entry.control))
    return table


def words_of(tokenizer: Json | None) -> dict[int, str]:
    """The vocabulary proper of a tokenizer.json, by id; empty for one that has none, or a strange one."""
    model = (tokenizer or {}).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return {token: text for text, token in vocab.items() if type(token) is int}
    if isinstance(vocab, list):  # of a unigram model: pairs of text and score
        return {i: pair[0] for i, pair in enumerate(vocab) if isinstance(pair, list) and pair and type(pair[0]) is str}
    return {}


def differences(pieces: SentencePieces, words: Mapping[int, str]) -> dict[int, str]:
    """Ids that have another text in a tokenizer.json than in the model, and that text."""
    return {
        token: text for token, text in words.items() if 0 <= token < len(pieces.tokens) and pieces.tokens[token] != text
    }


def check_words(pieces: SentencePieces, differ: Mapping[int, str], added: AddedTokens, where: Path) -> None:
    """Malformed for a token that the two files call differently, if it is not an added token."""
    renamed = {token.id: token.text for token in added.tokens}
    left = {token: text for token, text in differ.items() if renamed.get(token) != text}
    if left:
        token, text = min(left.items())
        raise Malformed(
            f"token {token} is {shown(pieces.tokens[token])} in tokenizer.model and {shown(text)} in tokenizer.json"
            + (f", and {len(left) - 1} more differ" if len(left) > 1 else ""),
            where=where,
            fix="Delete the one that does not belong to these weights; transformers reads tokenizer.json.",
        )
