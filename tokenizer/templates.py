"""Chat templates: found, copied, never rendered.

Precedence, that of llama.cpp's gguf-py/gguf/vocab.py: `chat_template` in tokenizer_config.json, then
chat_template.jinja with additional_chat_templates/*.jinja, then chat_template.json.

Line ends of .jinja files become LF, as for everyone who opens them as text; strings in JSON are copied as they are.
What renders them (Jinja2, llama.cpp's common/jinja/lexer.cpp) takes CRLF and CR for LF in both.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import expect, is_inside, shown
from ggufsmith.tokenizer.files import TokenizerFiles, optional_object, optional_text
from ggufsmith.tokenizer.vocabulary import Vocabulary

Templates = tuple[str | None, dict[str, str]]  # the default, and name -> template for the others


def read_templates(files: TokenizerFiles) -> tuple[str | None, dict[str, str], list[str]]:
    """The default template (None if there is none), the named ones, and notes."""
    stated = _parse(files.tokenizer_config.get("chat_template"), files.path("tokenizer_config.json"))
    jinja = _from_jinja(files)
    lonely = optional_object(files.home("chat_template.json"), "chat_template.json") or {}
    other = jinja if jinja != (None, {}) else _parse(lonely.get("chat_template"), files.path("chat_template.json"))
    if stated == (None, {}):
        return *other, []
    differ = other[0] is not None and _unix(other[0]) != _unix(stated[0] or "")
    note = "two chat templates differ: the one in tokenizer_config.json was copied, the one in its own file was not"
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
    default = _unix(optional_text(folder, "chat_template.jinja"))
    named: dict[str, str] = {}
    more = folder / "additional_chat_templates"
    if more.is_dir() and is_inside(folder, more):
        for path in sorted(more.glob("*.jinja")):
            text = _unix(optional_text(folder, f"{more.name}/{path.name}"))
            if text is not None:
                _add(named, path.stem, text, path)
    return (named.pop("default", None) if default is None else default), named


def _unix(text: str | None) -> str | None:
    return text if text is None else text.replace("\r\n", "\n").replace("\r", "\n")


def template_notes(vocabulary: Vocabulary) -> Iterator[str]:
    """What is to be said of a vocabulary whose chat templates all have names."""
    if vocabulary.chat_template is None and vocabulary.chat_templates:
        names = ", ".join(map(shown, sorted(vocabulary.chat_templates)))
        yield f"there is no default chat template, only {names}: programs that chat will use a format of their own"


def _add(named: dict[str, str], name: str, template: str, where: Path) -> None:
    """File under the name as it can stand in a GGUF key: letters and digits, everything else becomes "_"."""
    name = re.sub("[^A-Za-z0-9]", "_", name)
    if not name or name in named:
        raise Malformed(
            f"two chat templates are called {shown(name)}" if name else "a chat template has no name", where=where
        )
    named[name] = template
