"""Adapters on the command line."""

import json
from pathlib import Path

import pytest
from commands import run

import adapters
import checkpoints
from ggufsmith.cli.app import convert
from ggufsmith.cli.verify import verify


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("m") / "Tiny-Llama")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    adapters.write(base, tmp_path / "Chat")
    return tmp_path / "Chat"


def test_an_adapter_alone(adapter: Path) -> None:
    done = run(convert, adapter, "--no-sync")
    assert done.exit_code == 0, done.output
    assert (adapter / "Chat-F32-LoRA.gguf").is_file()
    assert run(verify, adapter / "Chat-F32-LoRA.gguf", "--source", adapter).exit_code == 0
    assert run(convert, adapter, "--no-sync").exit_code == 0, "its own output in the folder is not the model"


def test_merged_with_the_base_or_with_the_base_that_it_names(base: Path, adapter: Path, tmp_path: Path) -> None:
    given = run(convert, base, "--lora", adapter, "--outfile", tmp_path / "a.gguf", "--no-sync")
    found = run(convert, "--lora", adapter, "--outdir", tmp_path / "out", "--no-sync")
    assert given.exit_code == found.exit_code == 0, given.output + found.output
    named = tmp_path / "out" / "Tiny-Llama-Chat-F16.gguf"
    assert named.read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert run(verify, named, "--source", base, "--lora", adapter).exit_code == 0
    assert run(verify, named, "--source", base, "--lora", f"{adapter}:0.5").exit_code == 4


def test_the_report_says_what_was_merged(base: Path, adapter: Path) -> None:
    done = run(convert, base, "--lora", f"{adapter}:0.5", "--recipe", "q8_0", "--dry-run", "--json")
    assert "merged Chat: 4 low-rank updates times 0.5" in json.loads(done.stdout)["notes"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--outtype", "f16"], 2, "no model was given"),
        (["{base}", "--base", "{base}"], 2, "--base cannot be used with a model folder"),
        (["{base}", "--lora", "{adapter}:half"], 2, "'half' is not a number"),
        (["{adapter}", "--recipe", "q4_K_M"], 2, "cannot be quantized"),
        (["{adapter}", "--base", "{adapter}"], 4, "not a base model"),
        (["{base}", "--lora", "{base}"], 4, "no adapter_config.json"),
    ],
)
def test_exit_codes(base: Path, adapter: Path, arguments: list[str], code: int, message: str) -> None:
    done = run(convert, *(argument.format(base=base, adapter=adapter) for argument in arguments))
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())
