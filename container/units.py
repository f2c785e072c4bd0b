"""Sizes as people write them."""

import re

from ggufsmith.container.errors import Usage

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([KMGT])(I?))?B?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of `4G`, `4GB` or `500M` (decimal, as in llama.cpp), `4GiB` or `4Gi` (binary), or a plain number.

    Usage for anything else, and for less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    power = " KMGT".index((match[2] or " ").upper()) if match else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if size < 1:
        raise Usage(f"{text!r} is not a size", fix="Write it as 4G, 4.5GiB, 500M or a number of bytes.")
    return size
