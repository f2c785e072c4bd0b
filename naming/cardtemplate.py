"""Cards by a template of one's own: Jinja2, in its sandbox, over the records of `naming.cardfacts`.

Names in headers come from others: they are given as one line of Markdown, its marks escaped, and `| fenced` makes a
block of code that no text can end. A template cannot read files, call Python, or change what it is given.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.naming.cardfacts import CardFacts, CardFile
from ggufsmith.naming.cardrun import download_command, examples_of
from ggufsmith.naming.modelcard import MARK, card_text, front_matter_text
from ggufsmith.naming.quoting import fenced, inline

MAX_TEMPLATE = 2**20  # bytes
MAX_CARD = 2**22  # characters
# What a template can use -> what it is, for the documents.
FIELDS: Mapping[str, str] = {
    "front_matter": "the YAML block with its fences; a card begins with it",
    "title": "of the page",
    "name": "the model's name in the header",
    "kind": "chat, completion, embedding, reranking, draft, adapter or vocabulary",
    "base_model": "the original model, org/name",
    "repo": "where the files will be published, org/name-GGUF",
    "author": "who quantized them",
    "architecture": "such as llama",
    "size_label": "such as 7B",
    "context_length": "tokens",
    "prompt_format": "the name of the prompt format, such as ChatML",
    "prompt": "its text, with {system_prompt} and {prompt}",
    "chat_template": "the chat template in the files",
    "files": "the files, the smallest first; each has name, names, place, url, type, size, bytes, bits_per_weight, use "
    "and sha256",
    "best": "the file that the examples use",
    "imatrix": "dataset and chunks of the importance matrix; empty without one",
    "download": "a command that fetches the file of the examples",
    "examples": "how to run it; each has title, language and code",
    "default": "the card as it is without a template, after its front matter",
    "version": "of ggufsmith",
}


def render_card(path: Path, facts: CardFacts) -> str:
    """The card that a template makes of the facts. It begins with the front matter and has our mark.

    Usage: there is no such file. Unsupported: Jinja2 is not installed. Malformed: the template has a fault, uses what
    is not there, or makes a card that is too long.
    """
    template = check_template(path)
    with _explained(path):
        text: str = template.render(fields_of(facts))
    if len(text) > MAX_CARD:
        raise Malformed(f"the card template makes {len(text)} characters, more than {MAX_CARD}", where=path)
    if not text.startswith("---\n"):
        text = f"{front_matter_text(facts)}\n\n{text}"
    return text if MARK in text else f"{text.rstrip()}\n\n{MARK}\n"


def check_template(path: Path) -> Any:
    """The template, parsed. Raises what `render_card` raises of it."""
    try:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        fix = "pip install 'ggufsmith[card]'"
        raise Unsupported("a card template needs Jinja2, which is not installed", fix=fix) from None
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals.clear()  # range() and others could make a card without end
    environment.filters["fenced"] = fenced
    source = _read(path)
    with _explained(path):
        return environment.from_string(source)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What Jinja2 raises, and what expressions in a template do, as one of ours."""
    from jinja2 import TemplateError

    try:
        yield
    except TemplateError as error:
        number = getattr(error, "lineno", None)
        what = f"the card template has a fault{f' in line {number}' if number else ''}: {error.message}"
        raise Malformed(what, where=path, fix=f"It can use: {', '.join(FIELDS)}.") from None
    except (ArithmeticError, TypeError, ValueError, LookupError, AttributeError, RecursionError, MemoryError) as error:
        raise Malformed(f"the card template failed: {error or type(error).__name__}", where=path) from None


def fields_of(facts: CardFacts) -> dict[str, Any]:
    """Plain data for a template, under the names of FIELDS. What is not known is an empty text, not the word None."""
    download = download_command(facts)
    default = card_text(facts).removeprefix(front_matter_text(facts)).lstrip()
    text, chunks = facts.imatrix or (None, None)
    return {
        "front_matter": front_matter_text(facts),
        "title": inline(facts.title),
        "name": _line(facts.name),
        "kind": facts.kind,
        "base_model": facts.base_model or "",
        "repo": facts.repo or "",
        "author": _line(facts.author),
        "architecture": _line(facts.architecture),
        "size_label": _line(facts.size_label),
        "context_length": _line(facts.context_length),
        "prompt_format": facts.prompt[0] if facts.prompt else "",
        "prompt": facts.prompt[1] if facts.prompt else "",
        "chat_template": facts.template or "",
        "files": [_file(facts, each) for each in facts.files],
        "best": _file(facts, facts.best),
        "imatrix": {"dataset": text or "", "chunks": "" if chunks is None else chunks} if facts.imatrix else "",
        "download": download or "",
        "examples": [{"title": e.title, "language": e.language, "code": e.code} for e in examples_of(facts)],
        "default": default,
        "version": facts.version,
    }


def _line(text: str | None) -> str:
    return "" if text is None else inline(text)


def _file(facts: CardFacts, file: CardFile) -> dict[str, Any]:
    return {
        "name": file.names[0],
        "names": list(file.names),
        "place": file.place,
        "url": facts.url(file) or "",
        "type": file.encoding or "",
        "size": file.size_text,
        "bytes": file.size,
        "bits_per_weight": round(file.bits, 4),
        "use": file.use,
        "sha256": list(file.hashes),
    }


def _read(path: Path) -> str:
    if not path.is_file():
        raise Usage("there is no such card template", where=path, fix="Name a file with --card-template.")
    if path.stat().st_size > MAX_TEMPLATE:
        raise Malformed(f"a card template of more than {MAX_TEMPLATE} bytes is not read", where=path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Malformed("the card template is not UTF-8 text", where=path) from None
