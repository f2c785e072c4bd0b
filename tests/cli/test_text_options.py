"""The options of the commands that run a model, as `with_records` makes them of their record."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from ggufsmith.cli.options import with_records
from ggufsmith.pipeline.option import declared
from ggufsmith.pipeline.request import TextOptions

app = typer.Typer(pretty_exceptions_enable=False)
seen: list[TextOptions] = []


@app.command()
@with_records("model", "file")
def command(model: Annotated[Path, typer.Argument()], texts: TextOptions) -> None:
    seen.append(texts)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], TextOptions()),
        (["--text", "a.txt", "--text", "b"], TextOptions(text=(Path("a.txt"), Path("b")))),
        (["--context", "2048", "--chunks", "7", "--device", "cpu"], TextOptions((), 2048, 7, "cpu")),
    ],
)
def test_options_become_the_record(words: list[str], expected: TextOptions) -> None:
    result = CliRunner().invoke(app, ["model", *words])
    assert result.exit_code == 0, result.output
    assert seen[-1] == expected


@pytest.mark.parametrize("words", [["--context", "0"], ["--chunks", "0"], ["--context", "x"]])
def test_numbers_are_positive(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["model", *words]).exit_code == 2


def test_no_option_is_a_key_of_job_files() -> None:
    assert all(each.option.keyless and each.option.about for each in declared(TextOptions))
