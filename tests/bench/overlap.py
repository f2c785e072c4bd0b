"""Whether reading and writing take the time of the longer of the two, or of both. Prints a Markdown table.

A conversion from bfloat16 to F16 on two disks of a given speed: every read of the input, and every write, waits for its
turn on a disk that does one thing at a time. If nothing overlapped, it would take both times, one after the other.

usage: overlap.py [--gigabytes N]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from experts import Shape, write

from convert import BENCH, TINYLLAMA, settle

DISKS = ((200, 200), (200, 100), (100, 200))  # MB/s of reading and of writing
SLOW = """
import os, sys, threading, time

class Disk:
    def __init__(self, rate):
        self.rate, self.free, self.lock = rate, 0.0, threading.Lock()

    def wait(self, size):
        with self.lock:
            self.free = max(self.free, time.perf_counter()) + size / self.rate
            until = self.free
        time.sleep(max(until - time.perf_counter(), 0))

def slowed(function, disk, slow):
    def call(file, *arguments):
        done = function(file, *arguments)
        if slow(file):
            disk.wait(done)
        return done
    return call

read, write = (Disk(float(sys.argv.pop(1)) * 1e6) for _ in range(2))
source = os.stat(os.path.join(sys.argv[1], "model.safetensors"))
os.preadv = slowed(os.preadv, read, lambda file: os.path.samestat(os.fstat(file), source))
os.pwrite = slowed(os.pwrite, write, lambda file: True)
from ggufsmith.cli.app import convert_main
convert_main()
"""


def seconds(folder: Path, output: Path, read: float, write: float) -> float:
    """Of one conversion; of its start as well."""
    command = [
        sys.executable,
        "-c",
        SLOW,
        str(read),
        str(write),
        str(folder),
        "-o",
        str(output),
        "--quiet",
        "--no-sync",
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    taken = time.perf_counter() - started
    output.unlink()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    blocks = round(parser.parse_args().gigabytes / 2.2 * 22)
    folder, output = BENCH / f"blocks-{blocks}", BENCH / "out.gguf"
    if not (folder / "config.json").is_file():
        write(Shape("LlamaForCausalLM", {**TINYLLAMA, "num_hidden_layers": blocks}), folder)
    size = (folder / "model.safetensors").stat().st_size / 1e6
    settle()
    free = seconds(folder, output, 1e6, 1e6)
    print(f"{size / 1e3:.2f} GB; {free:.1f} s where the disks take no time.\n")
    print("| reading | writing | read alone | written alone | took | of the longer | of both |")
    print("|---|---|---|---|---|---|---|")
    for read, written in DISKS:
        took, parts = seconds(folder, output, read, written), (size / read, size / written)
        cells = [f"{read} MB/s", f"{written} MB/s", *(f"{part:.1f} s" for part in parts), f"{took:.1f} s"]
        cells += [f"{took / max(parts):.2f}", f"{took / sum(parts):.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
