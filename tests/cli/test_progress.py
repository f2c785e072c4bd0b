"""How far a run is: every line of a terminal fits and says share and time left; a log has a short line now and then."""

import io
import re
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from ggufsmith.cli import progress as shown
from ggufsmith.cli import render
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES

RECIPES = [name.upper() for name in FILE_TYPES]
MANY = [[f"DeepSeek-R1-Distill-Qwen-7B-{name}.gguf" for name in RECIPES[:count]] for count in (1, 2, 3, 4, 47)]
CONTROL = re.compile(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Time that passes when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def frames(console: Console) -> Iterator[str]:
    """What stood in one line of the terminal at one time."""
    file = console.file
    assert isinstance(file, io.TextIOWrapper)
    file.flush()
    text = file.buffer.getvalue().decode(file.encoding)  # type: ignore[attr-defined]
    return (line.rstrip() for line in CONTROL.split(text) if line.strip())


def terminal(width: int, encoding: str = "utf-8", **more: object) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    options: dict[str, object] = {"force_terminal": True, "color_system": None, "_environ": {}, **more}
    return Console(width=width, file=file, soft_wrap=True, **options)  # type: ignore[arg-type]


def log() -> Console:
    return terminal(80, force_terminal=False)


@pytest.mark.parametrize("width", [20, 40, 80, 100, 200])
@pytest.mark.parametrize(
    "names", [*MANY, ["a.gguf", "模型-模型模型模型模型模型模型模型模型模型-7B-Q8_0.gguf"]], ids=len
)
def test_a_line_of_any_terminal(names: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the commands call it; the clock is real, so the time left comes only after a second."""
    console = terminal(width)
    monkeypatch.setattr(render, "err", console)
    monkeypatch.setattr(shown, "SHORTEST", 0.0)
    with render.progress(names, 1_000_000, False) as advance:
        for _ in range(4):
            advance(125_000)
    *_, last = frames(console)
    assert cell_len(last) < width
    assert "50 %" in last and "━" in last and "─" in last
    assert ("left" in last) is (width >= 40)
    listed = [line for line in frames(console) if line.startswith("writing")]
    assert len(listed) == (len(names) > 1)
    if width >= 80 and len(names) > 1:
        assert f"{len(names)} files" in last


@pytest.mark.parametrize("title", ["m", "m.gguf", "DeepSeek-R1-Distill-Qwen-7B: 47 files", "龙" * 60, "x" * 300, ""])
def test_a_row_fits(title: str) -> None:
    clock = Clock()
    task = shown.Task(title, 70_000_000_000, render.weights_per_second, clock)
    task.advance(1)
    clock.now += 1000
    task.advance(900_000_000)
    for width in range(11, 220):
        text = task.row(width).plain
        assert cell_len(text) <= width
        assert "1 %" in text
        assert "21 h left" in text or width < 24
        assert title[:1] in text or width < 80
    task.phase("compiling kernels", 3, 5)
    for width in range(11, 220):
        text = task.row(width).plain
        assert cell_len(text) <= width
        assert "60 %" in text and "left" not in text
        assert "compiling kernels 3 of 5" in text or width < 60


@pytest.mark.parametrize(("encoding", "bar"), [("cp437", "m ###----"), ("utf-8", "m ━━━────")])
def test_a_bar_that_the_terminal_can_draw(encoding: str, bar: str) -> None:
    console = terminal(40, encoding)
    with shown.shown_progress(console, "m", 10, render.weights_per_second) as advance:
        advance(5)
    *_, last = frames(console)
    assert bar in last


# ---- in a log ----


def test_lines_in_a_log() -> None:
    """The first piece of work starts the clock; a line comes every ten seconds, and names no file twice."""
    console, clock = log(), Clock()
    names = ["Model-7B-Q4_K_M.gguf", "Model-7B-Q8_0.gguf"]
    with shown.shown_progress(console, names, 4_000_000, render.weights_per_second, clock) as advance:
        for seconds, weights in ((8, 1_000_000), (2, 0), (5, 1_000_000), (6, 1_000_000), (3, 1_000_000)):
            clock.now += seconds
            advance(weights)
    assert list(frames(console)) == [
        "writing 2 files, Model-7B-*.gguf: Q4_K_M, Q8_0",
        "Model-7B: 2 files: 25 %",
        "Model-7B: 2 files: 75 %, 6 s left, 153.8 thousand weights/s",
    ]


def test_compiling_is_a_phase_of_its_own_and_does_not_count() -> None:
    console, clock = log(), Clock()
    with shown.shown_progress(console, "m.gguf", 1000, render.weights_per_second, clock) as watch:
        watch.phase("compiling kernels", 0, 5)
        for done in range(1, 6):
            clock.now += 8
            watch.phase("compiling kernels", done, 5)
        for _ in range(4):
            watch.advance(100)
            clock.now += 5
        watch.advance(100)
    assert list(frames(console)) == [
        "m.gguf: compiling kernels 2 of 5",
        "m.gguf: compiling kernels 4 of 5",
        "m.gguf: 20 %, 40 s left, 20 weights/s",
        "m.gguf: 40 %, 30 s left, 20 weights/s",
    ]


def test_the_time_left_never_counts_what_came_before_the_weights() -> None:
    """Nobody told of the phase: opening, compiling, a slow disk. A later phase does not count either."""
    clock = Clock()
    task = shown.Task("m", 1000, render.weights_per_second, clock)
    clock.now += 3600
    task.advance(100)
    assert "left" not in task.line()
    clock.now += 10
    task.advance(100)
    assert task.line() == "m: 20 %, 80 s left, 10 weights/s"
    task.phase("compiling kernels", 1, 2)
    clock.now += 600
    assert task.line() == "m: compiling kernels 1 of 2"
    task.phase("compiling kernels", 2, 2)
    assert task.line() == "m: 20 %"
    task.advance(0)
    clock.now += 10
    task.advance(100)
    assert task.line() == "m: 30 %, 70 s left, 10 weights/s"


def test_speed_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    task = shown.Task("m", 10**6, render.weights_per_second, clock)
    for amount in (1, 1000):
        for _ in range(100):
            task.advance(amount)
            clock.now += 1
    assert task.speed() == pytest.approx(1000, rel=0.05)
    assert len(task.marks) < 100


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress("m.gguf", 4, True) as watch:
        watch.phase("compiling kernels", 1, 2)
        watch.advance(4)
        watch(4)
    assert not any(capsys.readouterr())


def test_unknown_totals() -> None:
    clock = Clock()
    task = shown.Task("measuring", None, render.weights_per_second, clock)
    assert task.line() == "measuring: begun"
    task.advance(5)
    clock.now += 5
    task.advance(50)
    assert task.line() == "measuring: 10 weights/s"
    assert task.row(80).plain == "measuring 10 weights/s"


# ---- words ----


@pytest.mark.parametrize(
    ("names", "title", "listing"),
    [
        (["a.gguf"], "a.gguf", None),
        (["M-7B-Q4_K_M.gguf", "M-7B-Q4_K_S.gguf"], "M-7B: 2 files", "writing 2 files, M-7B-*.gguf: Q4_K_M, Q4_K_S"),
        (["M.gguf", "M-Q8_0.gguf"], "2 files", "writing 2 files: M.gguf, M-Q8_0.gguf"),
        (["a-x.gguf", "b-x.gguf"], "2 files", "writing 2 files: a-x.gguf, b-x.gguf"),
    ],
)
def test_names_of_many_files(names: list[str], title: str, listing: str | None) -> None:
    assert (shown.title_of(names), shown.listing_of(names)) == (title, listing)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (5999, "2 h"), (86_400 * 7, "7 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert shown.duration(seconds) == text
    assert cell_len(f"{text} left") <= shown.LEFT


def test_a_hundred_percent_is_all() -> None:
    assert shown.percent(999_999, 1_000_000) == "99 %"
    assert shown.percent(10, 10) == "100 %"


@pytest.mark.parametrize("text", ["Model-7B-Q4_K_M.gguf", "模型-7B-Q4_K_M.gguf", "", "é" * 40])
def test_a_title_is_cut_in_its_middle(text: str) -> None:
    for width in range(30):
        cut = shown.shortened(text, width)
        assert cell_len(cut) <= width
        assert not cut or (cut[0], cut[-1]) == (text[0], text[-1])
