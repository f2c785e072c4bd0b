"""How long it takes to plan 671 billion weights: `gguf-convert --dry-run` of DeepSeek-V3's shape in FP8, whose data are
holes in 159 files. Prints a Markdown table.

usage: plan.py [--times N]
"""

import argparse
import statistics
import subprocess
import sys

from convert import BENCH, CONVERT, ROOT, timed

GOAL = 3  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args().times
    folder = BENCH / "DeepSeek-V3"
    if not (folder / "config.json").is_file():
        subprocess.run([sys.executable, str(ROOT / "fixtures" / "large.py"), str(folder)], check=True)
    command = [*CONVERT, str(folder), "--recipe", "q4_K_M", "--dry-run", "--quiet"]
    found = [timed(command) for _ in range(times)]
    seconds, peak = statistics.median(each for each, _ in found), max(each for _, each in found)
    print("| planning 671 billion weights | goal | peak memory |\n|---|---|---|")
    print(f"| {seconds:.2f} s | {GOAL} s | {peak:.0f} MB |")


if __name__ == "__main__":
    main()
