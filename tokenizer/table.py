"""Tokens, types and scores by id, while a vocabulary is put together."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf.constants import TokenType
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import shown
from ggufsmith.tokenizer.added import AddedToken, listing

NO_SCORE = -1000.0  # score of added tokens: llama.cpp looks them up before it merges
PAD_SCORE = -10000.0
# Types that a file can give a token only by saying so with flags.
SETTLED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)


@dataclass
class TokenTable:
    """One row per id.

    tokens: None where there is no such id yet.
    types:  int32, one gguf.TokenType each. scores: float32.
    notes:  sentences for the report.
    beyond: added tokens that have no row.
    """

    tokens: list[str | None]
    types: NDArray[np.int32]
    scores: NDArray[np.float32]
    notes: list[str] = field(default_factory=list)
    beyond: dict[str, AddedToken] = field(default_factory=dict)

    @classmethod
    def of(cls, size: int) -> "TokenTable":
        """`size` empty rows, of unused tokens."""
        types = np.full(size, TokenType.UNUSED, np.int32)
        return cls([None] * size, types, np.full(size, PAD_SCORE, np.float32))

    def put(self, added: AddedToken, *, settles: bool) -> None:
        """Set an added token; ids outside the table have no row in the embedding, so the model cannot use them.

        settles: whether its source decides about a token that the vocabulary calls control, unknown or a byte; if not,
        a source that agrees, or knows no flags, leaves such a token as it is.
        """
        if added.id >= len(self.tokens):
            self.beyond[added.text] = added
            return
        before = self.tokens[added.id]
        if before is not None and before != added.text:
            self.notes.append(
                f"token {added.id} is {shown(added.text)} as an added token, but {shown(before)} in the vocabulary"
            )
        elif not settles and self.types[added.id] in SETTLED:
            return
        self.tokens[added.id] = added.piece
        self.types[added.id] = TokenType.CONTROL if added.control else TokenType.USER_DEFINED
        self.scores[added.id] = NO_SCORE

    def finish(self, where: Path) -> tuple[str, ...]:
        """All tokens, ids without a text named [PADn]. Malformed: equal texts (llama.cpp aborts), lone surrogates."""
        if self.beyond:
            first = min(added.id for added in self.beyond.values())
            self.notes.append(
                f"added tokens from {first} on have no row in the embedding and are left out: {listing(self.beyond)}"
            )
        holes = [i for i, text in enumerate(self.tokens) if text is None]
        if holes:
            self.notes.append(f"{len(holes)} of {len(self.tokens)} ids have no token and are written as unused [PADn]")
        tokens = tuple(f"[PAD{i}]" if text is None else text for i, text in enumerate(self.tokens))
        try:
            "".join(tokens).encode()
        except UnicodeEncodeError:
            broken = next(i for i, text in enumerate(tokens) if any("\ud800" <= c <= "\udfff" for c in text))
            raise Malformed(f"token {broken} holds half of a surrogate pair", where=where) from None
        if len(set(tokens)) != len(tokens):
            first_of: dict[str, int] = {}
            for i, text in enumerate(tokens):
                if first_of.setdefault(text, i) != i:
                    raise Malformed(f"tokens {first_of[text]} and {i} are both {shown(text)}", where=where)
        return tokens
