"""Speed and memory of gguf-quant and of gguf-convert --recipe against llama.cpp's tools. Prints a Markdown table.

Measured as convert.py does: whole processes in pairs on the same cores, the input in the page cache, medians; neither
side flushes. The floor is reading the input once and writing as many bytes as the output has.

usage: quant.py [--pairs N]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from convert import BENCH, CONVERT, ROOT, TINYLLAMA, copy, pairs, settle, timed

sys.path.insert(0, str(ROOT / "tests" / "conformance"))

import reference

QUANT = [sys.executable, "-c", "from ggufsmith.cli.app import quant_main; quant_main()"]
FILE_TYPES = {"Q4_K_M": 15, "IQ4_XS": 30, "Q8_0": 7}
GOALS = {"Q4_K_M": 8, "IQ4_XS": 8, "Q8_0": 2}
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
# llama_model_quantize on all cores, in a process of its own.
DRIVER = """
import ctypes, os, sys
import llama_cpp.llama_cpp as lib
params = lib.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), os.cpu_count()
sys.exit(lib.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""


def checkpoint(name: str, shape: dict[str, Any]) -> Path:
    folder = BENCH / name
    if not (folder / "config.json").is_file():
        make = "import sys, json, checkpoints; from pathlib import Path\n"
        make += "checkpoints.write('llama', Path(sys.argv[1]), shards=2, **json.loads(sys.argv[2]))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "fixtures")}
        subprocess.run([sys.executable, "-c", make, str(folder), json.dumps(shape)], env=environment, check=True)
    return folder


def floor(sources: list[Path], size: int) -> float:
    """Seconds to read the sources and write `size` bytes."""
    output, block = BENCH / "floor.bin", bytes(1 << 20)
    settle(sources)
    started = time.perf_counter()
    copy(sources, Path(os.devnull))
    with output.open("wb", buffering=0) as target:
        for start in range(0, size, len(block)):
            target.write(block[: size - start])
    seconds = time.perf_counter() - started
    output.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    count = parser.parse_args().pairs
    folder = checkpoint("TinyLlama-1.1B", TINYLLAMA)
    weights = sorted(folder.glob("*.safetensors"))
    middle, output = BENCH / "middle.gguf", BENCH / "out.gguf"
    source = BENCH / "TinyLlama-1.1B-F16.gguf"
    timed([*CONVERT, str(folder), "-o", str(source), "--quiet"])
    environment = reference.environment()

    def quantize(path: Path, name: str) -> float:
        seconds = timed([sys.executable, "-c", DRIVER, str(path), str(output), str(FILE_TYPES[name])])[0]
        output.unlink()
        return seconds

    def both() -> float:
        command = [sys.executable, "-c", reference.DRIVER, "", str(folder), "--outfile", str(middle)]
        seconds = timed([*command, "--outtype", "bf16"], environment)[0] + quantize(middle, "Q4_K_M")
        middle.unlink()
        return seconds

    peaks: dict[str, float] = {}
    sizes: dict[str, int] = {}

    def ours(command: list[str], path: Path, *recipes: str) -> float:
        options = [part for name in recipes for part in ("-r", name)]
        seconds, peak = timed([*command, str(path), *options, "--outdir", str(BENCH), "--no-sync", "--quiet"])
        peaks[path.name] = max(peaks.get(path.name, 0.0), peak)
        stem = "TinyLlama-1.1B" if path in (folder, source) else path.name
        for name in recipes:
            made = BENCH / f"{stem}-{name}.gguf"
            sizes[name] = made.stat().st_size
            made.unlink()
        return seconds

    def settled(*recipes: str) -> float:
        settle(weights)
        return ours(CONVERT, folder, *recipes)

    three = ("Q4_K_M", "Q6_K", "IQ4_XS")
    ours(CONVERT, folder, *three, "Q8_0")  # compiles the kernels
    print(f"TinyLlama-1.1B, {os.cpu_count()} cores, medians of {count} pairs\n")
    print("| | ours | other | ratio |\n|---|---|---|---|")
    a, b, ratio = pairs(lambda: ours(CONVERT, folder, "Q4_K_M"), both, count, weights)
    head = "checkpoint to Q4_K_M (reference converter and llama_model_quantize)"
    print(f"| {head} | {a:.2f} s | {b:.2f} s | {ratio:.1f} times faster (goal 10) |", flush=True)
    low = statistics.median(floor(weights, sizes["Q4_K_M"]) for _ in range(count))
    print(
        f"| its floor: reading once, writing once | {a:.2f} s | {low:.2f} s | {a / low:.1f} of its time |", flush=True
    )
    each = [statistics.median(settled(name) for _ in range(count)) for name in three]
    writing = statistics.median(floor([], sum(sizes[name] for name in three)) for _ in range(count))
    together = statistics.median(settled(*three) for _ in range(count))
    share = (together - writing) / max(each)
    head = f"{', '.join(three)} in one run (slowest alone; writing {writing:.2f} s)"
    print(f"| {head} | {together:.2f} s | {max(each):.2f} s | {share:.2f} without writing (goal 1.3) |")
    print(
        f"| the same (one after the other) | {together:.2f} s | {sum(each):.2f} s | {together / sum(each):.2f} |",
        flush=True,
    )
    for name, goal in GOALS.items():
        a, b, ratio = pairs(
            lambda: ours(QUANT, source, name),  # noqa: B023
            lambda: quantize(source, name),  # noqa: B023
            count,
            [source],
        )
        head = f"F16 to {name} (llama_model_quantize)"
        print(f"| {head} | {a:.2f} s | {b:.2f} s | {ratio:.1f} times faster (goal {goal}) |", flush=True)
    source.unlink()
    large = checkpoint("Llama-8B-4-layers", LLAMA_8B)
    ours(CONVERT, large, "Q4_K_M")
    for name, peak in peaks.items():
        print(f"| peak memory, {name} | {peak:.0f} MB | | (goal 600 MB) |")


if __name__ == "__main__":
    main()
