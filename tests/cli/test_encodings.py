"""Help, reports and errors can be shown whatever the encoding of the screen, or of the file behind it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggufsmith.cli.help import EXAMPLES

HELPS = """
import sys
from ggufsmith.cli.app import convert_main, main, quant_main
def run(program, *words):
    sys.argv = ["program", *words]
    try:
        program()
    except SystemExit as end:
        print(f"end {end.code or 0}")
for command in COMMANDS:
    run(main, command, "--help")
for program in (main, convert_main, quant_main):
    run(program, "--help")
    run(program, "--no-such-option-…")
    run(program)
run(main, "name", "Ünïcödé-龙-7B-Q4_K_M.gguf")
run(main, "inspect", "no-such-…-龙.gguf")
"""
COMMANDS = [*EXAMPLES, "batch"]
NARROW = ["ascii", "cp437", "cp866", "cp1252", "cp932", "latin-1"]


@pytest.mark.parametrize("encoding", NARROW)
def test_everything_can_be_shown(tmp_path: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        code = HELPS.replace("COMMANDS", repr(COMMANDS))
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=err, env=environment, check=False)
    said = (tmp_path / "out").read_bytes().decode(encoding)
    errors = (tmp_path / "err").read_bytes().decode(encoding)
    assert done.returncode == 0, errors
    assert "Traceback" not in errors
    assert said.count("end 0") == len(COMMANDS) + 3 + 1
    assert "--prune-layers" in said and "L,L,..." in said.replace("…", "...")
    assert "Q4_K_M" in said
