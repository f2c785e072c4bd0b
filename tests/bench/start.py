"""Processor time of short commands: help, and whole conversions of the fixture model. Prints a Markdown table.

usage: start.py [--runs N] [--against REVISION]

The smallest of N runs. With a REVISION of this repository, its commands are run in turn with those here.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
RUN = "from ggufsmith.cli.alone import convert_main; convert_main()"


def seconds(arguments: list[str], checkout: Path, cache: Path) -> float:
    """User and system time of one run of gguf-convert. cache: where compiled kernels are kept."""
    # As after an installation: what a run has compiled of Python, the next one reads.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(checkout / "build" / "link"), "XDG_CACHE_HOME": str(cache)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", RUN, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def linked(checkout: Path) -> Path:
    """The checkout, whose packages can be imported."""
    subprocess.run([sys.executable, str(checkout / "fixtures" / "link.py")], check=True)
    return checkout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--against", metavar="REVISION")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        model, other = Path(folder) / "tiny", Path(folder) / "other"
        subprocess.run(
            [sys.executable, str(ROOT / "fixtures" / "make.py"), str(model)], check=True, stdout=subprocess.DEVNULL
        )
        checkouts = {"here": linked(ROOT)}
        git = ["git", "-C", str(ROOT), "worktree"]
        if given.against:
            subprocess.run([*git, "add", "--quiet", "--detach", str(other), given.against], check=True)
            checkouts[given.against] = linked(other)
        try:
            output = ["-o", str(Path(folder) / "out.gguf"), "--quiet", "--no-sync"]
            print(f"| gguf-convert | {' | '.join(checkouts)} |\n|---|{'---|' * len(checkouts)}")
            for words in (["--help"], [str(model), *output], [str(model), "--recipe", "q4_K_M", *output]):
                best = dict.fromkeys(checkouts, float("inf"))
                for _ in range(given.runs + 1):  # the first may compile
                    for name, checkout in checkouts.items():
                        best[name] = min(best[name], seconds(words, checkout, Path(folder) / f"cache-{name}"))
                what = "`--help`" if "--help" in words else f"to {'Q4_K_M' if '--recipe' in words else 'F16'}"
                print(f"| {what} | {' | '.join(f'{best[name]:.2f} s' for name in checkouts)} |", flush=True)
        finally:
            if given.against:
                subprocess.run([*git, "remove", "--force", str(other)], check=True)


if __name__ == "__main__":
    main()
