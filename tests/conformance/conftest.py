"""Before the run: what it needs can be imported. After it: what was left out because somebody asked for that."""

from importlib.util import find_spec
from typing import Any

import pytest

from needed import VARIABLE, unwanted

LIBRARIES = ("llama_cpp", "peft", "torch", "transformers")


def pytest_configure() -> None:
    """Ends the run before it starts where the variable is wrong or a library is missing."""
    unwanted()
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise pytest.UsageError(
            f"{', '.join(missing)} cannot be imported. tests/conformance compares with these libraries: "
            "run `make conformance`, which installs them, or leave this folder out with --ignore tests/conformance."
        )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for what GGUFSMITH_SKIP_CONFORMANCE left out, so that no such run passes for a whole one."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(VARIABLE in str(report.longrepr) for report in skipped)
    if count:
        names = ", ".join(sorted(unwanted()))
        terminalreporter.write_line(f"{VARIABLE} left out {names}: {count} comparisons were not made.", yellow=True)
