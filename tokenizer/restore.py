"""The vocabulary of an opened GGUF file: its `tokenizer.*` keys as a `Vocabulary`, checked."""

import numpy as np
from gguf.constants import Keys, TokenType

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.typed import TypedKeys
from ggufsmith.container.untrusted import shown
from ggufsmith.container.values import Metadata
from ggufsmith.tokenizer.special import EOG_TEXTS
from ggufsmith.tokenizer.vocabulary import ADD_KEYS, ID_KEYS, SCORED, Vocabulary
from ggufsmith.tokenizer.wordpiece import LOWERCASE, STRIP_ACCENTS

KEY = Keys.Tokenizer
MODELS = ("llama", "gpt2", "gemma4", "bert", "t5")
# A key that files had for what begins a text, before llama.cpp took it for the BOS.
CLS_ID = "tokenizer.ggml.cls_token_id"
MORE = (LOWERCASE, STRIP_ACCENTS, KEY.REMOVE_EXTRA_WS, KEY.PRECOMPILED_CHARSMAP)


def vocabulary_of(metadata: Metadata, where: object) -> Vocabulary:
    """The vocabulary that these keys describe.

    Malformed: keys that are missing, of the wrong type or contradictory. Unsupported: a tokenizer that is none of
    MODELS, and texts that are no UTF-8, for which Hugging Face's files have no form.
    """
    keys = TypedKeys(metadata, where)
    if KEY.MODEL not in metadata:
        raise Malformed("the file has no vocabulary", where=f"{where}: {KEY.MODEL}")
    model = keys.text(KEY.MODEL)
    if model not in MODELS:
        raise Unsupported(f"the tokenizer is {shown(model)}; only {', '.join(MODELS)} are known here", where=where)
    tokens = keys.texts(KEY.LIST)
    count = len(tokens)
    types = keys.numbers(KEY.TOKEN_TYPE, np.int32, count)
    if types is None:
        types = np.full(count, TokenType.NORMAL, np.int32)
    types[types == 0] = TokenType.NORMAL  # "undefined", which llama.cpp takes for an ordinary token
    if count and not (types.min() >= TokenType.NORMAL and types.max() <= TokenType.BYTE):
        raise Malformed("contains a number that is not a token type", where=f"{where}: {KEY.TOKEN_TYPE}")
    scores = keys.numbers(KEY.SCORES, np.float32, count) if model in SCORED else None
    if model in ("llama", "t5") and scores is None:
        raise Malformed("there are no scores, which a SentencePiece vocabulary needs", where=f"{where}: {KEY.SCORES}")
    templates = keys.texts(KEY.CHAT_TEMPLATES) if KEY.CHAT_TEMPLATES in metadata else ()
    texts = ((name, keys.optional(KEY.CHAT_TEMPLATE_N.format(name=name), str)) for name in templates)
    names = [*((("bos", CLS_ID),) if model == "bert" else ()), *ID_KEYS.items()]
    return Vocabulary(
        model=model,
        pre=keys.optional(KEY.PRE, str) or ("" if model == "gemma4" else "default"),
        tokens=tokens,
        types=types,
        scores=scores,
        merges=keys.texts(KEY.MERGES) if model in ("gpt2", "gemma4") else (),
        special={role: token for role, key in names if (token := _token(keys, key, count)) is not None},
        add={role: flag for role, key in ADD_KEYS.items() if (flag := keys.optional(key, bool)) is not None},
        add_space_prefix=keys.optional(KEY.ADD_PREFIX, bool),
        chat_template=keys.optional(KEY.CHAT_TEMPLATE, str),
        more={key: metadata[key] for key in MORE if key in metadata},
        chat_templates={name: text for name, text in texts if text is not None},
    )


def _token(keys: TypedKeys, key: str, count: int) -> int | None:
    """A token id; ids outside the vocabulary, which some files use for "none", are left out."""
    token = keys.optional(key, int)
    return None if token is None or not 0 <= token < count else int(token)


def ends_of_generation(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Every token at which llama.cpp stops: those that keys name, the EOS first, then those it knows by their text."""
    ids = [vocabulary.special[role] for role in ("eos", "eot", "eom") if role in vocabulary.special]
    control = np.flatnonzero(vocabulary.types == TokenType.CONTROL).tolist()
    return tuple(dict.fromkeys([*ids, *(token for token in control if vocabulary.tokens[token] in EOG_TEXTS)]))
