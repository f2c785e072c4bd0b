"""Texts of users, read or refused with file and line, and those that ship with the package."""

import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.evaluate.texts import ROLES, TextDocument, read_texts, shipped

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def rows(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def test_files_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\nzwei\n\n")
    (tmp_path / "b.md").write_bytes(b"# Title")
    (tmp_path / "wiki.test.raw").write_bytes(b" = x = \n")
    (tmp_path / "c.JSONL").write_bytes(
        b"\xef\xbb\xbf" + rows({"text": "t\u00e9"}) + b"\r\n\n" + rows({"messages": CHAT})
    )
    found = read_texts([tmp_path / name for name in ("a.txt", "b.md", "wiki.test.raw", "c.JSONL")])
    assert found == [
        TextDocument("a", "one\r\nzwei\n", name="a.txt"),
        TextDocument("b", "# Title", name="b.md"),
        TextDocument("wiki.test", " = x = ", name="wiki.test.raw"),
        TextDocument("c", "té", name="c.JSONL"),
        TextDocument("c", messages=tuple(CHAT), name="c.JSONL"),
    ]


def test_folders_are_domains(tmp_path: Path) -> None:
    home = tmp_path / "texts"
    for name in ("z.txt", "law/b.txt", "law/deep/a.md", ".git/x.txt", "law/.y.txt", "picture.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name, encoding="utf-8")
    found = read_texts([home])
    assert [(each.domain, each.text) for each in found] == [
        ("law", "law/b.txt"),
        ("law", "law/deep/a.md"),
        ("texts", "z.txt"),
    ]


def test_empty_rows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows({"text": ""}, {"text": "x"}, {"messages": []}))
    assert [each.text for each in read_texts([tmp_path / "a.jsonl"])] == ["x"]


BAD = {
    "bytes.txt": (b"fine\nna\xefve\n", r"bytes\.txt:2: the byte 0xef is not UTF-8"),
    "utf16.txt": ("text".encode("utf-16"), r"utf16\.txt:1: the byte 0xff is not UTF-8"),
    "empty.txt": (b"", r"empty\.txt: the file holds no text"),
    "newline.txt": (b"\n", r"newline\.txt: the file holds no text"),
    "empty.jsonl": (b"\n\n", r"empty\.jsonl: the file holds no text"),
    "cut.jsonl": (rows({"text": "x"}) + b'{"text": "y', r"cut\.jsonl:2: this is not valid JSON"),
    "deep.jsonl": (b"[" * 100_000, r"deep\.jsonl:1: JSON nested too deeply"),
    "list.jsonl": (rows(["x"]), r"list\.jsonl:1: the row is not an object"),
    "other.jsonl": (rows({"prompt": "x"}), r"other\.jsonl:1: the row has 'prompt'"),
    "nothing.jsonl": (rows({}), r"nothing\.jsonl:1: the row is empty"),
    "number.jsonl": (rows({"text": 3}), r'number\.jsonl:1: "text" is not a text'),
    "half.jsonl": (b'{"text": "\\ud83d"}', r'half\.jsonl:1: "text" has U\+D83D'),
    "chat.jsonl": (rows({"messages": "x"}), r'chat\.jsonl:1: "messages" is not a list'),
    "message.jsonl": (rows({"messages": [{"role": "user"}]}), r'message\.jsonl:1: a message has no "role" or no'),
    "role.jsonl": (rows({"messages": [{"role": "tool", "content": "x"}]}), r"role\.jsonl:1: the role 'tool' is not"),
    "unhashable.jsonl": (rows({"messages": [{"role": [], "content": "x"}]}), r"the role \[\] is not one of system"),
    "content.jsonl": (rows({"messages": [{"role": "user", "content": None}]}), r'"content" is not a text'),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_text_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(Malformed, match=message):
            read_texts([path])


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="there is no such file or folder"):
        read_texts([tmp_path / "none.txt"])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(Malformed, match="no texts in this folder"):
        read_texts([tmp_path])


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(Unsupported, match=r"needs pyarrow, which is not installed\npip install pyarrow"):
        read_texts([tmp_path / "a.parquet"])


def words(document: TextDocument) -> list[str]:
    text = document.text + " ".join(message["content"] for message in document.messages)
    return re.findall(r"\w+", text.lower())


def test_the_texts_that_ship_have_nothing_in_common() -> None:
    """Not even twelve words in a row, but for the imports of two modules."""
    runs = {}
    for which in ("calibration", "test"):
        found = [words(document) for document in shipped(which)]
        runs[which] = {tuple(each[at : at + 12]) for each in found for at in range(len(each) - 11)}
    assert {run for run in runs["calibration"] & runs["test"] if "import" not in run} == set()


@pytest.mark.parametrize(("which", "least", "most"), [("calibration", 180_000, 260_000), ("test", 80_000, 130_000)])
def test_the_texts_that_ship_are_of_several_domains(which: Any, least: int, most: int) -> None:
    documents = shipped(which)
    domains = {document.domain for document in documents}
    assert {"chat", "code", "multilingual", "prose", "technical"} <= domains
    size = sum(len(each.text.encode()) + sum(len(m["content"].encode()) for m in each.messages) for each in documents)
    assert least <= size <= most
    assert all(bool(each.text) != bool(each.messages) for each in documents)
    for each in documents:
        roles = [message["role"] for message in each.messages]
        assert set(roles) <= set(ROLES) and all(a != b for a, b in pairwise(roles))
        assert "\f" not in each.text and "\r" not in each.text
    assert {each.domain for each in documents[: len(domains)]} == domains


def test_a_folder_where_a_file_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(Failure, match="no texts in this folder"):
        read_texts([tmp_path / "a.txt"])


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert [each.text for each in read_texts([path])] == ["one", "two"]
    parquet.write_table(pyarrow.table({"messages": [CHAT]}), path)
    assert read_texts([path]) == [TextDocument("a", messages=tuple(CHAT), name="a.parquet")]
    raw = path.read_bytes()
    for damaged in (b"PAR1", raw[:-9], raw[:20] + b"\xff\x00" * 40 + raw[100:]):
        path.write_bytes(damaged)
        with pytest.raises(Malformed, match="is not Parquet, or is damaged"):
            read_texts([path])
    parquet.write_table(pyarrow.table({"n": [1]}), path)
    with pytest.raises(Malformed, match="the columns are 'n'"):
        read_texts([path])


def test_texts_of_equal_name_are_several_domains(tmp_path: Path) -> None:
    for name in ("a/t.txt", "b/t.txt", "b/u.txt", "b/u.md", "c/t/x.txt", "d/t/y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    found = read_texts([tmp_path / name for name in ("a/t.txt", "b/t.txt", "b/u.txt", "b/u.md", "c/t", "d/t")])
    assert [(each.domain, each.name) for each in found] == [
        ("a/t", "a/t.txt"),
        ("b/t", "b/t.txt"),
        ("u.txt", "u.txt"),
        ("u.md", "u.md"),
        ("c/t", "x.txt"),
        ("d/t", "y.txt"),
    ]


def test_a_text_counts_once(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("words", encoding="utf-8")
    (tmp_path / "link.txt").symlink_to(text)
    for paths in ([text, text], [text, tmp_path / "link.txt"]):
        with pytest.raises(Usage, match="read twice"):
            read_texts(paths)
    (tmp_path / "link.txt").unlink()
    with pytest.raises(Usage, match="read twice"):
        read_texts([tmp_path, text])
    assert len(read_texts([text])) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/null")
def test_a_device_is_a_wrong_name() -> None:
    with pytest.raises(Usage, match="not a regular file"):
        read_texts([Path("/dev/null")])
