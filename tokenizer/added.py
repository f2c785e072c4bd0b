"""Tokens that were added to a vocabulary: all files that name them, as one list.

    tokenizer.json           added_tokens: id, text and flags
    tokenizer_config.json    added_tokens_decoder: the same; roles and lists of special tokens: texts without an id
    added_tokens.json        text -> id
    special_tokens_map.json  roles and lists of special tokens: texts without an id

transformers 5 writes only the first, older versions wrote the others as well, and the converter of llama.cpp reads only
the second and the third for SentencePiece vocabularies. Here everything counts. Ids must agree. Where flags differ,
tokenizer_config.json decides, then tokenizer.json, as in transformers (5.24, tokenization_utils_tokenizers.py). A text
that is given a role or listed as special is special. One without an id gets the next, in transformers' order.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import Json, child, expect, shown
from ggufsmith.tokenizer.files import TokenizerFiles
from ggufsmith.tokenizer.source import MAX_TOKENS, token_text

SPACE = "▁"  # SentencePiece's visible space
ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
# Names in the tokenizer_config.json of CodeLlama -> role. They alone make no token special.
INFILL = {"prefix_token": "fim_pre", "suffix_token": "fim_suf", "middle_token": "fim_mid", "eot_token": "eot"}

# The sources of ids, and the one of names without an id.
JSON, DECODER, ADDED, NAMED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", ""
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
WEIGHTY = FLAGS[:4]  # those whose disagreement is worth a note

# Added tokens that publishers forgot to mark as special (llama.cpp, conversion/base.py, does_token_look_special).
LOOKS_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL)


@dataclass(frozen=True)
class AddedToken:
    """One added token, with the flags of the tokenizers library.

    source:         the file whose flags these are; "" for a text that a file only names.
    special:        matched only when special tokens are parsed, and not shown.
    lstrip, rstrip: takes the white space before or behind it.
    single_word:    not matched inside a word.
    normalized:     matched in normalized text.
    """

    id: int
    text: str
    source: str = NAMED
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def control(self) -> bool:
        """Whether llama.cpp must take it for a control token."""
        return self.special or LOOKS_SPECIAL.fullmatch(self.text) is not None

    @property
    def piece(self) -> str:
        """The text as llama.cpp must find it in the input: user-defined tokens are matched before normalization."""
        return self.text if self.control else self.text.replace(SPACE, " ")


@dataclass(frozen=True)
class AddedTokens:
    """All added tokens of a folder.

    tokens: with the ids that they have in the vocabulary, one per text.
    ids:    source -> text -> the id that it states first.
    last:   the highest id that any of them states, -1 if there is none.
    notes:  sentences for the report.
    """

    tokens: tuple[AddedToken, ...]
    ids: Mapping[str, Mapping[str, int]]
    last: int
    notes: tuple[str, ...]


def read_added(
    files: TokenizerFiles, vocabulary: Mapping[str, int], rows: int | None, *, renames: bool, json_counts: bool = True
) -> AddedTokens:
    """The added tokens of a folder.

    vocabulary:  text -> id of the vocabulary proper.
    rows:        of the embedding: further names get ids up to here, none if it is None.
    renames:     whether an added token may take the place of a token of the vocabulary, as in SentencePiece models.
    json_counts: False leaves tokenizer.json out.

    Malformed: damaged files; an id that two texts have, or a text that has two ids.
    """
    statements = [*(_of_json(files) if json_counts else ()), *_of_decoder(files), *_of_added(files)]
    by_text = _by_text(statements, vocabulary, files)
    notes: list[str] = []
    names = special_names(files)
    tokens, disputed = [], {}
    for text, said in by_text.items():
        own = vocabulary.get(text, said[0].id)
        for other in dict.fromkeys(each.id for each in said if each.id != own):
            notes.append(f"added token {other} {shown(text)} is already token {own}; its other id is unused")
        by_source = {each.source: each for each in reversed(said)}
        chosen = next(by_source[source] for source in (DECODER, JSON, ADDED) if source in by_source)
        if JSON in by_source and (flags := _differences(chosen, by_source[JSON])):
            disputed[text] = flags
        if chosen.source == ADDED and text in names:
            chosen = replace(names[text], source=ADDED)
        tokens.append(replace(chosen, id=own, special=chosen.special or text in names))
    if disputed:
        flags_named = " and ".join(flag for flag in WEIGHTY if any(flag in found for found in disputed.values()))
        notes.append(
            f"tokenizer.json and tokenizer_config.json disagree on {flags_named} of {listing(disputed)}: "
            "tokenizer_config.json was used, as in transformers"
        )
    notes += _renumbered(tokens, vocabulary, renames)
    further, more = _named(files, names, by_text, vocabulary, tokens, rows)
    ids = {
        source: {each.text: each.id for each in reversed(statements) if each.source == source}
        for source in (JSON, DECODER, ADDED)
    }
    last = max([each.id for each in (*statements, *further)], default=-1)
    return AddedTokens((*tokens, *further), ids, last, (*notes, *more))


def listing(texts: Mapping[str, object], most: int = 3) -> str:
    """`'a'`, or `12 tokens such as 'a', 'b', 'c'`."""
    some = ", ".join(shown(text) for text in list(texts)[:most])
    if len(texts) == 1:
        return some
    return f"{len(texts)} tokens ({some})" if len(texts) <= most else f"{len(texts)} tokens such as {some}"


def special_names(files: TokenizerFiles) -> dict[str, AddedToken]:
    """Texts that are special because a file gives them a role or lists them, in the order in which transformers adds
    them: roles first. The id is -1.
    """
    roles: dict[str, AddedToken] = {}
    lists: dict[str, AddedToken] = {}
    for name, source in (
        ("tokenizer_config.json", files.tokenizer_config),
        ("special_tokens_map.json", files.special_tokens_map),
    ):
        where = files.path(name)
        usual = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
        # Other keys of this form, such as image_token, are roles if they hold a text (add_bos_token does not).
        texts = [key for key, value in source.items() if key.endswith("_token") and isinstance(value, str)]
        own = [key for key in texts if key not in INFILL]
        for key in dict.fromkeys([*usual, *own]):
            _name(roles, source.get(key), where, key)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = source.get(key)
            more = list(value.values()) if isinstance(value, dict) else child(source, key, list, where=where) or []
            for each in more:
                _name(lists, each, where, key)
    return {**roles, **{text: token for text, token in lists.items() if text not in roles}}


def role_names(files: TokenizerFiles) -> dict[str, str]:
    """Role -> text, from tokenizer_config.json or, where that is missing, from special_tokens_map.json."""
    stand_in = not files.tokenizer_config
    source = files.special_tokens_map if stand_in else files.tokenizer_config
    where = files.path("special_tokens_map.json" if stand_in else "tokenizer_config.json")
    texts = {
        role: token_text(source.get(f"{role}_token"), where=where, key=f"{role}_token") for role in (*ROLES, "cls")
    }
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    return {role: text for role, text in texts.items() if text and role != "cls"}


def _name(found: dict[str, AddedToken], value: object, where: Path, key: str) -> None:
    text = token_text(value, where=where, key=key)
    if text:
        flags = _flags(value, where, key) if isinstance(value, dict) else {}
        found.setdefault(text, replace(AddedToken(-1, text, NAMED, **flags), special=True))


def _of_json(files: TokenizerFiles) -> Iterator[AddedToken]:
    where = files.path("tokenizer.json")
    for number, entry in enumerate(child(files.tokenizer or {}, "added_tokens", list, where=where) or []):
        key = f"added_tokens[{number}]"
        entry = expect(entry, dict, where=where, key=key)
        yield _token(expect(entry.get("id"), int, where=where, key=f"{key}.id"), entry, JSON, where, key)


def _of_decoder(files: TokenizerFiles) -> Iterator[AddedToken]:
    where = files.path("tokenizer_config.json")
    for number, entry in (child(files.tokenizer_config, "added_tokens_decoder", dict, where=where) or {}).items():
        key = f"added_tokens_decoder[{shown(number)}]"
        if not re.fullmatch("[0-9]{1,9}", number):
            raise Malformed(f"{key}: the key is not a token id", where=where)
        yield _token(int(number), entry if isinstance(entry, dict) else {"content": entry}, DECODER, where, key)


def _of_added(files: TokenizerFiles) -> Iterator[AddedToken]:
    where = files.path("added_tokens.json")
    for text, token in files.added_tokens.items():
        key = f"the entry {shown(text)}"
        yield _token(expect(token, int, where=where, key=key), {"content": text}, ADDED, where, key)


def _token(token: int, entry: Json, source: str, where: Path, key: str) -> AddedToken:
    if not 0 <= token < MAX_TOKENS:
        raise Malformed(f"{key} has the id {token}, outside 0..{MAX_TOKENS - 1}", where=where)
    text = expect(token_text(entry, where=where, key=key), str, where=where, key=f"{key}.content")
    if not text:
        raise Malformed(f"{key} is empty", where=where)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Malformed(f"{key} holds half of a surrogate pair", where=where)
    return AddedToken(token, text, source, **_flags(entry, where, key))


def _flags(entry: Json, where: Path, key: str) -> dict[str, bool]:
    return {flag: bool(child(entry, flag, bool, where=where, path=f"{key}.")) for flag in FLAGS}


def _by_text(
    statements: list[AddedToken], vocabulary: Mapping[str, int], files: TokenizerFiles
) -> dict[str, list[AddedToken]]:
    """Text -> what is said of it. Malformed if ids conflict; a text that tokenizer.json lists twice, or that is a token
    of the vocabulary as well, is no conflict: the tokenizers library gives it its first id.
    """
    owners: dict[int, AddedToken] = {}
    found: dict[str, list[AddedToken]] = {}
    for each in statements:
        owner = owners.setdefault(each.id, each)
        if owner.text != each.text:
            raise _conflict(
                f"the id {each.id} is given to {shown(owner.text)} and to {shown(each.text)}", owner, each, files
            )
        said = found.setdefault(each.text, [])
        if said and each.text not in vocabulary and each.source != JSON and each.id not in [one.id for one in said]:
            raise _conflict(f"tokens {said[0].id} and {each.id} are both {shown(each.text)}", said[0], each, files)
        said.append(each)
    return found


def _conflict(what: str, one: AddedToken, other: AddedToken, files: TokenizerFiles) -> Malformed:
    if one.source == other.source:
        return Malformed(what, where=files.path(one.source))
    return Malformed(
        f"{what}: according to {one.source} and {other.source}, respectively",
        where=files.folder,
        fix="Delete the file that does not belong to these weights, or correct it.",
    )


def _differences(one: AddedToken, other: AddedToken) -> list[str]:
    return [flag for flag in WEIGHTY if getattr(one, flag) != getattr(other, flag)]


def _renumbered(tokens: list[AddedToken], vocabulary: Mapping[str, int], renames: bool) -> Iterator[str]:
    """A note if transformers, which counts on from the last token, would give an added token another id."""
    new = [token for token in tokens if token.text not in vocabulary]
    if renames:
        new = [token for token in new if token.id >= len(vocabulary)]
    gap = next((token for number, token in enumerate(new, len(vocabulary)) if token.id != number), None)
    if gap is not None:
        yield (
            f"the id of added token {gap.id} {shown(gap.text)} does not follow the previous one, so transformers "
            f"renumbers it"
        )


def _named(
    files: TokenizerFiles,
    names: Mapping[str, AddedToken],
    stated: Mapping[str, object],
    vocabulary: Mapping[str, int],
    tokens: list[AddedToken],
    rows: int | None,
) -> tuple[list[AddedToken], list[str]]:
    """Tokens that files name without an id: those of the vocabulary, and new ones as far as there are rows."""
    found: list[AddedToken] = []
    implied: dict[str, int] = {}
    missing: dict[str, AddedToken] = {}
    following = 1 + max([*vocabulary.values(), *(token.id for token in tokens)], default=-1)
    for text, token in names.items():
        if text in stated:
            continue
        if text in vocabulary:
            found.append(replace(token, id=vocabulary[text]))
        elif rows is not None and following + len(implied) < rows:
            implied[text] = following + len(implied)
            found.append(replace(token, id=implied[text]))
        else:
            missing[text] = token
    notes = []
    if implied:
        notes.append(_implied(list(implied), following))
    roles = set(role_names(files).values())  # reported where their ids are looked for
    if listed := {text: token for text, token in missing.items() if text not in roles}:
        notes.append(f"{listing(listed)}: listed as special but not in the vocabulary, so left out")
    return found, notes


def _implied(texts: list[str], first: int) -> str:
    if len(texts) == 1:
        return f"{shown(texts[0])} is a special token without an id: written as token {first}, as in transformers"
    return (
        f"{listing(dict.fromkeys(texts))} are special tokens without an id: written as tokens {first} to "
        f"{first + len(texts) - 1}, as in transformers"
    )
