"""The Python code of a page, to be run as it stands."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
# What needs torch and transformers, which plain tests do without.
HEAVY = re.compile(r"from transformers|ggufsmith\.(imatrix|evaluate|sensitivity)\(")


def blocks(page: str) -> list[str]:
    """The fenced blocks of Python of a page, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
