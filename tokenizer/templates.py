"""Chat templates: found, copied, never rendered.

Precedence, that of llama.cpp's gguf-py/gguf/vocab.py: `chat_template` in tokenizer_config.json, then
chat_template.jinja with additional_chat_templates/*.jinja, then chat_template.json.
"""

import re
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.tokenizer.files import TokenizerFiles
from ggufsmith.tokenizer.source import expect, inside, read_object, read_text, shown

Templates = tuple[str | None, dict[str, str]]  # the default, and name -> template for the others


def read_templates(files: TokenizerFiles) -> tuple[str | None, dict[str, str], list[str]]:
    """The default template (None if there is none), the named ones, and notes."""
    stated = _parse(files.tokenizer_config.get("chat_template"), files.path("tokenizer_config.json"))
    jinja = _from_jinja(files)
    lonely = read_object(files.home("chat_template.json"), "chat_template.json") or {}
    other = jinja if jinja != (None, {}) else _parse(lonely.get("chat_template"), files.path("chat_template.json"))
    if stated == (None, {}):
        return *other, []
    differ = other[0] is not None and other[0] != stated[0]
    note = (
        "there are two different chat templates: the one in tokenizer_config.json was copied, not the one in its "
        "own file"
    )
    return *stated, [note] if differ else []


def _parse(value: Any, where: Path) -> Templates:
    """A template as one string, or as an array of {"name", "template"}."""
    if value is None or isinstance(value, str):
        return value, {}
    named: dict[str, str] = {}
    for index, entry in enumerate(expect(value, list, where=where, key="chat_template")):
        key = f"chat_template[{index}]"
        expect(entry, dict, where=where, key=key)
        name = expect(entry.get("name"), str, where=where, key=f"{key}.name")
        _add(named, name, expect(entry.get("template"), str, where=where, key=f"{key}.template"), where)
    return named.pop("default", None), named


def _from_jinja(files: TokenizerFiles) -> Templates:
    folder = files.home("chat_template.jinja")
    default = read_text(folder, "chat_template.jinja")
    named: dict[str, str] = {}
    more = folder / "additional_chat_templates"
    if more.is_dir() and inside(folder, more):
        for path in sorted(more.glob("*.jinja")):
            text = read_text(folder, f"{more.name}/{path.name}")
            if text is not None:
                _add(named, path.stem, text, path)
    return (named.pop("default", None) if default is None else default), named


def _add(named: dict[str, str], name: str, template: str, where: Path) -> None:
    """File under the name as it can stand in a GGUF key: letters and digits, everything else becomes "_"."""
    name = re.sub("[^A-Za-z0-9]", "_", name)
    if not name or name in named:
        raise Malformed(
            f"two chat templates are called {shown(name)}" if name else "a chat template has no name", where=where
        )
    named[name] = template
