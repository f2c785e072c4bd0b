"""Progress in a log: a line now and then, with what is done, the time left and the speed."""

import pytest

from ggufsmith.cli import render


def test_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([100.0, 104.0, 110.0, 115.0, 121.0])
    monkeypatch.setattr(render.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(render, "err", render.Console(force_terminal=False, soft_wrap=True))
    with render.progress("m.gguf", 4_000_000, False) as advance:
        for _ in range(4):
            advance(1_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "m.gguf: 50 %, 10 s left, 200.0 thousand weights/s",
        "m.gguf: 100 %, 0 s left, 190.5 thousand weights/s",
    ]
    with render.progress("m.gguf", 4, True) as advance:
        advance(4)
    assert not capsys.readouterr().out
