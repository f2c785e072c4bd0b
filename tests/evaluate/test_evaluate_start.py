"""What runs the model stays out of runs that do not need it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["ggufsmith.cli.app", "ggufsmith.cli.convert", "ggufsmith.cli.quant", "ggufsmith.convert.open"]
)
def test_neither_torch_nor_the_model_is_imported(module: str) -> None:
    heavy = "('torch', 'transformers', 'ggufsmith.evaluate.', 'ggufsmith.calibrate.')"  # empty packages do not matter
    code = f"import sys, {module}; print(sorted(each for each in sys.modules if each.startswith({heavy})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
