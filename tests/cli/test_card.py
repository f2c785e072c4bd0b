"""`ggufsmith card`."""

from pathlib import Path

import pytest
from commands import run

import checkpoints
from ggufsmith.cli.card import card
from ggufsmith.cli.convert import convert as convert_command
from ggufsmith.cli.quant import quant
from ggufsmith.cli.split import split
from ggufsmith.container.reader import open_gguf
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


def test_files_of_equal_name_are_all_there(model: Path) -> None:
    other = model.parent / "other" / model.name
    other.parent.mkdir()
    other.write_bytes(model.read_bytes() + bytes(32))
    (model.parent / "link.gguf").symlink_to(model)
    done = run(card, model, other, model.parent / "link.gguf")
    assert done.exit_code == 0, done.output
    text = (model.parent / "README.md").read_text(encoding="utf-8")
    assert f"`{model.name}`" in text and f"`other/{model.name}`" in text
    assert text.count("| F16 |") == 2 and "link.gguf" not in text


def test_errors(model: Path, tmp_path: Path) -> None:
    assert run(card, tmp_path / "absent.gguf").exit_code == 2
    assert run(card, model, "-o", tmp_path / "absent" / "README.md").exit_code == 2


def test_who_quantized_is_written_into_quantized_files_only(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "signed"
    words = ("--outdir", out, "--quantized-by", "somebody", "--no-sync")
    source = tmp_path / "Tiny-2M-Chat-v0.3"
    done = run(convert_command, source, "-r", "q8_0", "--outtype", "f16", "--card", *words)
    assert done.exit_code == 0, done.output
    assert run(quant, model, "-r", "q4_0", *words).exit_code == 0
    for name, expected in (("Q8_0", "somebody"), ("Q4_0", "somebody"), ("F16", None)):
        with open_gguf(out / f"Tiny-2M-Chat-v0.3-{name}.gguf") as opened:
            value = opened.metadata.get("general.quantized_by")
            assert (value.data if value else None) == expected
    assert "quantized_by: somebody" in (out / "README.md").read_text(encoding="utf-8")
    assert run(convert_command, source, "--quantized-by", "somebody", "--outdir", out).exit_code == 2  # no recipe
    assert run(quant, model, "-r", "q8_0", "--quantized-by", "C:\\me", "--outdir", out).exit_code == 2


def test_a_card_by_a_template(model: Path, tmp_path: Path) -> None:
    (tmp_path / "card.j2").write_text("# {{ title }} for {{ repo }}\n", encoding="utf-8")
    done = run(card, model, "--card-template", tmp_path / "card.j2", "--repo", "me/Tiny-GGUF", "-o", "-")
    assert done.exit_code == 0 and "for me/Tiny-GGUF" in done.output
    out = tmp_path / "by template"
    words = ("-r", "q8_0", "--outdir", out, "--no-sync", "--card", "--card-template")
    assert run(quant, model, *words, tmp_path / "card.j2").exit_code == 0
    assert (out / "README.md").read_text(encoding="utf-8").startswith("---\n")
    (tmp_path / "bad.j2").write_text("{{ nothing", encoding="utf-8")
    refused = run(quant, model, "-r", "q4_0", *words[2:], tmp_path / "bad.j2")
    assert refused.exit_code == 4 and not (out / "Tiny-2M-Chat-v0.3-Q4_0.gguf").exists()
