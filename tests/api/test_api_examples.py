"""The examples of docs/api.md, run one after the other in one folder. tests/conformance/test_api.py has the others."""

from pathlib import Path

import pytest

import checkpoints
from documented import HEAVY, blocks


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.write("qwen2", tmp_path / "Tiny-2M-Chat")
    checkpoints.write("llama", tmp_path / "Tiny-2M-F32", dtype="float32")
    light = [block for block in blocks("api.md") if not HEAVY.search(block)]
    assert len(light) >= 5
    found: dict[str, object] = {}
    for block in light:
        exec(compile(block, "docs/api.md", "exec"), found)
    said = capsys.readouterr().out
    assert "It is called recipes." in said
    assert "converting: " in said and "weights" in said
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "Mine-Q8_0.gguf",
        "Tiny-2M-Chat-Q4_0.gguf",
        "Tiny-2M-Chat-Q4_K_M.gguf",
        "Tiny-2M-Chat-Q6_K.gguf",
        "Tiny-Q8_0.gguf",
    ]
