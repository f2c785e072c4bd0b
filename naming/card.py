"""The YAML block at the head of a model card (README.md), as data.

Hugging Face hub documentation, "Model Cards". A card is written by hand: one that cannot be read costs a note, never
the conversion. It is parsed with the safe loader only, and its size is checked first.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ggufsmith.container.documents import check_depth

MAX_FRONT_MATTER = 2**20  # characters; cards that list every benchmark reach 300 KB
FENCE = "---"


class FrontMatterLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Either is a safe loader; PyYAML's wheels have the C one. Without booleans: `no` is Norwegian, not False."""


FrontMatterLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in FrontMatterLoader.yaml_implicit_resolvers.items()
}


def read_card(folder: Path, note: Callable[[str], None]) -> Mapping[str, Any]:
    """The front matter of `folder`/README.md; empty if there is none. `note` is told of one that cannot be used."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_FRONT_MATTER)
    except (OSError, UnicodeDecodeError) as error:
        note(f"{path}: the model card is not used: {error}")
        return {}
    lines = text.splitlines()
    if not lines or lines[0] != FENCE:
        return {}
    if FENCE not in lines[1:] and len(text) == MAX_FRONT_MATTER:
        note(f"{path}: the model card is not used: its front matter has more than {MAX_FRONT_MATTER} characters")
        return {}
    end = lines.index(FENCE, 1) if FENCE in lines[1:] else len(lines)
    block = "\n".join(lines[1:end]) + "\n"
    block = block.replace("\t", "  ")  # some cards indent with tabs, which YAML forbids
    try:
        check_depth(block)
        data = yaml.load(block, FrontMatterLoader)
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors let through what int(), float() and date() raise for `!!int ""` and the like.
        note(f"{path}: the model card is not used: {str(error).partition(chr(10))[0]}")
        return {}
    if isinstance(data, dict):
        return data
    if data is not None:
        note(f"{path}: the model card is not used: its front matter is a {type(data).__name__}, not a mapping")
    return {}
