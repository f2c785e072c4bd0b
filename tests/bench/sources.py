"""Speed and memory of gguf-convert --recipe q4_K_M by what it reads: bfloat16, GPTQ, adapters merged on the way.

Measured as convert.py does: whole processes in pairs on the same cores, the input in the page cache, medians, nothing
flushed. Prints a Markdown table.

usage: sources.py [--pairs N] [--layers N]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from convert import BENCH, CONVERT, ROOT, TINYLLAMA, copy, pairs, timed

GOAL_GPTQ, GOAL_PEAK = 1.5, 600  # times the seconds of bfloat16; MB
# Written by a process of its own: what this one holds would count as memory of those that it measures.
MAKE = """
import sys, json
from pathlib import Path
import numpy as np
import adapters, checkpoints, quantized

kind, folder, base, shape = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
if kind == "bf16":
    checkpoints.write("llama", folder, shards=2, **shape)
elif kind == "lora":
    adapters.write(base, folder, targets=adapters.ALL, rank=16)
elif kind == "dora":
    adapters.write(base, folder, targets=adapters.ALL, rank=16, use_dora=True)
else:
    checkpoints.write("llama", folder, dtype="float16", **{**shape, "num_hidden_layers": 1})
    config = checkpoints.config_of("llama", **shape, torch_dtype="float16")
    rng, tensors = np.random.default_rng(1), {}
    for name, size in checkpoints.shapes(config):
        if not quantized.linear(name):
            tensors[name] = quantized.plain((rng.standard_normal(size, dtype=np.float32) * 0.02).astype(np.float16))
            continue
        (out, width), stem = size, name.removesuffix("weight")
        g_idx = np.arange(width, dtype=np.int32) // 128
        parts = {
            "qweight": rng.integers(-(1 << 31), 1 << 31, (width // 8, out)).astype(np.int32),
            "qzeros": np.full((width // 128, out // 8), 0x77777777, np.int32),
            "scales": (rng.random((width // 128, out)) * 0.01 + 0.001).astype(np.float16),
            "g_idx": rng.permutation(g_idx) if kind == "act-order" else g_idx,
        }
        tensors |= {stem + end: quantized.plain(part) for end, part in parts.items()}
    quantized.save(tensors, folder / "model.safetensors")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": kind == "act-order"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}), encoding="utf-8")
"""


def made(kind: str, shape: dict[str, Any]) -> Path:
    """The checkpoint or the adapter, written on the first call."""
    layers = shape["num_hidden_layers"]
    folder, base = (BENCH / f"sources-{name}-{layers}" for name in (kind, "bf16"))
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "fixtures")}
        command = [sys.executable, "-c", MAKE, kind, str(folder), str(base), json.dumps(shape)]
        subprocess.run(command, env=environment, check=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=22)
    options = parser.parse_args()
    shape = {**TINYLLAMA, "num_hidden_layers": options.layers}
    plain = made("bf16", shape)
    runs = {
        "GPTQ, 4 bits, group 128": [str(made("gptq", shape))],
        "GPTQ with act-order": [str(made("act-order", shape))],
        "bfloat16 and a LoRA of rank 16": [str(plain), "--lora", str(made("lora", shape))],
        "bfloat16 and a DoRA of rank 16": [str(plain), "--lora", str(made("dora", shape))],
        "GPTQ and a LoRA of rank 16": [str(made("gptq", shape)), "--lora", str(made("lora", shape))],
    }
    output, peaks = BENCH / "sources.gguf", {"": 0.0}
    copy(sorted(BENCH.glob("sources-*/*.safetensors")), Path(os.devnull))

    def run(name: str, arguments: list[str], recipe: str = "q4_K_M") -> float:
        seconds, peak = timed([*CONVERT, *arguments, "-r", recipe, "-o", str(output), "--no-sync", "--quiet"])
        output.unlink()
        peaks[name] = max(peaks.get(name, 0.0), peak)
        return seconds

    for arguments in ([str(plain)], *runs.values()):
        run("", arguments)  # compiles the kernels
    print(f"TinyLlama-1.1B ({options.layers} layers) to Q4_K_M, {os.cpu_count()} cores, ", end="")
    print(f"medians of {options.pairs} pairs\n")
    print("| source | seconds | bfloat16 | of its time | peak memory |\n|---|---|---|---|---|")
    for name, arguments in runs.items():
        ours, other, ratio = pairs(
            lambda: run(name, arguments),  # noqa: B023
            lambda: run("bfloat16", [str(plain)]),
            options.pairs,
        )
        goal = f" (goal {GOAL_GPTQ:g})" if name.startswith("GPTQ,") else ""
        memory = f"{peaks[name]:.0f} MB (goal {GOAL_PEAK})"
        print(f"| {name} | {ours:.2f} s | {other:.2f} s | {1 / ratio:.2f}{goal} | {memory} |", flush=True)
    name, arguments = "GPTQ kept as Q4_0 (copy)", runs["GPTQ, 4 bits, group 128"]
    seconds = run(name, arguments, "copy")
    print(f"| {name} | {seconds:.2f} s | | | {peaks[name]:.0f} MB (goal {GOAL_PEAK}) |")


if __name__ == "__main__":
    main()
