"""White space around added tokens: what their source takes, what llama.cpp will take, and the name that decides it.

GGUF has no place for `lstrip` and `rstrip`. llama.cpp sets them for a few models that it knows by name (src/
llama-vocab.cpp, "Handle per token attributes"): in a file whose general.name contains "phi-3" or "phi3", every special
token but three takes the white space behind it, and four tokens must exist, or the file does not load.
"""

import re
from collections.abc import Iterator

import numpy as np
from gguf.constants import Keys, TokenType

from ggufsmith.container.untrusted import shown
from ggufsmith.container.values import Metadata, string
from ggufsmith.tokenizer.added import listing
from ggufsmith.tokenizer.vocabulary import Vocabulary

General = Keys.General
PHI3 = re.compile("phi-?3", re.IGNORECASE)
ALMOST_PHI3 = re.compile(r"\bphi[\s_.]3", re.IGNORECASE)
PHI3_STRIPS = "</s>"
PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")
SPECIAL = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)  # those that llama.cpp looks for in texts
MASKS = {"jina-v2-de": "<mask>", "jina-v2-es": "<mask>", "jina-v2-code": "<mask>"}  # by pre-tokenizer


def phi3_rstrip(vocabulary: Vocabulary) -> frozenset[int] | None:
    """The tokens that take the white space behind them under such a name; None if llama.cpp would not load the file."""
    ids = {text: token for token, text in enumerate(vocabulary.tokens)}
    if not {PHI3_STRIPS, *PHI3_KEEPS} <= ids.keys():
        return None
    special = np.flatnonzero(np.isin(vocabulary.types, SPECIAL)).tolist()
    return frozenset({*special, ids[PHI3_STRIPS]} - {ids[text] for text in PHI3_KEEPS})


def name_for(vocabulary: Vocabulary, name: str) -> str:
    """`name`, or one like it under which fewer tokens take, or leave, white space against what their source says."""
    strips = phi3_rstrip(vocabulary)
    known = PHI3.search(name) is not None
    better = strips is not None and len(strips ^ set(vocabulary.rstrip)) < len(vocabulary.rstrip)
    if known and (strips is None or (not better and strips)):
        return PHI3.sub(lambda match: f"{match[0][:3]} 3", name)
    if better and not known:
        return ALMOST_PHI3.sub("Phi-3", name, count=1) if ALMOST_PHI3.search(name) else f"{name} (Phi-3)"
    return name


def fit_name(general: Metadata, vocabulary: Vocabulary, *, stated: bool) -> tuple[Metadata, tuple[str, ...]]:
    """The general.* keys with the name that suits the vocabulary, and what is to be said of it.

    stated: whether the user chose the name, which is then kept.
    """
    value = general.get(General.NAME)
    name = str(value.data) if value is not None else ""
    notes = name_notes(vocabulary, name, stated=stated)
    fitting = name if stated else name_for(vocabulary, name)
    if fitting != name:
        general = {**general, General.NAME: string(fitting)}
    return general, (*notes, *strip_notes(vocabulary, fitting))


def name_notes(vocabulary: Vocabulary, name: str, *, stated: bool) -> Iterator[str]:
    """What is to be said of a name that `name_for` would have otherwise. stated: by the user, so that it is kept."""
    better = name_for(vocabulary, name)
    if better == name:
        return
    if PHI3.search(better):
        why = "llama.cpp then removes the white space after special tokens, as this tokenizer does"
    elif phi3_rstrip(vocabulary) is None:
        why = f'llama.cpp cannot load a "phi-3" without the tokens {", ".join(map(shown, (PHI3_STRIPS, *PHI3_KEEPS)))}'
    else:
        why = 'llama.cpp removes the white space after every special token of a "phi-3", but this tokenizer does not'
    yield (
        f"general.name is {shown(name)}; {shown(better)} would be better: {why}"
        if stated
        else (f"general.name is written as {shown(better)} instead of {shown(name)}: {why}")
    )


def strip_notes(vocabulary: Vocabulary, name: str) -> Iterator[str]:
    """Tokens whose white space llama.cpp will treat otherwise than their source, in a file of this name."""
    mask = MASKS.get(vocabulary.pre)
    masks = {token for role, token in vocabulary.special.items() if role == "mask"}
    taken = (phi3_rstrip(vocabulary) if PHI3.search(name) else None) or frozenset()
    for where, wanted, done in (
        ("before", set(vocabulary.lstrip), {vocabulary.tokens.index(mask)} if mask in vocabulary.tokens else set()),
        ("after", set(vocabulary.rstrip), taken),
    ):
        # Encoders were trained to fill in masks; nobody who embeds or ranks texts writes one.
        if missed := sorted(wanted - done - masks):
            yield (
                f"this tokenizer removes the white space {where} {_texts(vocabulary, missed)}; llama.cpp does not, and "
                "prompts with spaces or line breaks there get extra tokens"
            )
        if extra := sorted(done - wanted):
            yield (
                f"llama.cpp removes the white space {where} {_texts(vocabulary, extra)}, but this tokenizer does not"
            )


def _texts(vocabulary: Vocabulary, ids: list[int]) -> str:
    return listing(dict.fromkeys(vocabulary.tokens[token] for token in ids))
