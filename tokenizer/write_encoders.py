"""Vocabularies of encoders as tokenizer.json: WordPiece and Unigram (see `wordpiece` and `unigram`)."""

import base64
import re

import numpy as np
from gguf.constants import Keys, TokenType
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure
from ggufsmith.container.untrusted import Json
from ggufsmith.tokenizer.added import SPACE
from ggufsmith.tokenizer.vocabulary import Vocabulary
from ggufsmith.tokenizer.wordpiece import CONTINUES, LOWERCASE, STRIP_ACCENTS, is_padding, piece_of

KEY = Keys.Tokenizer
PADDING = re.compile(r"\[PAD[0-9]+\]")


def wordpiece_json(vocabulary: Vocabulary, added: list[Json]) -> Json:
    """The tokenizer.json of a "bert" vocabulary. added: its added tokens."""
    padding = is_padding(vocabulary.tokens, vocabulary.types)
    vocab = {
        piece_of(text, kind): token
        for token, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True))
        if not padding[token]
    }
    unknown, settings = vocabulary.special.get("unk"), bert_settings(vocabulary)
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": settings["strip_accents"],
        "lowercase": settings["do_lower_case"],
    }
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]" if unknown is None else vocabulary.tokens[unknown],
        "continuing_subword_prefix": CONTINUES,
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    return {
        **_whole(vocabulary, added),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": True},
        "model": model,
    }


def bert_settings(vocabulary: Vocabulary) -> Json:
    """What tokenizer_config.json says of letters and names; BertTokenizer follows it alone. Empty for other models."""
    if vocabulary.model != "bert":
        return {}
    strips, small = vocabulary.more.get(STRIP_ACCENTS), vocabulary.more.get(LOWERCASE)
    first = vocabulary.special.get("bos")
    return {
        "strip_accents": None if strips is None else bool(strips.data),
        "do_lower_case": small is None or bool(small.data),
        **({} if first is None else {"cls_token": vocabulary.tokens[first]}),
    }


def unigram_json(vocabulary: Vocabulary, added: list[Json]) -> Json:
    """The tokenizer.json of a "t5" vocabulary. added: its added tokens."""
    if vocabulary.scores is None:
        raise Failure("a Unigram vocabulary needs scores")
    used = np.flatnonzero(~_unused(vocabulary))
    end = int(used[-1]) + 1 if len(used) else 0
    pieces = [
        [text, float(score)] for text, score in zip(vocabulary.tokens[:end], vocabulary.scores.tolist(), strict=False)
    ]
    charsmap = vocabulary.more.get(KEY.PRECOMPILED_CHARSMAP)
    normalizer = None
    if charsmap is not None:
        text = base64.b64encode(np.asarray(charsmap.data, np.uint8).tobytes()).decode()
        normalizer = {"type": "Precompiled", "precompiled_charsmap": text}
    scheme = "never" if vocabulary.add_space_prefix is False else "always"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    one_space = vocabulary.more.get(KEY.REMOVE_EXTRA_WS)
    splits = [{"type": "WhitespaceSplit"}] if one_space is not None and one_space.data else []
    typed = np.flatnonzero(vocabulary.types == TokenType.UNKNOWN).tolist()
    unknown = vocabulary.special.get("unk", typed[0] if typed else None)
    return {
        **_whole(vocabulary, added),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, metaspace]},
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": False},
    }


def _whole(vocabulary: Vocabulary, added: list[Json]) -> Json:
    """What both have: added tokens, and what is put around a text."""
    first, last = vocabulary.special.get("bos"), vocabulary.special.get("eos", vocabulary.special.get("sep"))
    if vocabulary.model == "bert":  # llama.cpp does not look at the flags
        last = vocabulary.special.get("sep", last)
    elif not vocabulary.add.get("bos", False):
        first = None
    if vocabulary.model == "t5" and not vocabulary.add.get("eos", True):
        last = None

    def special(token: int | None, kind: int) -> list[Json]:
        return [] if token is None else [{"SpecialToken": {"id": vocabulary.tokens[token], "type_id": kind}}]

    a, b = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    between = [*special(last, 0), *(special(last, 0) if vocabulary.add.get("sep") else [])]
    known = {token for token in (first, last) if token is not None}
    template = {
        "type": "TemplateProcessing",
        "single": [*special(first, 0), a, *special(last, 0)],
        "pair": [*special(first, 0), a, *between, b, *special(last, 1)],
        "special_tokens": {
            text: {"id": text, "ids": [token], "tokens": [text]}
            for text, token in sorted((vocabulary.tokens[token], token) for token in known)
        },
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": template if known else None,
    }


def _unused(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """For every token, whether no piece has its row; llama.cpp's converter numbers these from the row before."""
    found: NDArray[np.bool_] = vocabulary.types == TokenType.UNUSED
    found[[k for k in np.flatnonzero(found) if PADDING.fullmatch(vocabulary.tokens[k]) is None]] = False
    return found
