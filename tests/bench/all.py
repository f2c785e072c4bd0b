"""Runs the benchmarks, and puts what they print between their marks in docs/benchmarks.md or docs/quality.md.

usage: all.py [convert] [experts] [start] [plan] [quant] [overlap] [sources] [kernels] [container] [resume] [batch]
              [hub] [cluster] [forward] [calibrate] [quality] [calibrated] [dynamic]

default: all of them
"""

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
DOCS = BENCH.parents[1] / "docs"
# Of benchmarks that have a page of their own.
PAGES = {"quality": "quality.md", "calibrated": "quality.md", "dynamic": "quality.md"}
NAMES = (
    "convert",
    "experts",
    "start",
    "plan",
    "quant",
    "overlap",
    "sources",
    "kernels",
    "container",
    "resume",
    "batch",
    "hub",
    "cluster",
    "calibrate",
    "quality",
    "calibrated",
    "dynamic",
)


def insert(name: str, text: str) -> None:
    """Replace what is between <!-- bench:NAME --> and its end mark. ValueError if the page has no such mark."""
    begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
    page = DOCS / PAGES.get(name, "benchmarks.md")
    whole = page.read_text(encoding="utf-8")
    head, found, rest = whole.partition(begin)
    if not found:
        raise ValueError(f"{page} has no mark for the benchmark {name}")
    _, _, tail = rest.partition(end)
    page.write_text(f"{head}{begin}{text.strip()}\n{end}{tail}", encoding="utf-8", newline="\n")


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        command = [sys.executable, str(BENCH / f"{name}.py")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
        print(done.stdout, flush=True)
        insert(name, done.stdout)


if __name__ == "__main__":
    main()
