"""Calibration stays out of runs that do not need it."""

import subprocess
import sys


def test_a_conversion_does_not_import_calibration() -> None:
    code = "import sys, ggufsmith.convert.open; print([name for name in sys.modules if 'calibrate' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
