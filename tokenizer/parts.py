"""What the kinds of vocabularies have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ggufsmith.container.values import Metadata
from ggufsmith.tokenizer.added import AddedToken
from ggufsmith.tokenizer.around import TextFrame
from ggufsmith.tokenizer.table import TokenTable


@dataclass(frozen=True)
class Parts:
    """A vocabulary, read from its file, before special tokens and templates are looked for.

    further:   the added tokens.
    added:     text -> id of those among which names are looked up first; of two ids the first.
    frame:     what tokenizer.json puts around a text, None without that file.
    adds_bos:  what llama.cpp does where the GGUF does not say.
    more:      further keys.
    """

    model: str
    pre: str
    table: TokenTable
    tokens: tuple[str, ...]
    further: tuple[AddedToken, ...]
    added: Mapping[str, int]
    frame: TextFrame | None
    merges: tuple[str, ...] = ()
    adds_bos: bool = False
    space_prefix: bool | None = None
    more: Metadata = field(default_factory=dict)
