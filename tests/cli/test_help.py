"""What --help says is true: examples name options that exist, long lists are grouped, nothing is left out."""

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from ggufsmith.cli.app import app
from ggufsmith.cli.help import EXAMPLES
from ggufsmith.pipeline.option import GROUPS, declared
from ggufsmith.pipeline.request import RECORDS
from ggufsmith.quantize import cpu

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # of a group
GROUPED = ("convert", "quant")  # the commands whose options are the records of a request
PLAIN = {"--dry-run", "--json", "--quiet", "--version", "--help"}  # under "Options", everywhere


def options(name: str) -> dict[str, typer.core.TyperOption]:
    """The options of a command, by all their names, as help shows them."""
    command = COMMANDS[name]
    with typer.Context(command) as context:
        params = command.get_params(context)
    return {name: param for param in params for name in param.opts if name.startswith("-")}


def test_every_command_has_examples() -> None:
    assert EXAMPLES.keys() | {"batch"} == COMMANDS.keys()
    assert all("Examples" in (command.epilog or "") for command in COMMANDS.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str) -> None:
    """As far as the parser goes."""
    for line, _ in EXAMPLES[name]:
        program, *words = shlex.split(line)
        if program == "ggufsmith":
            assert words.pop(0) == name
        else:
            assert program == f"gguf-{name}"
        assert COMMANDS[name].make_context(name, words)


def shown(name: str) -> str:
    """The help of a command, on a wide screen."""
    return CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}).output


@pytest.mark.parametrize("name", COMMANDS)
def test_long_lists_are_grouped_and_flags_take_nothing(name: str) -> None:
    found = options(name)
    long = {option for option in found if option.startswith("--")}
    panels = {found[option].rich_help_panel for option in long - PLAIN}
    assert panels == (set(GROUPS) if name in GROUPED else {None})
    text = shown(name)
    assert "<bool>" not in text and "BOOL" not in text
    assert all(re.search(rf"{option}\b", text) for option in long)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_a_request_is_an_option_with_its_own_words(record: type) -> None:
    """Of each command whose sources it has a meaning for."""
    kinds = {"convert": {"model", "adapter", "file"}, "quant": {"file"}}
    for field in declared(record):
        for name in GROUPED:
            assert (field.flag in options(name)) == bool(kinds[name] & set(field.option.inputs)), (name, field.name)
        words = shown("convert")
        assert re.search(rf"{field.flag}\b", words) and " ".join(field.option.about.split()) in words, field.name
        assert field.option.group in GROUPS and (field.option.short in options("convert") or not field.option.short)


@pytest.mark.parametrize("words", [[], ["convert"], ["quant"]])
def test_version(words: list[str]) -> None:
    """Of the program, and what its kernels are for; further lines may follow."""
    first, second = CliRunner().invoke(app, [*words, "--version"]).output.splitlines()
    assert first == f"ggufsmith {version('ggufsmith')}"
    assert second.startswith(f"machine code for {cpu.level().name}, compiled when it is first used, kept in ")


def test_version_tells_the_level_that_is_forced() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "ggufsmith.cli.app", "--version"],
        env={**os.environ, "GGUFSMITH_CPU": "x86-64-v2"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert "machine code for x86-64-v2, " in found
