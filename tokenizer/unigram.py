"""Unigram, the vocabulary of XLM-RoBERTa, as GGUF tokens of llama.cpp's tokenizer "t5".

Every piece has the logarithm of its probability; the likeliest division of a text is taken. Texts are normalized before
by a table of replacements, SentencePiece's precompiled_charsmap, which GGUF holds as it is.

Source: llama.cpp's conversion/bert.py (_xlmroberta_set_vocab) and src/llama-vocab.cpp (llm_tokenizer_ugm_session).
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import Keys, TokenType

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.untrusted import Json, child, expect, shown
from ggufsmith.container.values import Metadata, array, boolean
from ggufsmith.tokenizer.added import SPACE, read_added
from ggufsmith.tokenizer.around import read_frame
from ggufsmith.tokenizer.bpe import check_room, check_vocab
from ggufsmith.tokenizer.files import TokenizerFiles
from ggufsmith.tokenizer.parts import Parts
from ggufsmith.tokenizer.table import TokenTable

KEY = Keys.Tokenizer


@dataclass(frozen=True)
class Unigram:
    """The `model` of a tokenizer.json. pieces: (text, score) by id. unknown: the id of what stands for the rest."""

    pieces: tuple[tuple[str, float], ...]
    unknown: int | None


def parse_unigram(tokenizer: Json, where: Path) -> Unigram:
    """The Unigram model, checked. Malformed if it is damaged. Unsupported: bytes, which llama.cpp's "t5" lacks."""
    model = expect(tokenizer.get("model"), dict, where=where, key="model")
    pieces = []
    for number, pair in enumerate(expect(model.get("vocab"), list, where=where, key="model.vocab")):
        key = f"model.vocab[{number}]"
        entry = expect(pair, list, where=where, key=key)
        if len(entry) != 2 or type(entry[0]) is not str or type(entry[1]) not in (int, float):
            raise Malformed(f"{key} is {shown(pair)}, expected a text and its score", where=where)
        if not np.isfinite(np.float32(entry[1])):
            raise Malformed(f"{key} has a score that is not finite", where=where)
        pieces.append((entry[0], float(entry[1])))
    unknown = child(model, "unk_id", int, where=where, path="model.")
    if unknown is not None and not 0 <= unknown < len(pieces):
        raise Malformed(f"model.unk_id is {unknown}, of {len(pieces)} pieces", where=where)
    if child(model, "byte_fallback", bool, where=where, path="model."):
        raise Unsupported("unknown characters become bytes here, which llama.cpp's Unigram does not do", where=where)
    return Unigram(tuple(pieces), unknown)


def read_unigram(files: TokenizerFiles, rows: int | None, notes: list[str]) -> Parts:
    """The vocabulary of a Unigram tokenizer.json. rows: of the embedding. notes: where sentences are added.

    Malformed and Unsupported as `parse_unigram`.
    """
    assert files.tokenizer is not None
    where = files.path("tokenizer.json")
    model = parse_unigram(files.tokenizer, where)
    vocab: dict[str, int] = {}
    for token, (text, _) in enumerate(model.pieces):
        vocab.setdefault(text, token)
    check_vocab(vocab, where, "model.vocab")
    added = read_added(files, vocab, rows, renames=False)
    check_room(vocab, rows, where)
    table = TokenTable.of(1 + max(len(model.pieces) - 1, added.last) if rows is None else rows)
    count = min(len(model.pieces), len(table.tokens))
    table.tokens[:count] = [text for text, _ in model.pieces[:count]]
    table.types[:count] = TokenType.NORMAL
    table.notes += added.notes
    for entry in added.tokens:
        table.put(entry, settles=True)
    table.scores[:count] = [score for _, score in model.pieces[:count]]
    if model.unknown is not None:
        table.types[model.unknown] = TokenType.UNKNOWN
    ids = {text: vocab.get(text, token) for text, token in added.ids["tokenizer.json"].items()}
    more, said = _spaces_and_charsmap(files.tokenizer, where)
    notes += said
    metaspace = next((step for step in _nodes(files.tokenizer, "pre_tokenizer", where) if _is(step, "Metaspace")), {})
    prefix = metaspace.get("prepend_scheme", "always") != "never" and metaspace.get("add_prefix_space") is not False
    tokens = table.finish(where)
    frame = read_frame(files.tokenizer, where)
    return Parts("t5", "default", table, tokens, added.tokens, ids, frame, space_prefix=prefix, more=more)


def charsmap_of(tokenizer: Json, where: Path) -> bytes:
    """The table of replacements; empty if there is none. Malformed if it is not base64."""
    for step in _nodes(tokenizer, "normalizer", where):
        if _is(step, "Precompiled"):
            text = expect(step.get("precompiled_charsmap"), str, where=where, key="normalizer.precompiled_charsmap")
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise Malformed(f"precompiled_charsmap is not base64: {error}", where=where) from error
    return b""


def _spaces_and_charsmap(tokenizer: Json, where: Path) -> tuple[Metadata, list[str]]:
    """The keys about normalizing, and sentences on what llama.cpp does otherwise."""
    splits = list(_nodes(tokenizer, "pre_tokenizer", where))
    normalizers = list(_nodes(tokenizer, "normalizer", where))
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}}
    one_space = any(_is(step, "WhitespaceSplit") for step in splits) or any(
        step.items() >= runs.items() and step.get("content") in (" ", SPACE) for step in normalizers
    )
    notes = [
        f"llama.cpp does not apply the normalizer {shown(step.get('type'))}"
        for step in normalizers
        if not _is(step, "Precompiled", "Strip") and not (one_space and step.items() >= runs.items())
    ]
    notes += [
        f"llama.cpp does not apply the pre-tokenizer {shown(step.get('type'))}"
        for step in splits
        if not _is(step, "WhitespaceSplit", "Metaspace")
    ]
    charsmap = charsmap_of(tokenizer, where)
    if charsmap and not 4 < int.from_bytes(charsmap[:4], "little") + 4 < len(charsmap):
        raise Malformed("precompiled_charsmap is damaged: its first number is not the size of its table", where=where)
    keys: Metadata = {KEY.REMOVE_EXTRA_WS: boolean(one_space)}
    if charsmap:
        keys[KEY.PRECOMPILED_CHARSMAP] = array(np.frombuffer(charsmap, np.uint8))
    return keys, notes


def _is(step: Json, *kinds: str) -> bool:
    return step.get("type") in kinds


def _nodes(tokenizer: Json, part: str, where: Path) -> Iterator[Json]:
    """The steps of a part, a sequence flattened."""
    node = child(tokenizer, part, dict, where=where)
    inner: Any = next((node[key] for key in ("normalizers", "pretokenizers") if key in node), None) if node else []
    for step in [node] if inner is None else expect(inner, list, where=where, key=part):
        yield expect(step, dict, where=where, key=part)
