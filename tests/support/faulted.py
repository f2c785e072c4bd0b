"""Runs commands in a process where calls of the system fail, as faulty.py has it."""

import subprocess
import sys
from pathlib import Path

FAULTY = Path(__file__).with_name("faulty.py")


def command(*arguments: object) -> list[str]:
    """The command line for FAULT PLACE CALL COMMAND ARGUMENTS."""
    return [sys.executable, str(FAULTY), *map(str, arguments)]


def run_faulty(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, encoding="utf-8", check=False, timeout=120
    )
