"""A bounded run of every fuzz target, in a process with limits of memory and time. FUZZ_EXAMPLES asks for
more, FUZZ_SEED for others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import targets

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
USUAL = {"gguf": 1500}


@pytest.mark.parametrize("name", targets.TARGETS)
def test_damage_gives_a_failure_or_a_result(name: str, tmp_path: Path) -> None:
    examples = EXAMPLES or USUAL.get(name, 80)
    command = [sys.executable, targets.__file__, name, str(tmp_path), str(examples), os.environ.get("FUZZ_SEED", "0")]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
