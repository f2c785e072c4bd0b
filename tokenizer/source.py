"""Ids and texts of tokens, as the files of a model folder state them."""

from collections.abc import Sequence
from typing import Any

from ggufsmith.container.untrusted import expect

MAX_TOKENS = 2**21  # the largest vocabulary known has 2**18 tokens


def token_ids(value: Any, *, where: object, key: str) -> tuple[int, ...]:
    """The ids a key states: an integer, an array of them, or null. Negative ids mean "none" (`pad_token_id: -1`)."""
    if value is None:
        return ()
    stated: Sequence[Any] = value if isinstance(value, list) else (value,)
    return tuple(i for i in (expect(v, int, where=where, key=key) for v in stated) if i >= 0)


def token_text(value: Any, *, where: object, key: str) -> str | None:
    """The text of a token as tokenizer_config.json gives it: a string, an object with `content`, or null."""
    if value is None or isinstance(value, str):
        return value
    content = expect(value, (str, dict), where=where, key=key).get("content")
    return None if content is None else str(expect(content, str, where=where, key=f"{key}.content"))
