"""What a hostile file says never steers a terminal: in plans, summaries, errors, cards and reports for machines."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run

import checkpoints
from ggufsmith.cli.app import convert
from ggufsmith.cli.card import card
from ggufsmith.cli.inspect import inspect
from ggufsmith.cli.quant import quant
from ggufsmith.cli.split import split
from ggufsmith.cli.verify import verify
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.values import string, u32
from ggufsmith.container.writer import Writer

EVIL = "a\x1b[2J\x9b31m\r\nb\x07\u202e.weight"


def write(path: Path, value: float) -> Path:
    """Of an architecture that is not known here: the names of its tensors are not judged."""
    layout = lay_out(
        {
            "general.architecture": string("newer"),
            "general.name": string(EVIL),
            "general.license": string(EVIL),
            "newer.block_count": u32(1),
            EVIL: string(EVIL),
        },
        [TensorSpec(EVIL, (64, 256), format_of("F32")), TensorSpec("output.weight", (8, 100), format_of("F16"))],
    )
    with Writer(path, layout, sync=False) as writer:
        writer.write(layout.offsets[0], np.full(64 * 256, value, "<f4"))
        writer.write(layout.offsets[1], np.ones(800, "<f2"))
        writer.commit()
    return path


def harmless(text: str) -> bool:
    return all(each.isprintable() or each == "\n" for each in text)


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("value", [0.5, np.nan])
def test_commands_on_a_hostile_file(tmp_path: Path, value: float, options: tuple[str, ...]) -> None:
    model = write(tmp_path / "in.gguf", value)
    for command, arguments in (
        (quant, ("--recipe", "q4_K_M", "--dry-run", *options)),
        (quant, ("--recipe", "q4_K_M", *options)),
        (quant, ("--recipe", "q4_K_M", "--strict", *options)),
        (quant, ("--recipe", "iq2_xxs", *options)),
        (verify, ("--sha256", *options)),
        (verify, ("--source", tmp_path / "in.gguf", *options)),
        (inspect, options),
        (split, ("--split-max-size", "1K", *options)),
        (split, ("--split-max-tensors", 1, *options)),
        (card, ("-o", "-")),
    ):
        done = run(command, model, *arguments)
        assert done.output
        assert harmless(done.output), (command, arguments, done.output)
        if options and command is not card:
            json.loads(done.stdout)


def test_an_error_shows_the_name_without_its_force(tmp_path: Path) -> None:
    done = run(quant, write(tmp_path / "in.gguf", np.nan), "--recipe", "q8_0")
    assert done.exit_code == 4
    assert r"a\x1b[2J\x9b31m\r\nb\x07\u202e.weight" in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("error: ")]) == 1


def test_a_name_is_not_read_as_pictures(tmp_path: Path) -> None:
    assert ":x:" in run(convert, tmp_path / ":x:").output


def test_a_hostile_checkpoint(tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for change in ({"architectures": [EVIL]}, {EVIL: 1}, {"hidden_act": EVIL}):
        (folder / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
        done = run(convert, folder, "--dry-run")
        assert harmless(done.output), change


def test_json_that_was_escaped_says_the_same(tmp_path: Path) -> None:
    done = run(inspect, write(tmp_path / "in.gguf", 0.5), "--json")
    report = json.loads(done.stdout)
    assert EVIL in json.dumps(report, ensure_ascii=False) or EVIL in {each["name"] for each in report["tensors"]}
