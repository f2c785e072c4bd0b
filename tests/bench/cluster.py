"""Two Dask workers of one thread each against one, TinyLlama's shape to Q4_K_M. Prints a Markdown table.

Measured as convert.py does: the whole gguf-convert process, which is the cluster's client; the workers are there before
and have their kernels loaded. All share the cores of this machine.

usage: cluster.py [--pairs N] [--shape JSON]
"""

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from quant import checkpoint

from convert import BENCH, CONVERT, ROOT, TINYLLAMA, pairs, timed

sys.path.insert(0, str(ROOT / "tests" / "pipeline"))

from dask_processes import Cluster, cluster

GOAL = 1.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--shape", type=json.loads, default=TINYLLAMA, help="config.json keys of the model, as JSON")
    arguments = parser.parse_args()
    name = "TinyLlama-1.1B" if arguments.shape == TINYLLAMA else "Other"
    folder = checkpoint(name, arguments.shape)
    weights = sorted(folder.glob("*.safetensors"))
    output = BENCH / "cluster-out.gguf"

    def convert(where: Cluster | int) -> float:
        options = ["--threads", str(where)] if isinstance(where, int) else ["--scheduler", where.address]
        command = [*CONVERT, str(folder), "-r", "Q4_K_M", "-o", str(output), "--no-sync", "--quiet", *options]
        seconds = timed(command)[0]
        output.unlink()
        return seconds

    print(f"{name} to Q4_K_M, {os.cpu_count()} cores, medians of {arguments.pairs} pairs\n")
    print("| | two workers | one worker | ratio |\n|---|---|---|---|")
    with TemporaryDirectory() as place, cluster(Path(place, "1"), 1) as one, cluster(Path(place, "2"), 2) as two:
        convert(one)
        convert(two)
        a, b, ratio = pairs(lambda: convert(two), lambda: convert(one), arguments.pairs, weights)
        print(f"| one thread each | {a:.2f} s | {b:.2f} s | {ratio:.2f} times faster (goal {GOAL}) |", flush=True)
    a, b, ratio = pairs(lambda: convert(2), lambda: convert(1), arguments.pairs, weights)
    print(f"| without a cluster, two threads against one | {a:.2f} s | {b:.2f} s | {ratio:.2f} times faster |")


if __name__ == "__main__":
    main()
