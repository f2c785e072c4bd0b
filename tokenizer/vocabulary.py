"""A vocabulary as GGUF holds it, and its `tokenizer.*` metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from ggufsmith.container.values import Metadata, array, boolean, string, strings, u32

KEY = Keys.Tokenizer

# Role of a special token -> GGUF key, in the order in which the keys are written.
ID_KEYS: Mapping[str, str] = {
    "bos": KEY.BOS_ID,
    "eos": KEY.EOS_ID,
    "unk": KEY.UNK_ID,
    "sep": KEY.SEP_ID,
    "pad": KEY.PAD_ID,
    "mask": KEY.MASK_ID,
    "eot": KEY.EOT_ID,
    "eom": KEY.EOM_ID,
    "fim_pre": KEY.FIM_PRE_ID,
    "fim_suf": KEY.FIM_SUF_ID,
    "fim_mid": KEY.FIM_MID_ID,
}
# Tokenizers whose tokens have scores.
SCORED = ("llama", "gemma4", "t5")
ADD_KEYS: Mapping[str, str] = {"bos": KEY.ADD_BOS, "eos": KEY.ADD_EOS, "sep": KEY.ADD_SEP}


@dataclass(frozen=True)
class Vocabulary:
    """Everything llama.cpp needs to turn text into token ids and back.

    model:            "llama" (SentencePiece-like merging by score), "gpt2" (byte-level BPE by merges), "gemma4"
                      (byte-fallback BPE by merges), "bert" (WordPiece) or "t5" (Unigram).
    pre:              name of the pre-tokenizer, "default" for those that have none.
    tokens:           text of every id, padding included; no two are equal.
    types:            int32, one gguf.TokenType per token.
    scores:           float32 per token, for those of SCORED.
    merges:           "left right" in order of rank, empty for "llama".
    special:          role (bos, eos, eot, ...) -> token id, only those that are stated somewhere.
    eog:              every id that a file of the model states as end of generation.
    add:              role (bos, eos, sep) -> whether it is added around a text; absent means llama.cpp's default.
    add_space_prefix: None means llama.cpp's default (true for "llama").
    lstrip, rstrip:   ids of tokens that take the white space before, or behind, them; GGUF has no place for it.
    chat_template:    the default template; chat_templates: the named ones. Copied, never rendered.
    more:             further keys: of normalizing texts.
    notes:            sentences for the report: what was padded, dropped, or contradictory.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: NDArray[np.int32]
    scores: NDArray[np.float32] | None = None
    merges: tuple[str, ...] = ()
    special: Mapping[str, int] = field(default_factory=dict)
    eog: tuple[int, ...] = ()
    add: Mapping[str, bool] = field(default_factory=dict)
    add_space_prefix: bool | None = None
    lstrip: tuple[int, ...] = ()
    rstrip: tuple[int, ...] = ()
    chat_template: str | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    more: Metadata = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def metadata(self) -> Metadata:
        """All `tokenizer.*` keys. The same vocabulary gives the same keys in the same order."""
        keys: dict[str, Any] = {KEY.MODEL: string(self.model)}
        if self.pre:
            keys[KEY.PRE] = string(self.pre)
        keys[KEY.LIST] = strings(self.tokens)
        if self.scores is not None:
            keys[KEY.SCORES] = array(self.scores)
        keys[KEY.TOKEN_TYPE] = array(self.types)
        if self.merges:
            keys[KEY.MERGES] = strings(self.merges)
        keys |= {key: u32(self.special[role]) for role, key in ID_KEYS.items() if role in self.special}
        keys |= {key: boolean(self.add[role]) for role, key in ADD_KEYS.items() if role in self.add}
        if self.add_space_prefix is not None:
            keys[KEY.ADD_PREFIX] = boolean(self.add_space_prefix)
        keys |= self.more
        for name, template in sorted(self.chat_templates.items()):
            keys[KEY.CHAT_TEMPLATE_N.format(name=name)] = string(template)
        if self.chat_templates:
            keys[KEY.CHAT_TEMPLATES] = strings(sorted(self.chat_templates))
        if self.chat_template is not None:
            keys[KEY.CHAT_TEMPLATE] = string(self.chat_template)
        return keys
