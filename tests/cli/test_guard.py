"""The guard around every command."""

import ast
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from ggufsmith.cli.guard import Terminated, guarded
from ggufsmith.container.errors import Failure

CLI = Path(__file__).resolve().parents[2] / "cli"


def test_no_command_imports_the_app() -> None:
    """The app imports the commands; the other way round would be a circle."""
    for path in sorted(CLI.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "ggufsmith.cli.app"), path.name


@pytest.mark.parametrize(("signalled", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
@pytest.mark.parametrize(
    "trouble",
    [None, TimeoutError("no answer"), BrokenPipeError(), Failure("no more"), RuntimeError("closed")],
    ids=repr,
)
def test_an_interrupt_stays_one_if_cleaning_up_fails(
    signalled: type[BaseException], code: int, trouble: Exception | None, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def cleaned_up() -> Iterator[None]:
        try:
            yield
        finally:
            if trouble is not None:
                raise trouble

    def command() -> None:
        with cleaned_up():
            raise signalled

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as found:
            guarded(command, machine=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert found.value.exit_code == code and said.startswith("interrupted; ")
    assert ("no partial files were left" in said) == (trouble is None)
