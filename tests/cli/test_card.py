"""`ggufsmith card`."""

from pathlib import Path

import pytest
from commands import run

import checkpoints
from ggufsmith.cli.card import card
from ggufsmith.cli.split import split
from requesting import request
from requesting import run as convert


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = checkpoints.write("qwen2", tmp_path / "Tiny-2M-Chat-v0.3")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "Tiny-2M-Chat-v0.3-F16.gguf"
    convert(request(folder, outfile=path))
    return path


def test_a_card_beside_the_file(model: Path) -> None:
    assert run(split, model, "--split-max-tensors", 20).exit_code == 0
    shards = sorted(model.parent.glob("*-of-*.gguf"))
    done = run(card, model, *shards, "--repo", "me/Tiny-GGUF")
    assert done.exit_code == 0, done.output
    text = (model.parent / "README.md").read_text(encoding="utf-8")
    assert text.count("| F16 |") == 2
    assert f"and {len(shards) - 1} more" in text
    assert all(path.name in text for path in (model, *shards))
    assert "<!-- written by ggufsmith card -->" in text


def test_a_card_is_written_again_but_nothing_else_is_replaced(model: Path) -> None:
    path = model.parent / "README.md"
    assert run(card, model, "--no-hashes").exit_code == 0
    assert "SHA-256" not in path.read_text(encoding="utf-8")
    assert run(card, model).exit_code == 0
    assert "SHA-256" in path.read_text(encoding="utf-8")
    path.write_text("# My own words\n", encoding="utf-8")
    done = run(card, model)
    assert done.exit_code == 6
    assert path.read_text(encoding="utf-8") == "# My own words\n"
    assert run(card, model, "-o", model.parent / "CARD.md").exit_code == 0
    assert "# My own words" not in run(card, model, "-o", "-").output


def test_errors(model: Path, tmp_path: Path) -> None:
    assert run(card, tmp_path / "absent.gguf").exit_code == 1
    assert run(card, model, "-o", tmp_path / "absent" / "README.md").exit_code == 1
