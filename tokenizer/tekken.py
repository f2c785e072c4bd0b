"""tekken.json, the vocabulary of Mistral's own releases, as the tokenizer.json and tokenizer_config.json it amounts to.

It lists tokens of bytes by rank, without merges, and special tokens apart from them. The special ones have the first
ids, and the others follow; of these as many count as the config says. Merges are all pairs of tokens that make up a
token, in the order of that token's rank, which joins as byte-pair encoding by ranks does.

Source: mistral-common 1.13, tokens/tokenizers/tekken.py.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import Json, child, expect, shown
from ggufsmith.tokenizer.pretokenizers import pre_tokenizer_of
from ggufsmith.tokenizer.source import MAX_TOKENS

NAME = "tekken.json"
ROLES: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# The special tokens of files that list none, which are older than version 11.
FIRST = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()
# GPT-2's character for every byte: those that can be seen stand for themselves, the others for what follows U+0100.
SEEN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
UNSEEN = [byte for byte in range(0x100) if byte not in SEEN]
CHARACTERS = {byte: chr(0x100 + number) for number, byte in enumerate(UNSEEN)}


def read_tekken(file: Json, where: Path) -> tuple[Json, Json]:
    """A tokenizer.json and a tokenizer_config.json of the same vocabulary. Malformed: see `_special` and `_ranked`."""
    config = expect(file.get("config"), dict, where=where, key="config")
    count, size = (_size(config, key, where) for key in ("default_num_special_tokens", "default_vocab_size"))
    if size < count:
        raise Malformed(f"default_vocab_size is {size}, but there are {count} special tokens", where=where)
    special = _special(file, count, where)
    ranked = _ranked(file, size - count, where)
    texts = {token: token.decode("latin-1").translate(CHARACTERS) for token in ranked}
    vocab = {text: token for token, text in enumerate((*special, *texts.values()))}
    if len(vocab) != size:
        both = next(text for text in special if text in texts.values())
        raise Malformed(f"the special token {shown(both)} is an ordinary token as well", where=where)
    pattern = expect(config.get("pattern"), str, where=where, key="config.pattern")
    tokenizer: Json = {
        "added_tokens": [{"id": token, "content": text, "special": True} for token, text in enumerate(special)],
        "pre_tokenizer": pre_tokenizer_of((f"Split {pattern}", "ByteLevel")),
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [f"{texts[left]} {texts[right]}" for left, right in _merges(ranked)],
            "ignore_merges": True,
        },
    }
    roles = {role: text for role, text in ROLES.items() if text in special}
    if (bos := roles.get("bos_token")) is not None:
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [special.index(bos)], "tokens": [bos]}},
        }
    return tokenizer, roles


def _size(config: Json, key: str, where: Path) -> int:
    value: int = expect(config.get(key), int, where=where, key=f"config.{key}")
    if not 0 < value <= MAX_TOKENS:
        raise Malformed(f"config.{key} is {value}, outside 1..{MAX_TOKENS}", where=where)
    return value


def _special(file: Json, count: int, where: Path) -> list[str]:
    """The texts of the special tokens, those without a name included. Malformed: too many, or one that occurs twice."""
    listed = child(file, "special_tokens", list, where=where)
    texts = list(FIRST) if listed is None else [_text(entry, number, where) for number, entry in enumerate(listed)]
    if len(texts) > count:
        raise Malformed(f"{len(texts)} special tokens, but default_num_special_tokens is {count}", where=where)
    texts += (f"<SPECIAL_{number}>" for number in range(len(texts), count))
    if len(set(texts)) != count:
        twice = next(text for number, text in enumerate(texts) if text in texts[:number])
        raise Malformed(f"the special token {shown(twice)} occurs twice", where=where)
    return texts


def _text(entry: Any, number: int, where: Path) -> str:
    key = f"special_tokens[{number}]"
    entry = expect(entry, dict, where=where, key=key)
    if expect(entry.get("rank"), int, where=where, key=f"{key}.rank") != number:
        raise Malformed(f"{key} has the rank {entry['rank']}", where=where)
    text: str = expect(entry.get("token_str"), str, where=where, key=f"{key}.token_str")
    return text


def _ranked(file: Json, count: int, where: Path) -> dict[bytes, int]:
    """Token -> rank of the first `count`. Malformed: too few, ranks out of order, no base64, one that occurs twice."""
    listed = expect(file.get("vocab"), list, where=where, key="vocab")
    if len(listed) < count:
        raise Malformed(f"{len(listed)} tokens in vocab, but default_vocab_size asks for {count}", where=where)
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(listed[:count]):
        key = f"vocab[{rank}]"
        entry = expect(entry, dict, where=where, key=key)
        if entry.get("rank") != rank:
            raise Malformed(f"{key} has the rank {shown(entry.get('rank'))}", where=where)
        coded = expect(entry.get("token_bytes"), str, where=where, key=f"{key}.token_bytes")
        try:
            token = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            raise Malformed(f"{key}.token_bytes is {shown(coded)}, which is not base64", where=where) from None
        if not token or ranks.setdefault(token, rank) != rank:
            what = "the same token as an earlier one" if token else "an empty token"
            raise Malformed(f"{key} is {what}", where=where)
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair that makes a token, by the token's rank, then by those of the two."""
    for token in ranks:
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in ranks]
        yield from sorted((pair for pair in pairs if pair[1] in ranks), key=lambda pair: ranks[pair[0]])
