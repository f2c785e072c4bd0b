"""The front matter of a README.md that holds a file's `general.*` texts, where converters look for them."""

from typing import Any

import yaml

from ggufsmith.container.values import Metadata
from ggufsmith.naming.metadata import LISTS, TEXTS


def model_card(metadata: Metadata) -> bytes | None:
    """A model card without a text; None if the file says nothing that belongs there."""
    front: dict[str, Any] = {}
    for key, names in TEXTS:
        value = metadata.get(key)
        if names and value is not None and isinstance(value.data, str):
            front[names[0]] = value.data
    for key, names in LISTS:
        value = metadata.get(key)
        if value is not None and isinstance(value.data, tuple):
            front[names[0]] = list(value.data)
    if not front:
        return None
    return f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n".encode("utf-8", "replace")
