"""Metadata keys that a user sets, in the way llama.cpp writes them on its command line."""

import re
from collections.abc import Iterable

from ggufsmith.container.errors import Usage
from ggufsmith.container.values import Metadata, Value, boolean, f32, i32, string, u32

MAX_U32 = 2**32 - 1


def overrides_of(texts: Iterable[str]) -> Metadata:
    """The keys that these texts set (see `parse_override`)."""
    return dict(map(parse_override, texts))


def parse_override(text: str) -> tuple[str, Value]:
    """KEY=TYPE:VALUE with a type of int, float, bool or str. Usage if it is not that."""
    match_ = re.fullmatch(r"([^=]+)=(int|float|bool|str):(.*)", text, re.DOTALL)
    if not match_:
        raise Usage(f"{text!r} does not set a key", fix="Write KEY=TYPE:VALUE, with a type of int, float, bool or str.")
    key, kind, value = match_.groups()
    try:
        if kind == "int":
            number = int(value)
            return key, u32(number) if 0 <= number <= MAX_U32 else i32(number)
        if kind == "float":
            return key, f32(float(value))
    except ValueError:
        fix = f"Write {key}={kind}:1, or another type."
        raise Usage(f"{text!r}: {value!r} is not of type {kind}", fix=fix) from None
    if kind == "bool":
        if value not in ("true", "false"):
            raise Usage(f"{text!r}: {value!r} is not of type bool", fix="Write true or false.")
        return key, boolean(value == "true")
    return key, string(value)
