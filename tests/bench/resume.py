"""What it costs to go on from a run that was killed when 70 % of its work was written. Prints a Markdown table.

Whole processes of gguf-convert --recipe q4_K_M, on all cores, the input in the page cache, medians; nothing is flushed.
The kill finds the records of all that was written; another one may cost journal.TOGETHER bytes of output more.

usage: resume.py [--layers N] [--runs N]          default: 4 layers in the shape of Llama-3-8B, 3 runs
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from quant import LLAMA_8B, checkpoint

from convert import BENCH, ROOT, settle
from ggufsmith.convert.open import open_pass
from ggufsmith.pipeline.request import MakeOptions, Request
from ggufsmith.pipeline.stream import chunks

FAULTY = ROOT / "tests" / "support" / "faulty.py"
SHARE = 0.7
GOAL = 0.4


def writes(folder: Path) -> int:
    """How many pieces a run writes, the header included."""
    planned = open_pass(Request(folder, make=MakeOptions(recipes=("q4_K_M",))))
    return 1 + sum(1 for _ in chunks(planned.tensors))


def seconds(folder: Path, out: Path, *fault: object, code: int = 0) -> float:
    options = ["convert", folder, "--outdir", out, "--recipe", "q4_K_M", "--no-sync", "--resume", "--quiet"]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, (FAULTY, *fault, *options))], check=False)
    if done.returncode != code:
        raise SystemExit(f"ended with {done.returncode}, not {code}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    folder = checkpoint(f"Llama-3-8B-{asked.layers}", {**LLAMA_8B, "num_hidden_layers": asked.layers})
    out, at = BENCH / "resume", round(SHARE * writes(folder))
    weights = sorted(folder.glob("*.safetensors"))
    full, rest = [], []
    for _ in range(asked.runs):
        for times, before in ((full, False), (rest, True)):
            out.mkdir(parents=True)
            if before:
                seconds(folder, out, "SIGKILL", "pwrite", at, code=-9)
            settle(weights)
            times.append(seconds(folder, out, "none", "getpid", 0))
            shutil.rmtree(out)
    a, b = statistics.median(full), statistics.median(rest)
    print("| | seconds | of a full run | goal |\n|---|---|---|---|")
    print(f"| full run | {a:.2f} | | |\n| resumed at {SHARE:.0%} | {b:.2f} | {b / a:.0%} | {GOAL:.0%} |")


if __name__ == "__main__":
    main()
