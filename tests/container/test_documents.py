"""TOML and YAML files with the line of every value."""

from pathlib import Path

import pytest

from ggufsmith.container import documents
from ggufsmith.container.documents import parse_document, read_document
from ggufsmith.container.errors import Malformed, Usage

TOML = '''# a comment with "quotes", [brackets] and = signs
title = "a # b"
text = """
[[model]]
title = 3 \\""" no end
"""""
plain = \'\'\'
[defaults]
\'\'\'

[defaults]   # trailing [comment
recipes = [
  "q4_K_M",  # ]
  "a = b",
]
a.b = 1

[[model]]
source = 'x"'
extra = {inner = [{deep = 1}]}
[[model]]
[model.publisher]
repo = "r"
[["model"]]
"quoted key" = true
[[model.rule]]
[[model.rule]]
type = 1
'''
YAML = """# a comment
title: "a: b"
text: |
  model:
  - source: no
defaults: {recipes: [q4_K_M,
    q6_K]}
model:
- source: x
  name: y
-
  source: z
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("title",), 2),
        (("text",), 3),
        (("plain",), 7),
        (("defaults",), 11),
        (("defaults", "recipes"), 12),
        (("defaults", "recipes", 1), 12),
        (("defaults", "a", "b"), 16),
        (("model", 0), 18),
        (("model", 0, "source"), 19),
        (("model", 0, "extra", "inner", 0, "deep"), 20),
        (("model", 1, "publisher", "repo"), 23),
        (("model", 2, "quoted key"), 25),
        (("model", 2, "rule", 1, "type"), 28),
        (("model", 0, "missing"), 18),
        (("missing",), 1),
    ],
)
def test_lines_of_toml(keys: tuple[str | int, ...], line: int, ending: str) -> None:
    document = parse_document(TOML.replace("\n", ending), Path("j.toml"))
    assert document.place(*keys) == f"j.toml:{line}"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("title",), 2),
        (("text",), 3),
        (("defaults", "recipes"), 6),
        (("defaults", "recipes", 1), 7),
        (("model", 0), 9),
        (("model", 0, "name"), 10),
        (("model", 1), 12),
        (("model", 1, "source"), 12),
        (("model", 1, "name"), 12),
    ],
)
def test_lines_of_yaml(keys: tuple[str | int, ...], line: int) -> None:
    assert parse_document(YAML, Path("j.yml")).place(*keys) == f"j.yml:{line}"


def test_every_value_has_a_line() -> None:
    """Whatever tomllib finds, the statements place."""
    document = parse_document(TOML, Path("j.toml"))

    def check(value: object, *keys: str | int) -> None:
        if keys and not (isinstance(value, list) and value and keys == ("model",)):
            assert keys in document.lines or isinstance(value, list), keys
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            check(inner, *keys, key)

    check(document.data)
    assert document.data["model"][2]["rule"][1] == {"type": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("j.toml", "a = 1\nb = ?", r"j.toml:2: the file is not valid TOML: Invalid value$"),
        ("j.toml", "a = 1\nb = [", r"j.toml:2: the file is not valid TOML"),
        ("j.toml", "a = 1\na = 2", "not valid TOML"),
        ("j.toml", "a = " + "[" * 10_000, "TOML|deep"),
        ("j.yaml", "a: [", r"j.yaml:\d"),
        ("j.yaml", "a: 1\nb: 2\na: 3", "j.yaml:3.*'a' occurs twice"),
        ("j.yaml", "- a", "must hold a table"),
        ("j.yaml", "1: a", "must hold a table"),
        ("j.yaml", "", "must hold a table"),
        ("j.yaml", "a: " + "[" * 100 + "]" * 100, "nested deeper"),
        ("j.yaml", "a: &x [1]\nb: *x", "aliases"),
        ("j.yaml", "a: &x [*x]", "aliases"),
        ("j.yaml", "a: !!int ''", "not valid YAML"),
        ("j.yaml", "a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("j.yaml", "a: \x01", "not valid YAML"),
    ],
)
def test_damaged(name: str, text: str, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse_document(text, Path(name))


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.toml"
    with pytest.raises(Usage, match="there is no such file"):
        read_document(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(Malformed, match="UTF-8"):
        read_document(path)
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_document(path).data == {"a": 1}
    monkeypatch.setattr(documents, "MAX_SIZE", 4)
    with pytest.raises(Malformed, match="more than the 4 read"):
        read_document(path)


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 5000, "-" + "1" * 4301, str(2**63)])
@pytest.mark.parametrize("name", ["a.toml", "a.yaml"])
def test_numbers_of_thousands_of_digits(value: str, name: str) -> None:
    with pytest.raises(Malformed, match=r"is not valid (TOML|YAML)|64 bits"):
        parse_document(f"x = [{value}]" if name == "a.toml" else f"x: [{value}]", Path(name))
    text = f"x = {2**63 - 1}" if name == "a.toml" else f"x: {2**63 - 1}"
    assert parse_document(text, Path(name)).data == {"x": 2**63 - 1}
