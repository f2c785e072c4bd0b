"""Special token ids and what is added around a text, from every file that states them.

Precedence, chosen so that ordinary folders give what llama.cpp's gguf-py/gguf/vocab.py gives:

    1. the texts in tokenizer_config.json (`bos_token`, ...), looked up among the added tokens of tokenizer.json, after
       the TemplateProcessing of tokenizer.json had its say: a token it puts last is the EOS, and the token that
       tokenizer_config.json calls EOS is then the end of a turn (Qwen3-Embedding);
    2. `bos_token_id`, ... in config.json, then in its text_config; the first of an array;
    3. for BOS and EOS only, which llama.cpp would otherwise set to 1 and 2 or to 11: generation_config.json, then the
       texts of step 1 looked up in the whole vocabulary.

special_tokens_map.json stands in for tokenizer_config.json where that is missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggufsmith.container.untrusted import child, shown
from ggufsmith.tokenizer.added import INFILL, ROLES, role_names
from ggufsmith.tokenizer.around import TextFrame, beyond_one
from ggufsmith.tokenizer.files import TokenizerFiles
from ggufsmith.tokenizer.source import token_ids, token_text

# Texts that llama.cpp takes for the end of generation whatever the keys say (src/llama-vocab.cpp, special_eog_ids).
EOG_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>"
    " <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~["
    " <｜end▁of▁sentence｜>".split()
)


@dataclass
class SpecialTokens:
    """ids: role -> token id. eog: all ids stated as end of generation. add: role -> added around a text or not."""

    ids: dict[str, int] = field(default_factory=dict)
    eog: tuple[int, ...] = ()
    add: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_special(
    files: TokenizerFiles,
    frame: TextFrame | None,
    added: Mapping[str, int],
    tokens: Sequence[str],
    index: Mapping[str, int],
) -> SpecialTokens:
    """Resolve every role.

    frame: what tokenizer.json puts around a text; None without that file.
    added: text -> id of the added tokens of tokenizer.json, {} without that file.
    tokens, index: the whole vocabulary, padding excluded from `index`.
    """
    found = SpecialTokens()
    names = role_names(files)
    for role, text in names.items():
        if text not in index:
            found.notes.append(f"{role}_token is {shown(text)}, which is not in the vocabulary, so it is ignored")
    _apply_frame(frame or TextFrame(), names, found, with_config=bool(files.tokenizer_config))
    _read_flags(files, frame, found)

    def take(role: str, ids: Iterable[int], origin: str) -> None:
        for token in ids:
            if role in found.ids:
                return
            if token < len(tokens):
                found.ids[role] = token
            else:
                found.notes.append(
                    f"{origin} gives {role} the id {token}, outside the {len(tokens)} tokens, so it is ignored"
                )

    direct = added if files.tokenizer_config else index
    for role, text in names.items():
        if text in direct:
            take(role, [direct[text]], "tokenizer_config.json")
    stated = _stated_ids(files)
    for role in ROLES:
        for origin in ("config.json", "config.json text_config"):
            take(role, stated[role][origin], origin)
    for role in ("bos", "eos"):
        take(role, stated[role]["generation_config.json"], "generation_config.json")
        if role in names and names[role] in index:
            take(role, [index[names[role]]], "tokenizer_config.json")
    for name, role in INFILL.items():
        infill = token_text(files.tokenizer_config.get(name), where=files.path("tokenizer_config.json"), key=name)
        if infill is not None and infill in index:
            take(role, [index[infill]], "tokenizer_config.json")

    _collect_eog(found, stated["eos"], tokens)
    return found


def _apply_frame(frame: TextFrame, names: dict[str, str], found: SpecialTokens, *, with_config: bool) -> None:
    """What tokenizer.json puts around a text, and what that says of BOS, EOS and the separator."""
    if frame.first:
        names.setdefault("bos", frame.first)
        found.add["bos"] = frame.first == names["bos"]
        if not found.add["bos"]:
            found.notes.append(
                f"tokenizer.json puts {shown(frame.first)} before a text, but BOS is {shown(names['bos'])}, so "
                f"llama.cpp adds neither"
            )
    if frame.last:
        spoken = names.get("eos")
        if with_config and spoken is not None and spoken != frame.last:
            names["eot"] = spoken
        names["eos"] = frame.last
        found.add["eos"] = True
    found.notes += beyond_one(frame)
    if frame.between:
        ends = {names.get("sep"), names.get("eos")} - {None}
        head, *rest = frame.between
        separated = (head in ends and not frame.last) or (len(rest) == 1 and rest[0] in ends)
        found.add["sep"] = separated
        if separated and "sep" not in names and "eos" in names:
            names["sep"] = names["eos"]


def _read_flags(files: TokenizerFiles, frame: TextFrame | None, found: SpecialTokens) -> None:
    """`add_bos_token`, ... of tokenizer_config.json, which transformers follows only without a tokenizer.json."""
    where = files.path("tokenizer_config.json")
    for role in ("bos", "eos", "sep"):
        key = f"add_{role}_token"
        value = child(files.tokenizer_config, key, bool, where=where)
        if value is None:
            continue
        does = value if frame is None else found.add.get(role, value if role == "sep" else False)
        if does != value:
            found.notes.append(
                f"tokenizer_config.json says {key}: {str(value).lower()}, but tokenizer.json does the opposite and "
                f"was used, as in transformers"
            )
        named = files.tokenizer_config.get(f"{role}_token", "") is not None
        if does and frame is None and not named:
            does = False
            found.notes.append(f"{key} is true, but {role}_token is null: none is added, as in transformers")
        found.add[role] = does


def _stated_ids(files: TokenizerFiles) -> dict[str, dict[str, tuple[int, ...]]]:
    """Role -> file -> the ids it states."""
    sources: dict[str, Mapping[str, Any]] = {
        "config.json": files.config,
        "config.json text_config": files.text_config,
        "generation_config.json": files.generation,
    }
    return {
        role: {
            origin: token_ids(
                source.get(f"{role}_token_id"), where=files.folder / origin.split()[0], key=f"{role}_token_id"
            )
            for origin, source in sources.items()
        }
        for role in ROLES
    }


def _collect_eog(found: SpecialTokens, stated: Mapping[str, Iterable[int]], tokens: Sequence[str]) -> None:
    """All ends of generation. llama.cpp knows most by text; the others need `eot` and `eom`, the keys that are left."""
    ids = dict.fromkeys(found.ids[role] for role in ("eos", "eot", "eom") if role in found.ids)
    ids |= dict.fromkeys(token for group in stated.values() for token in group if token < len(tokens))
    found.eog = tuple(ids)
    for token in found.eog:
        if tokens[token] in EOG_TEXTS or token in (found.ids.get(role) for role in ("eos", "eot", "eom")):
            continue
        free = next((role for role in ("eom", "eot") if role not in found.ids), None)
        if "reserved" in tokens[token]:
            found.notes.append(
                f"{shown(tokens[token])} is listed as an end of generation but is a reserved token, so no key is "
                f"written for it"
            )
        elif free:
            found.ids[free] = token
            found.notes.append(f"{shown(tokens[token])} also ends a generation: written as {free}")
        else:
            found.notes.append(f"{shown(tokens[token])} also ends a generation, but GGUF has no key left for it")
