"""Streaming a model from a hub on the loopback against converting it from the disk. Prints a Markdown table.

Measured as convert.py does. The hub is tests/support/hub_server.py in a process of its own, so it takes part of the
same cores.

usage: hub.py [--pairs N] [--shape JSON]
"""

import argparse
import json
import os
import subprocess
import sys

from quant import checkpoint

from convert import BENCH, CONVERT, ROOT, TINYLLAMA, pairs, timed

GOAL = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--shape", type=json.loads, default=TINYLLAMA, help="config.json keys of the model, as JSON")
    arguments = parser.parse_args()
    name = "TinyLlama-1.1B" if arguments.shape == TINYLLAMA else "Other"
    folder = checkpoint(name, arguments.shape)
    root = BENCH / "hub"
    (root / "org").mkdir(parents=True, exist_ok=True)
    model = root / "org" / name
    if not model.exists():
        model.symlink_to(folder, target_is_directory=True)
    weights = sorted(folder.glob("*.safetensors"))
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "hub_server.py"), str(root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(BENCH / "hub-cache"), "NO_PROXY": "*"}
    output, peak = BENCH / "hub-out.gguf", 0.0

    def convert(source: str, *options: str) -> float:
        nonlocal peak
        command = [*CONVERT, source, "-o", str(output), "--no-sync", "--quiet", *options]
        seconds, memory = timed(command, environment)
        output.unlink()
        peak = max(peak, memory) if "--stream" in options else peak
        return seconds

    try:
        print(
            f"{name} ({sum(p.stat().st_size for p in folder.glob('*.safetensors')) / 1e9:.2f} GB), "
            f"{os.cpu_count()} cores, medians of {arguments.pairs} pairs\n"
        )
        print("| | streamed | from the disk | ratio |\n|---|---|---|---|")
        for title, options in (("to F16", ()), ("to Q4_K_M", ("-r", "Q4_K_M"))):
            convert(f"hf://org/{name}", "--stream", *options)  # compiles the kernels; the hub hashes its files
            a, b, ratio = pairs(
                lambda: convert(f"hf://org/{name}", "--stream", *options),  # noqa: B023
                lambda: convert(str(folder), *options),  # noqa: B023
                arguments.pairs,
                weights,
            )
            print(f"| {title} | {a:.2f} s | {b:.2f} s | {1 / ratio:.2f} of its time (goal {GOAL}) |", flush=True)
        print(f"| peak memory | {peak:.0f} MB | | |")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
