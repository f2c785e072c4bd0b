"""Names that would end a table, a span, a block or a command do not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ggufsmith.container.provenance import file_sha256, sum_line
from ggufsmith.container.values import string
from ggufsmith.naming.cardfacts import CardFile, Publisher
from ggufsmith.naming.modelcard import MEASURED, model_card, with_measurements
from ggufsmith.naming.quoting import code, fenced, file_word, word

NAMES = [
    "plain.gguf",
    "new\nline.gguf",
    "`tick`.gguf",
    "a``b.gguf",
    "a|b.gguf",
    "it's \\ \x1b\u2028é.gguf",
    "-dash.gguf",
]


@pytest.mark.parametrize(
    ("text", "span", "cell"),
    [
        ("a b", "`a b`", "`a b`"),
        ("new\nline", r"`new\nline`", r"`new\nline`"),
        ("`t`", "`` `t` ``", "`` `t` ``"),
        ("a``b", "```a``b```", "```a``b```"),
        ("a|b", "`a|b`", r"`a\|b`"),
    ],
)
def test_code_spans(text: str, span: str, cell: str) -> None:
    assert (code(text), code(text, cell=True)) == (span, cell)


def test_a_block_is_ended_by_nothing_in_it() -> None:
    assert fenced("a\n````\n", "sh") == "`````sh\na\n````\n`````"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"\xff.gguf")])
def test_a_shell_reads_the_name_again(name: str) -> None:
    assert "\n" not in word(name)
    done = subprocess.run(["bash", "-c", f"printf %s {word(name)}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)
    assert not file_word(name).startswith("-")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
@pytest.mark.parametrize("name", NAMES)
def test_sha256sum_reads_its_lines(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"content")
    line = sum_line(file_sha256(path), name)
    assert "\n" not in line
    done = subprocess.run(["sha256sum", "--check"], input=f"{line}\n".encode(), cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_card_has_every_name_on_one_line() -> None:
    metadata = {"general.architecture": string("llama"), "tokenizer.chat_template": string("x")}
    files = [CardFile((name,), 100 * k, 8.0, "Q8_0", ("a" * 64,)) for k, name in enumerate(NAMES, 1)]
    card = model_card(metadata, files, Publisher(), version="1")
    rows = [line for line in card.splitlines() if line.startswith("| `")]
    assert len(rows) == len(NAMES)
    assert {line.replace(r"\|", "").count("|") for line in rows} == {6}
    assert r"| `new\nline.gguf` |" in card and "| `` `tick`.gguf `` |" in card
    for line in card.splitlines():
        assert not line.startswith("line.gguf")
    dashed = model_card(metadata, files[-1:], Publisher(), version="1")
    assert "-m ./-dash.gguf" in dashed


# ---- what was measured before ----

OLD = "\n\n".join([MEASURED[0], "## Quality", "| old |", "Old words.", "```sh\nggufsmith eval old\n```", MEASURED[1]])
CARD = "# Mine\n\n{}\n\n## How to run\n\nRun it.\n"


def measured(card: str) -> str:
    return with_measurements(card, "| new |", "New words.", "ggufsmith eval")


@pytest.mark.parametrize("lost", [None, 0, 1])
@pytest.mark.parametrize("after", ["\n\n## How to run\n\nRun it.\n", "\n"])
def test_one_mark_is_enough_to_replace_what_was_there(lost: int | None, after: str) -> None:
    old = OLD if lost is None else OLD.replace(MEASURED[lost], "").strip("\n")
    card = measured(f"# Mine\n\n## Provided files\n\nWords.\n\n{old}{after}")
    assert card.count("## Quality") == 1 and "| old |" not in card and "| new |" in card
    assert card.startswith("# Mine\n\n## Provided files\n\nWords.\n\n<!-- measured") and card.endswith(after)
    assert measured(card) == card


def test_a_section_of_somebody_else_is_left_alone() -> None:
    own = "## Quality\n\nIt is good.\n\n## More\n\nWords.\n"
    card = measured(own)
    assert card.startswith(own) and card.count("## Quality") == 2


def test_line_ends_stay() -> None:
    card = CARD.format(OLD).replace("\n", "\r\n")
    found = measured(card)
    assert found == measured(CARD.format(OLD)).replace("\n", "\r\n")
