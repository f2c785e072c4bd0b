"""Rank lists of tiktoken, as the tokenizer.json and tokenizer_config.json they amount to.

    qwen.tiktoken    of Qwen (1): its special tokens have the ids behind the ranks
    tokenizer.model  of GLM-4 9B: tokenizer_config.json lists its special tokens
    tiktoken.model   of Kimi: the 256 tokens behind the ranks are special, and tokenizer_config.json names some of them
    hy.tiktoken      of Hunyuan: tokens may stand there twice, and ranks count those that do not

A line holds a token in base64 and its rank, which is its id. There are no merges: in every word, the two neighbours
whose union has the lowest rank are joined, as long as there are any. Every token is therefore made of the two that its
own bytes are joined to before its rank counts, and these pairs, in the order of ranks, are merges that join alike.

How words are split, and the special tokens of Qwen, stand in code that comes with the checkpoints. Nothing of it is
executed: what it says is written down here.

Source: tiktoken 0.14, src/lib.rs (_byte_pair_merge); tokenization_qwen.py of Qwen/Qwen-7B; tokenization_chatglm.py of
THUDM/glm-4-9b-chat; tokenization_kimi.py of moonshotai/Kimi-K2-Instruct; tokenization_hy.py of tencent/Hunyuan-A13B.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import LFS_POINTER, Json, child, shown
from ggufsmith.tokenizer.files import TokenizerFiles, optional_bytes
from ggufsmith.tokenizer.pretokenizers import KIMI, LLAMA3, QWEN2, pre_tokenizer_of
from ggufsmith.tokenizer.source import MAX_TOKENS
from ggufsmith.tokenizer.spm import is_tiktoken
from ggufsmith.tokenizer.tekken import CHARACTERS

LONGEST = 1024  # bytes of a token; known lists have 128
END = "<|endoftext|>"
DIGITS = re.compile("[0-9]{1,9}")
AGAIN = "Download it again."


@dataclass(frozen=True)
class RankList:
    """One kind of them.

    name:    of the file. classes: tokenizer_class of tokenizer_config.json; any, if there are none.
    pattern: finds the words. nfc: whether texts are normalized first.
    special: tokens behind the ranks. reserved: how many of those get a name from tokenizer_config.json, or else from
             their ids.
    stated:  ids that generation_config.json and config.json may state for a role, counted from the first behind the
             ranks; not asked where tokenizer_config.json lists special tokens.
    repeats: tokens may occur again, and ranks count those that occur first.
    roles:   what tokenizer_config.json says where it is silent.
    """

    name: str
    classes: tuple[str, ...]
    pattern: str
    nfc: bool
    special: tuple[str, ...]
    roles: Mapping[str, str]
    stated: Mapping[str, tuple[int, ...]]
    reserved: int = 0
    repeats: bool = False


EXTRA = tuple(f"<|extra_{number}|>" for number in range(205))
QWEN_SPECIAL = (END, "<|im_start|>", "<|im_end|>", *EXTRA)
HUNYUAN_SPECIAL = (END, "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *EXTRA)
KINDS = (
    RankList(
        "qwen.tiktoken",
        (),
        QWEN2,
        True,
        QWEN_SPECIAL,
        dict.fromkeys(("bos_token", "eos_token", "unk_token"), END),
        {"bos": (0,), "eos": (0, 2), "pad": (0, 3)},
    ),
    RankList(
        "tokenizer.model",
        ("ChatGLM4Tokenizer", "ChatGLMTokenizer"),
        LLAMA3,
        False,
        (),
        dict.fromkeys(("eos_token", "pad_token", "unk_token"), END),
        {"eos": (0,), "pad": (0,)},
    ),
    RankList(
        "tiktoken.model",
        ("TikTokenTokenizer",),
        KIMI,
        False,
        (),
        {"bos_token": "[BOS]", "eos_token": "[EOS]"},
        {"bos": (0,), "eos": (1, 2)},
        reserved=256,
    ),
    RankList(
        "hy.tiktoken",
        (),
        QWEN2,
        True,
        HUNYUAN_SPECIAL,
        {"bos_token": "<|startoftext|>", "eos_token": END, "pad_token": "<|pad|>"},
        {"eos": (0, 3), "pad": (0, 4)},
        repeats=True,
    ),
)


def from_ranks(files: TokenizerFiles) -> TokenizerFiles | None:
    """The same files with a tokenizer.json, if there is a rank list that is known. Malformed: see `read_ranks`."""
    for kind in KINDS:
        home = files.home(kind.name)
        if kind.classes and files.tokenizer_config.get("tokenizer_class") not in kind.classes:
            continue
        raw = optional_bytes(home, kind.name)
        pieces = files.tokenizer_config.get("tokenizer_class") == "ChatGLMTokenizer"  # which have this name as well
        if raw is not None and (not pieces or is_tiktoken(raw)):
            where, config = home / kind.name, dict(files.tokenizer_config)
            ranks = read_ranks(raw, where, repeats=kind.repeats)
            special = kind.special
            listed = child(config, "added_tokens_decoder", dict, where=files.path("tokenizer_config.json")) or {}
            _check_place(kind, files, len(ranks), () if special else listed)
            if kind.reserved:  # all of them are special, whatever the list says of some
                behind = range(len(ranks), len(ranks) + kind.reserved)
                special = tuple(_reserved(listed.get(str(token)), token) for token in behind)
                config["added_tokens_decoder"] = {}
            whole = _tokenizer(kind, ranks, special, where)
            return replace(files, tokenizer=whole, tokenizer_config={**kind.roles, **config}, named=kind.name)
    return None


def _check_place(kind: RankList, files: TokenizerFiles, first: int, listed: Iterable[str]) -> None:
    """Whether the special tokens have the ids that other files say. A list that lost lines would give them others.

    first: the id of the first of them. listed: the ids in tokenizer_config.json, of which the lowest is that.
    """
    where, ids = files.home(kind.name) / kind.name, [int(token) for token in listed if DIGITS.fullmatch(token)]
    if ids and min(ids) != first:
        raise Malformed(
            f"the special tokens begin with {min(ids)} in tokenizer_config.json, but the list has {first} tokens",
            where=where,
            fix=AGAIN,
        )
    for name, source in (("generation_config.json", files.generation), ("config.json", files.config)):
        for role, places in {} if ids else kind.stated.items():
            key = f"{role}_token_id"
            stated = source.get(key)
            tokens = [each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, int)]
            if tokens and min(tokens) >= 0 and not any(token - first in places for token in tokens):
                what = f"{key} is {stated!r:.40} in {name}, but after the {first} tokens of the list it is "
                what += " or ".join(str(first + place) for place in places)
                raise Malformed(what, where=where, fix=AGAIN)


def _reserved(entry: Any, token: int) -> str:
    """The text of a special token, which may be listed."""
    text = entry.get("content") if isinstance(entry, dict) else None
    return text if isinstance(text, str) else f"<|reserved_token_{token}|>"


def _tokenizer(kind: RankList, ranks: Mapping[bytes, int], special: tuple[str, ...], where: Path) -> Json:
    texts = {token: token.decode("latin-1").translate(CHARACTERS) for token in ranks}
    vocab = {text: ranks[token] for token, text in texts.items()}
    if both := [text for text in special if text in vocab]:
        raise Malformed(f"the special token {shown(both[0])} is an ordinary token as well", where=where)
    first = 1 + max(vocab.values())
    return {
        "added_tokens": [{"id": first + k, "content": text, "special": True} for k, text in enumerate(special)],
        "normalizer": {"type": "NFC"} if kind.nfc else None,
        "pre_tokenizer": pre_tokenizer_of((f"Split {kind.pattern}", "ByteLevel")),
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [f"{texts[left]} {texts[right]}" for left, right in merges(ranks)],
        },
    }


def read_ranks(raw: bytes, where: Path, *, repeats: bool = False) -> dict[bytes, int]:
    """Token -> rank, in the order of ranks. repeats: see RankList.

    Malformed: a line that is none, a token or rank that occurs twice or is missing, a byte that is not a token.
    """
    if raw.startswith(LFS_POINTER):
        raise Malformed("this is a Git LFS pointer, not the vocabulary", where=where, fix="Run `git lfs pull`.")
    if not raw.strip():
        raise Malformed("the file is empty", where=where, fix=AGAIN)
    ranks: dict[bytes, int] = {}
    before = 0
    for number, line in enumerate(raw.splitlines(), 1):
        if not line:
            continue
        coded, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            what = f"line {number} does not begin with a token in base64"
            raise Malformed(what, where=where, fix=AGAIN) from None
        if not rank.isdigit() or len(rank) > 9 or int(rank) >= MAX_TOKENS:
            raise Malformed(f"line {number} does not end with a rank of 0 to {MAX_TOKENS - 1}", where=where)
        if not 0 < len(token) <= LONGEST:
            raise Malformed(f"the token in line {number} has {len(token)} bytes, not 1 to {LONGEST}", where=where)
        if repeats and not (before <= int(rank) if ranks else int(rank) == 0):
            what = f"line {number} has the rank {int(rank)}, but ranks begin with 0 and rise from line to line"
            raise Malformed(what, where=where, fix=AGAIN)
        before = int(rank)
        if repeats:
            ranks.setdefault(token, len(ranks))
        elif ranks.setdefault(token, int(rank)) != int(rank):
            raise Malformed(f"line {number} holds the same token as an earlier one", where=where)
    if len(set(ranks.values())) < len(ranks):
        raise Malformed("two tokens have the same rank", where=where)
    lost = next((rank for rank, stated in enumerate(sorted(ranks.values())) if rank != stated), None)
    if lost is not None:
        raise Malformed(f"no token has the rank {lost}, but others have higher ones", where=where, fix=AGAIN)
    if missing := [byte for byte in range(256) if bytes((byte,)) not in ranks]:
        raise Malformed(f"the byte 0x{missing[0]:02X} is not a token", where=where)
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two tokens that make each longer one, in the order of ranks.

    A token that its bytes are not joined to is left out: only a word that it is the whole of would be found as that
    token.
    """
    for token, rank in ranks.items():
        parts = [token[k : k + 1] for k in range(len(token))]
        while len(parts) > 2:
            unions = [ranks.get(parts[k] + parts[k + 1], rank) for k in range(len(parts) - 1)]
            lowest = min(unions)
            if lowest >= rank:
                break
            k = unions.index(lowest)
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]
