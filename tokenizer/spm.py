"""tokenizer.model: a SentencePiece vocabulary as GGUF tokens, types and scores."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import TokenType

from ggufsmith.container.errors import Malformed
from ggufsmith.tokenizer.bpe import SPACE, Added, Table, check_vocab, read_decoder
from ggufsmith.tokenizer.source import Json, read_object

MAX_MODEL = 64 * 2**20
TIKTOKEN = re.compile(rb"\A[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True)
class Pieces:
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


def parse_pieces(raw: bytes, where: Path) -> Pieces:
    """Parse a serialized ModelProto. Malformed if the sentencepiece library refuses it."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(raw)
        ids = list(range(model.vocab_size()))
        tokens, scores = model.id_to_piece(ids), model.get_score(ids)
    except (RuntimeError, OSError, ValueError) as error:
        fix = "Download it again; a clone without Git LFS holds only where it can be found."
        raise Malformed(f"not a SentencePiece model: {error}", where=where, fix=fix) from None
    if not np.isfinite(scores).all():
        raise Malformed("a score is not finite", where=where)
    types = [TokenType.NORMAL] * len(ids)
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
    return Pieces(
        tokens,
        scores,
        types,
        dummy_prefix=bool(probe) and probe[0].startswith(SPACE),
        unigram=any(score % 1 for score in normal),
        normalizes=model.encode("ａ") == model.encode("a") or model.encode("a  a") == model.encode("a a"),
    )


def table_of(pieces: Pieces, folder: Path, tokenizer_config: Json, size: int | None) -> Table:
    """All tokens: the model's pieces, then added_tokens.json, then `added_tokens_decoder` of tokenizer_config.json.

    Pieces beyond `size` have no row in the embedding and are left out, as llama.cpp's converter does.
    """
    added_file = folder / "added_tokens.json"
    plain = read_object(folder, added_file.name) or {}
    if plain:
        check_vocab(plain, added_file, "the file")
    decoder = read_decoder(tokenizer_config, folder / "tokenizer_config.json")
    count = len(pieces.tokens)
    table = Table.of(max([count - 1, *plain.values(), *decoder]) + 1 if size is None else size)
    kept = min(count, len(table.tokens))
    if kept < count:
        table.notes.append(
            f"tokenizer.model has {count} pieces, the embedding {kept} rows: the last {count - kept} left out"
        )
    table.tokens[:kept] = pieces.tokens[:kept]
    table.types[:kept] = pieces.types[:kept]
    table.scores[:kept] = pieces.scores[:kept]
    for text, token in plain.items():
        if token not in decoder:
            table.put(Added(token, text, special=False))
    for added in decoder.values():
        table.put(added)
    return table
