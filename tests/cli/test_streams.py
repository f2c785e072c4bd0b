"""Where the report goes: closed, full, cut off, or unable to show a name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints

MAIN = "from ggufsmith.cli.app import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("m") / "Tïny-龙")


def run(before: str, *arguments: object, stdout: int | None = subprocess.PIPE, **more: str) -> tuple[int, str]:
    """Exit code and standard error of `ggufsmith`, after a line of Python."""
    command = [sys.executable, "-c", f"import os, sys; {before}; {MAIN}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONUTF8": "1", **more}
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=environment, check=False)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_a_closed_output_is_no_error(model: Path, tmp_path: Path, option: str) -> None:
    code, said = run("sys.stdout = sys.__stdout__ = None", "convert", model, "--outdir", tmp_path, option)
    assert (code, said) == (0, "")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", ["--json", "--dry-run"])
def test_a_full_output_is_one_error(model: Path, tmp_path: Path, option: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        code, said = run(
            "0", "convert", model, "--outdir", tmp_path, option, stdout=full.fileno(), PYTHONUNBUFFERED=unbuffered
        )
    assert code == 5
    assert said.count("error: ") == 1 and "Traceback" not in said and "cannot write: No space" in said
    assert unbuffered or "standard output" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["--version"], []])
def test_help_that_cannot_be_written_is_one_error(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        code, said = run("0", *arguments, stdout=full.fileno(), PYTHONUNBUFFERED=unbuffered)
    assert code == 5
    assert said.count("error: ") == 1 and "Traceback" not in said and "cannot write: No space" in said
    assert unbuffered or "standard output" in said


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--json"]])
def test_a_name_that_the_output_cannot_show(model: Path, arguments: list[str]) -> None:
    code, said = run("0", "convert", model, *arguments, "--dry-run", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert (code, said) == (0, "")


@pytest.fixture(scope="module")
def carded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a card beside it."""
    path = tmp_path_factory.mktemp("carded") / "Tïny-龙.gguf"
    assert run("0", "convert", model, "--outfile", path)[0] == 0
    assert run("0", "card", path)[0] == 0
    return path


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
def test_a_printed_card_is_the_file(carded: Path, tmp_path: Path, encoding: str) -> None:
    """UTF-8, whatever the platform's default, so that `> README.md` writes what --output would."""
    card = (carded.parent / "README.md").read_bytes()
    with (tmp_path / "printed").open("wb") as out:
        code, said = run("0", "card", carded, "-o", "-", stdout=out.fileno(), PYTHONUTF8="0", PYTHONIOENCODING=encoding)
    assert (code, said) == (0, "")
    assert "龙" in card.decode()
    assert (tmp_path / "printed").read_bytes() == card
