"""Card templates of one's own: what they can use, and that they can do nothing else."""

import sys
from pathlib import Path

import pytest

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.values import Metadata, string
from ggufsmith.naming.cardfacts import CardFacts, CardFile, Publisher, facts_of
from ggufsmith.naming.cardtemplate import FIELDS, MAX_TEMPLATE, fields_of, render_card
from ggufsmith.naming.modelcard import MARK

META: Metadata = {
    "general.architecture": string("llama"),
    "general.name": string("Tiny *bold* | pipe"),
    "tokenizer.chat_template": string("```\n# no title\n<|im_start|> <|im_end|>"),
}


@pytest.fixture
def facts() -> CardFacts:
    files = [CardFile(("Tiny-Q8_0.gguf",), 5 * 10**9, 8.5, "Q8_0", ("ab",), imatrix=("t.txt", 3))]
    return facts_of(META, files, Publisher("me/Tiny-GGUF", None, "me"), version="1.2.3")


def rendered(tmp_path: Path, text: str, facts: CardFacts) -> str:
    (tmp_path / "card.j2").write_text(text, encoding="utf-8")
    return render_card(tmp_path / "card.j2", facts)


def test_every_field_is_there_and_documented(facts: CardFacts) -> None:
    assert fields_of(facts).keys() == FIELDS.keys()
    page = Path(__file__).parents[2] / "docs" / "cards.md"
    text = page.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in FIELDS)


def test_a_template(tmp_path: Path, facts: CardFacts) -> None:
    text = rendered(
        tmp_path,
        "# {{ title }} by {{ author }}\n{% for f in files %}[{{ f.type }}]({{ f.url }}) {{ f.size }} {{ f.sha256[0] }}"
        "{% endfor %}\n{{ chat_template | fenced }}\n{{ imatrix.dataset }} {{ download }}\n{{ examples[0].code }}",
        facts,
    )
    assert text.startswith("---\npipeline_tag: text-generation\n")  # without it the hub would not know the files
    assert "# Tiny \\*bold\\* \\| pipe by me\n" in text
    assert "[Q8_0](https://huggingface.co/me/Tiny-GGUF/blob/main/Tiny-Q8_0.gguf) 5.00 GB ab" in text
    assert "````\n```\n# no title" in text
    assert "t.txt hf download me/Tiny-GGUF Tiny-Q8_0.gguf" in text
    assert text.count(MARK) == 1
    again = rendered(tmp_path, "{{ front_matter }}\n\nMine.\n\n{{ default }}", facts)
    assert again.count("---\npipeline_tag") == 1 and again.count(MARK) == 1 and "## How to run" in again


def test_what_is_not_known_is_empty(tmp_path: Path) -> None:
    """Not the word None, wherever a template puts it."""
    files = [CardFile(("adapter.gguf",), 10, 32, None, ())]
    bare = facts_of({"general.architecture": string("llama")}, files, Publisher(), version="1.2.3")
    scalars = [name for name in FIELDS if name not in ("default", "front_matter", "examples")]
    fields = "".join(f"[{{{{ {name} }}}}]" for name in scalars)
    file = "{% for f in files %}<{{ f.url }}{{ f.type }}{{ f.place ~ f.url ~ f.type }}>{% endfor %}"
    text = rendered(tmp_path, f"{fields}{file}{{% if author or imatrix or files[0].url %}}known{{% endif %}}", bare)
    assert "None" not in text and "known" not in text and "[]" in text


@pytest.mark.parametrize(
    "text",
    [
        "{% for %}",
        "{{ nothing }}",
        "{{ title.nothing }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ title.format.__globals__ }}",
        "{{ files.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ range(10) }}",
        "{{ 1 / 0 }}",
        "{{ title + 1 }}",
        "{{ 'x' * 10000000 }}",
        "{{ self._TemplateReference__context.vars }}",
    ],
)
def test_what_a_template_cannot_do(text: str, tmp_path: Path, facts: CardFacts) -> None:
    with pytest.raises(Malformed, match="card template"):
        rendered(tmp_path, text, facts)


def test_what_is_no_template(tmp_path: Path, facts: CardFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Usage, match="no such card template"):
        render_card(tmp_path / "absent", facts)
    (tmp_path / "long").write_bytes(b"x" * (MAX_TEMPLATE + 1))
    with pytest.raises(Malformed, match="more than"):
        render_card(tmp_path / "long", facts)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(Malformed, match="UTF-8"):
        render_card(tmp_path / "latin", facts)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(Unsupported, match=r"ggufsmith\[card\]"):
        rendered(tmp_path, "x", facts)


@pytest.mark.parametrize("repo", ["a b", "a", "a/b/c", "a/b\n---\nx: 1", "", "ä/b", "-/b"])
def test_a_repository_that_no_hub_could_have(repo: str) -> None:
    with pytest.raises(Usage, match="cannot be the name of a repository"):
        Publisher(repo)
