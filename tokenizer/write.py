"""A vocabulary as the files of a Hugging Face folder; `read` makes the same vocabulary of them.

Byte-level BPE, WordPiece and Unigram become a tokenizer.json, SentencePiece a tokenizer.model, each with a
tokenizer_config.json. What GGUF does not hold is chosen as publishers do: Qwen's texts are normalized to NFC, added
tokens are matched as they stand.
"""

import json
from typing import Any

import numpy as np
from gguf.constants import TokenType

from ggufsmith.container.errors import Failure, Unsupported
from ggufsmith.container.untrusted import Json, shown
from ggufsmith.tokenizer import pretokenizers
from ggufsmith.tokenizer.added import INFILL, ROLES, SPACE
from ggufsmith.tokenizer.proto import model_proto
from ggufsmith.tokenizer.table import NO_SCORE
from ggufsmith.tokenizer.vocabulary import Vocabulary
from ggufsmith.tokenizer.write_encoders import bert_settings, unigram_json, wordpiece_json

# Classes of transformers that read a tokenizer.json of these models.
CLASSES = {"bert": "BertTokenizer", "t5": "XLMRobertaTokenizer"}
NFC = frozenset(("qwen2", "qwen35"))  # rows of pretokenizers.TABLE


def tokenizer_files(vocabulary: Vocabulary, tokenizer_class: str, context: int) -> dict[str, bytes]:
    """File name -> content.

    tokenizer_class: what transformers calls the tokenizer, for a SentencePiece vocabulary. context: tokens it is for.
    Unsupported: a pre-tokenizer without a published form, a SentencePiece vocabulary without an unknown token.
    """
    core = _core(vocabulary)
    if vocabulary.model == "llama":
        name, content = "tokenizer.model", _sentencepiece(vocabulary, core)
    else:
        made = {"bert": wordpiece_json, "t5": unigram_json}.get(vocabulary.model)
        whole = made(vocabulary, _added(vocabulary, core)) if made else _byte_level(vocabulary, core)
        name, content = "tokenizer.json", _json(whole)
        tokenizer_class = CLASSES.get(vocabulary.model, "PreTrainedTokenizerFast")
    config = {**_config(vocabulary, _added(vocabulary, core)), **bert_settings(vocabulary)}
    config |= {"model_max_length": context, "tokenizer_class": tokenizer_class}
    return {name: content, "tokenizer_config.json": _json(config)}


def _core(vocabulary: Vocabulary) -> int:
    """How many ids belong to the vocabulary proper; behind them stand only added tokens, and padding at the end."""
    padding, added = _padding(vocabulary), _is_added(vocabulary)
    used = np.flatnonzero(~padding)
    end = int(used[-1]) + 1 if len(used) else 0
    proper = np.flatnonzero(~added[:end])
    return int(proper[-1]) + 1 if len(proper) else 0


def _padding(vocabulary: Vocabulary) -> Any:
    """For every id, whether it is the [PADn] of an embedding with more rows than tokens."""
    padding = vocabulary.types == TokenType.UNUSED
    for token in np.flatnonzero(padding):
        padding[token] = vocabulary.tokens[token] == f"[PAD{token}]"
    return padding


def _is_added(vocabulary: Vocabulary) -> Any:
    return np.isin(vocabulary.types, (TokenType.CONTROL, TokenType.USER_DEFINED))


def _added(vocabulary: Vocabulary, core: int) -> list[Json]:
    """The added tokens. Of a SentencePiece vocabulary, control tokens with a score are pieces and nothing else."""
    ids = np.flatnonzero(_is_added(vocabulary))
    if vocabulary.model == "llama" and vocabulary.scores is not None:
        piece = (ids < core) & (vocabulary.types[ids] == TokenType.CONTROL) & (vocabulary.scores[ids] != NO_SCORE)
        ids = ids[~piece]
    return [
        {
            "id": token,
            "content": _piece(vocabulary, token) if token < core else vocabulary.tokens[token],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": bool(vocabulary.types[token] == TokenType.CONTROL),
        }
        for token in ids.tolist()
    ]


def _piece(vocabulary: Vocabulary, token: int) -> str:
    """The text as SentencePiece spells it: GGUF has plain spaces in user-defined tokens."""
    text = vocabulary.tokens[token]
    if vocabulary.model == "llama" and vocabulary.types[token] == TokenType.USER_DEFINED:
        return text.replace(" ", SPACE)
    return text


def _byte_level(vocabulary: Vocabulary, core: int) -> Json:
    """The whole tokenizer.json. Failure if the tokenizers library gives an added token another id."""
    row = pretokenizers.BY_NAME.get(vocabulary.pre)
    if row is None or not row.stages:
        raise Unsupported(
            f"the pre-tokenizer {shown(vocabulary.pre or vocabulary.model)} cannot be written to a tokenizer.json",
            fix="Use the tokenizer of the checkpoint that this file was made from.",
        )
    padding = _padding(vocabulary)
    # An added token behind a hole would get the number of the hole, unless the vocabulary says otherwise.
    end = len(vocabulary.tokens) if padding[:core].any() else core
    vocab = {text: token for token, text in enumerate(vocabulary.tokens[:end]) if not padding[token]}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": row.ignore_merges,
        "vocab": vocab,
        "merges": list(vocabulary.merges),
    }
    template = _template(vocabulary, vocabulary.add.get("bos", row.adds_bos), vocabulary.add.get("eos", False))
    added = _added(vocabulary, core)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if row.name in NFC else None,
        "pre_tokenizer": pretokenizers.pre_tokenizer_of(row.stages[0]),
        "post_processor": {"type": "Sequence", "processors": [plain, template]} if template else plain,
        "decoder": plain,
        "model": model,
    }
    _check_ids(whole, added)
    return whole


def _check_ids(tokenizer: Json, added: list[Json]) -> None:
    from tokenizers import Tokenizer

    try:
        read = Tokenizer.from_str(json.dumps(tokenizer))
    except Exception as error:  # the library raises nothing more specific
        raise Failure(f"the tokenizers library does not accept this vocabulary: {error}") from error
    for entry in added:
        found = read.token_to_id(entry["content"])
        if found != entry["id"]:
            raise Failure(f"token {entry['id']} {shown(entry['content'])} would become {found} in a tokenizer.json")


def _template(vocabulary: Vocabulary, bos: bool, eos: bool) -> Json | None:
    """What is put around a text, if anything is."""

    def special(role: str, wanted: bool) -> list[Json]:
        there = wanted and role in vocabulary.special
        return [{"SpecialToken": {"id": vocabulary.tokens[vocabulary.special[role]], "type_id": 0}}] if there else []

    before, after = special("bos", bos), special("eos", eos)
    if not before and not after:
        return None
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    between = _between(vocabulary, before, after)
    texts = {piece["SpecialToken"]["id"] for piece in before + between + after}
    return {
        "type": "TemplateProcessing",
        "single": [*before, a, *after],
        "pair": [*before, a, *between, b, *after],
        "special_tokens": {
            text: {"id": text, "ids": [vocabulary.tokens.index(text)], "tokens": [text]} for text in sorted(texts)
        },
    }


def _between(vocabulary: Vocabulary, before: list[Json], after: list[Json]) -> list[Json]:
    """What is put between two texts, of which one key tells: a separator of its own, or nothing that is one."""
    if not vocabulary.add.get("sep"):
        return before if "sep" in vocabulary.add else []
    token = vocabulary.special.get("sep")
    return [] if token is None else [*after, {"SpecialToken": {"id": vocabulary.tokens[token], "type_id": 0}}]


def _sentencepiece(vocabulary: Vocabulary, core: int) -> bytes:
    if vocabulary.scores is None:
        raise Failure("a SentencePiece vocabulary needs scores")
    unknown = _unknown(vocabulary, core)
    added, pieces = _is_added(vocabulary), []
    for token in range(core):
        kind, score = TokenType(vocabulary.types[token]), 0.0 if added[token] else float(vocabulary.scores[token])
        if (kind == TokenType.UNKNOWN) != (token == unknown):
            kind = TokenType.UNKNOWN if token == unknown else TokenType.CONTROL
        pieces.append((_piece(vocabulary, token), score, kind))
    special = {role: token for role, token in vocabulary.special.items() if token < core}
    return model_proto(pieces, {**special, "unk": unknown}, add_dummy_prefix=vocabulary.add_space_prefix is not False)


def _unknown(vocabulary: Vocabulary, core: int) -> int:
    """The one token that SentencePiece needs for what it does not know."""
    typed = np.flatnonzero(vocabulary.types[:core] == TokenType.UNKNOWN).tolist()
    named = [token for token in (vocabulary.special.get("unk"),) if token is not None and token < core]
    called = [token for token, text in enumerate(vocabulary.tokens[:core]) if text == "<unk>"]
    found = [*named, *typed, *called]
    if not found:
        raise Unsupported("the vocabulary has no unknown token, which SentencePiece requires")
    return int(found[0])


def _config(vocabulary: Vocabulary, added: list[Json]) -> Json:
    """tokenizer_config.json, as far as the vocabulary decides it."""
    names = {f"{role}_token": role for role in ROLES} | INFILL
    config: Json = {
        "added_tokens_decoder": {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in added},
        "clean_up_tokenization_spaces": False,
        **{name: vocabulary.tokens[vocabulary.special[r]] for name, r in names.items() if r in vocabulary.special},
        **{f"add_{role}_token": flag for role, flag in vocabulary.add.items()},
    }
    if vocabulary.model == "llama":
        config["legacy"] = False
    if vocabulary.add_space_prefix is not None:
        config["add_prefix_space"] = vocabulary.add_space_prefix
    templates = dict(vocabulary.chat_templates)
    if templates:
        default = {} if vocabulary.chat_template is None else {"default": vocabulary.chat_template}
        config["chat_template"] = [{"name": n, "template": t} for n, t in {**default, **templates}.items()]
    elif vocabulary.chat_template is not None:
        config["chat_template"] = vocabulary.chat_template
    return config


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
