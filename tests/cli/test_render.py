"""Summaries, tables and errors: words stay whole in a terminal, and every row is one line elsewhere."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from ggufsmith.cli import render
from ggufsmith.container.errors import Malformed

WORDS = (
    "the embeddings are quantized to Q8_0, because the rows of this tensor, 896 weights long, do not fit blocks of 256"
)
COMMAND = "gguf-convert './A folder with a long name and blanks' --recipe q4_K_M --recipe q6_K --recipe q8_0 --card"


@pytest.fixture(params=[40, 80, 200])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=request.param, color_system=None, soft_wrap=True, highlight=False
    )
    for name in ("out", "err"):
        monkeypatch.setattr(render, name, console)
    return console


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(file=io.StringIO(), force_terminal=False, width=80, soft_wrap=True, highlight=False)
    monkeypatch.setattr(render, "out", console)
    return console


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_words_stay_whole(terminal: Console) -> None:
    render.lines([("size", "1 B"), ("note", WORDS)])
    first, *rest = said(terminal)
    assert first == "size  1 B"
    assert all(cell_len(line) <= terminal.width for line in rest)
    assert all(line.startswith("      ") for line in rest[1:])
    assert " ".join(line.strip() for line in rest) == f"note  {WORDS}"


def test_an_error_keeps_commands_whole(terminal: Console) -> None:
    render.failure(Malformed(WORDS, where="[x].gguf", also=[WORDS], fix=COMMAND), False)
    lines = said(terminal)
    assert lines[-1] == COMMAND
    assert all(cell_len(line) <= terminal.width for line in lines[:-1])
    text = " ".join(line.strip() for line in lines)
    assert text == f"error: [x].gguf: {WORDS} - {WORDS} {COMMAND}"


def test_a_table_is_as_wide_as_its_terminal(terminal: Console) -> None:
    render.table([["龙.weight", "Q4_K", "12", WORDS]], ["tensor", "type", "bytes ", "note"], "tensors")
    assert all(cell_len(line) <= terminal.width for line in said(terminal))


@pytest.mark.parametrize("heads", [(), ("tensor", "no ", "note")])
def test_a_row_is_a_line_in_a_pipe(pipe: Console, heads: tuple[str, ...]) -> None:
    render.table([["龙.weight", "12", WORDS], ["a", "345", ""]], heads)
    first, second = said(pipe)[-2:]
    assert first == f"龙.weight  {' 12' if heads else '12 '}  {WORDS}"
    assert second == "a          345"
    render.lines([("note", WORDS)])
    assert said(pipe)[-1] == f"note  {WORDS}"


def test_nothing_of_nothing(pipe: Console) -> None:
    render.table([], ("a",), "title")
    render.lines([])
    assert said(pipe) == []
    render.table([["a", "", "b"]], ("x", "y", "z"))
    assert said(pipe) == ["x  z", "a  b"]
