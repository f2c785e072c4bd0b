"""What more cores give: a model of Llama-3-8B's shape, from bfloat16, by numbers of threads. Prints a Markdown table.

One process after the other, with the input in the page cache and without flushing; the better of two runs. All blocks
have the weights of the first.

usage: cores.py [--blocks N] [--recipes F16,Q4_K_M]
"""

import argparse
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from quant import LLAMA_8B

from convert import BENCH, CONVERT, ROOT, settle, timed

sys.path.insert(0, str(ROOT / "fixtures"))

import checkpoints

RUNS = 2


def checkpoint(blocks: int) -> Path:
    folder = BENCH / f"Llama-3-8B-{blocks}-alike"
    if folder.exists():
        return folder
    made = checkpoints.write("llama", folder.with_suffix(".part"), **{**LLAMA_8B, "num_hidden_layers": 1})
    config: dict[str, Any] = {**checkpoints.config_of("llama"), **LLAMA_8B, "num_hidden_layers": blocks}
    (made / "model.safetensors").unlink()
    first = checkpoints.tensors_of({**config, "num_hidden_layers": 1})
    names = (name for name, _ in checkpoints.shapes(config))
    alike = {name: first[name if name in first else f"model.layers.0.{name.split('.', 3)[3]}"] for name in names}
    checkpoints.write_tensors(alike, made, "bfloat16", shards=4)
    text = (made / "config.json").read_text(encoding="utf-8")
    (made / "config.json").write_text(
        text.replace('"num_hidden_layers": 1', f'"num_hidden_layers": {blocks}'), encoding="utf-8"
    )
    return made.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--recipes", default="F16,Q4_K_M")
    given = parser.parse_args()
    BENCH.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:  # what a process needed, its children seem to need
        folder, output = process.submit(checkpoint, given.blocks).result(), BENCH / "out.gguf"
    weights = sorted(folder.glob("*.safetensors"))
    count = sum(path.stat().st_size for path in weights) / 2
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{count / 1e9:.1f} billion weights in bfloat16\n")
    print("| to | threads | seconds | of one core per weight | peak memory |\n|---|---|---|---|---|")
    for recipe in given.recipes.split(","):
        threads = available
        while threads >= max(1, available // 8):
            settle(weights)
            best, peak = float("inf"), 0.0
            for _ in range(RUNS):
                command = [*CONVERT, str(folder), "-r", recipe, "-o", str(output), "--threads", str(threads)]
                seconds, memory = timed([*command, "--no-sync", "--quiet"])
                output.unlink()
                best, peak = min(best, seconds), max(peak, memory)
            each = f"{best * threads / count * 1e9:.1f} ns"
            print(f"| {recipe} | {threads} | {best:.1f} | {each} | {peak:.0f} MB |", flush=True)
            threads //= 2
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
