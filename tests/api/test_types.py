"""The types that other programs see: mypy --strict checks programs against the package as it is installed."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import ggufsmith
from documented import blocks

PROGRAM = """
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import ggufsmith
from ggufsmith import Failure, ProgressEvent, Usage, WrongArgument, convert


def show(event: ProgressEvent) -> None:
    assert_type(event.step, str)


def sizes(folder: Path, tensors: Mapping[str, Any]) -> list[int]:
    report = convert(folder, recipes=["q4_K_M", "q6_K"], outdir=folder, threads=2, imatrix="auto", progress=show)
    more = ggufsmith.convert(tensors, config={}, tokenizer=folder, outtypes="bf16", target_bpw=[4.5, 5])
    again = ggufsmith.quantize("F16.gguf", recipes="q8_0", tensor_types=["ffn_down=q6_K"], dry_run=True)
    return [output.bytes for each in (report, more, again) for output in each.outputs]


def figures(file: Path, source: str) -> list[float | None]:
    found = ggufsmith.evaluate(file, against=source, recipes=["q4_0"], chunks=2)
    made = ggufsmith.imatrix(source, text="text.txt", outfile="imatrix.gguf")
    table = ggufsmith.sensitivity(source, chunks=2)
    convert(source, imatrix=made.path, sensitivity=table.path, match="q4_K_M")
    assert_type(ggufsmith.verify(file, source=source), dict[str, Any])
    assert_type(ggufsmith.inspect(file, tensors=False), dict[str, Any])
    return [row.whole.perplexity for row in found.files]


def careful(source: str) -> str:
    try:
        convert(source)
    except Failure as error:
        assert_type(error.where, str | None)
        return "".join((error.what, error.fix or "", *error.also))
    return ggufsmith.__version__


raised: list[type[Exception]] = [WrongArgument, Usage]
"""
OTHER_ERRORS = {"Malformed", "NoSpace", "OutputConflict", "Unsupported"}
# Lines, and what mypy calls what is wrong with them.
MISTAKES = {
    'ggufsmith.convert("a", recipe="q4_0")': "[call-arg]",
    'ggufsmith.convert("a", threads="many")': "[arg-type]",
    'ggufsmith.convert("a").output': "[attr-defined]",
    'ggufsmith.quantise("a")': "[attr-defined]",
    'ggufsmith.verify("a", source=3)': "[arg-type]",
}


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with nothing but the wheel in it."""
    folder = tmp_path_factory.mktemp("types") / "environment"
    venv.create(folder, with_pip=False)
    (packages,) = [*folder.glob("lib/*/site-packages"), *folder.glob("Lib/site-packages")]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return folder


def mypy(environment: Path, text: str, *options: str) -> list[str]:
    """The errors that `mypy --strict` finds in a program."""
    program = environment.parent / "program.py"
    program.write_text(text, encoding="utf-8")
    (python,) = [*environment.glob("bin/python"), *environment.glob("Scripts/python.exe")]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", *options]
    command += ["--python-executable", str(python), "--cache-dir", "cache", program.name]
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        command, cwd=program.parent, env=variables, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert not done.stderr
    return [line.partition(": error: ")[2] for line in done.stdout.splitlines() if ": error: " in line]


def test_a_program_that_uses_every_call_is_well_typed(environment: Path) -> None:
    assert set(re.findall(r"\b\w+", PROGRAM)) >= set(ggufsmith.__all__) - OTHER_ERRORS
    assert mypy(environment, PROGRAM) == []


def test_mistakes_are_found(environment: Path) -> None:
    found = mypy(environment, "".join(["import ggufsmith\n", *(f"{line}\n" for line in MISTAKES)]))
    assert [error.rpartition("  ")[2] for error in found] == list(MISTAKES.values())


def test_the_examples_of_the_page_are_well_typed(environment: Path) -> None:
    """But for the keyword that is misspelt to show the error."""
    found = mypy(environment, "\n".join(blocks("api.md")), "--ignore-missing-imports")
    assert found == ['Unexpected keyword argument "recipe" for "convert"; did you mean "recipes"?  [call-arg]']
