"""Running a model without what it needs is an error that says what to install."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", [("torch",), ("transformers",), ("torch", "transformers")])
def test_the_command_that_installs_them_is_named(missing: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        f"sys.modules |= dict.fromkeys({missing})\n"
        "from importlib import machinery, util\n"
        "from ggufsmith.container.errors import Unsupported\n"
        "from ggufsmith.evaluate.needed import find_device\n"
        "try: find_device()\n"
        "except Unsupported as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert "pip install --upgrade 'ggufsmith[eval]'" in done.stdout
    assert all(name in done.stdout for name in missing)
