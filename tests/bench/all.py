"""Runs the benchmarks, and puts what they print between their markers in README.md, where there are any.

usage: all.py [convert] [quant] [sources] [kernels] [container] [resume] [batch] [hub] [cluster]

default: all of them
"""

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
README = BENCH.parents[1] / "README.md"


def insert(name: str, text: str) -> None:
    """Replace what stands between <!-- bench:NAME --> and its end marker."""
    begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
    whole = README.read_text(encoding="utf-8")
    head, found, rest = whole.partition(begin)
    if not found:
        return
    _, _, tail = rest.partition(end)
    README.write_text(f"{head}{begin}{text.strip()}\n{end}{tail}", encoding="utf-8", newline="\n")


def main() -> None:
    for name in sys.argv[1:] or (
        "convert",
        "quant",
        "sources",
        "kernels",
        "container",
        "resume",
        "batch",
        "hub",
        "cluster",
    ):
        command = [sys.executable, str(BENCH / f"{name}.py")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
        print(done.stdout, flush=True)
        insert(name, done.stdout)


if __name__ == "__main__":
    main()
