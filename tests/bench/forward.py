"""The streamed forward against transformers' own over the same windows, and its memory. Prints a Markdown table.

Each measurement is a process of its own, in pairs one after the other on all cores, medians; importing libraries and
loading kernels is not counted. Speed is that of the shape of SmolLM2-135M: the inputs of all linears squared and
summed, as an importance matrix needs it; the source and four files, scored. Peak memory is that of Llama-3-8B at full
width and vocabulary, cut to 2 and 4 blocks, scored.

usage: forward.py [--pairs N] [--windows N] [--only speed|memory]
"""

import argparse
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quant import LLAMA_8B, checkpoint

from convert import BENCH, CONVERT, pairs

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
CONTEXT = 512
RECIPES = ("q8_0", "q5_K_M", "q4_K_M", "q4_0")
GOALS = {"importance": 1.3, "four files": 5.5}  # times the seconds of transformers
GOAL_PEAK = 4000  # MB


def measure(what: str, *arguments: object) -> tuple[float, float]:
    """(seconds, peak MB) of one process of this script."""
    command = [sys.executable, __file__, "--measure", what, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def run(what: str, folder: Path, windows: int, files: list[Path]) -> None:
    """One measurement, in this process; prints its seconds and its peak memory in MB."""
    import numpy as np

    tokens = np.random.default_rng(1).integers(3, 30000, (windows, CONTEXT)).astype(np.int32)
    seconds = plain(folder, tokens) if what == "plain" else streamed(what, folder, tokens, files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    print(seconds, peak)


def plain(folder: Path, tokens: Any, batch: int = 4) -> float:
    """Seconds of transformers' forward of the whole model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(tokens), batch):
            model(torch.from_numpy(tokens[first : first + batch]).long(), use_cache=False)
    return time.perf_counter() - started


def streamed(what: str, folder: Path, tokens: Any, files: list[Path]) -> float:
    """Seconds of one pass over the blocks."""
    import torch

    from ggufsmith.evaluate.forward import run_model
    from ggufsmith.evaluate.skeleton import build_skeleton
    from ggufsmith.evaluate.variants import load_kernels, opened_file, opened_model
    from ggufsmith.pipeline.request import Request

    sums: dict[str, torch.Tensor] = {}

    def add_squares(tensor: str, inputs: torch.Tensor, expert: int | None) -> None:
        squares = inputs.square().sum(dim=0)
        sums[tensor] = sums[tensor] + squares if tensor in sums else squares

    with ExitStack() as stack:
        model = stack.enter_context(opened_model(Request(folder)))
        variants = [model.source, *(stack.enter_context(opened_file(path)) for path in files)]
        skeleton = build_skeleton(model)
        load_kernels(variants)
        observing = {"observe": add_squares} if what == "importance" else {"scored": slice(CONTEXT // 2, CONTEXT - 1)}
        started = time.perf_counter()
        run_model(skeleton, variants, tokens, device="cpu", **observing)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--only", choices=["speed", "memory"], help="one of the two tables")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        what, folder, windows, *files = asked.measure
        run(what, Path(folder), int(windows), [Path(file) for file in files])
        return
    if asked.only != "memory":
        speed(asked.windows, asked.pairs)
        print()
    if asked.only != "speed":
        memory(asked.windows)


def speed(windows: int, count: int) -> None:
    """The first table."""
    small = checkpoint("SmolLM2-135M", SMOLLM2)
    files = [BENCH / f"SmolLM2-135M-{recipe}.gguf" for recipe in RECIPES]
    for recipe, file in zip(RECIPES, files, strict=True):
        if not file.exists():
            subprocess.run([*CONVERT, str(small), "--recipe", recipe, "-o", str(file), "--quiet"], check=True)
    print(f"| {windows} × {CONTEXT} tokens | seconds | transformers, seconds | ratio | goal |")
    print("|---|---|---|---|---|")
    for what, inputs in (("importance", []), ("four files", files)):
        ours, theirs, ratio = pairs(
            lambda what=what, inputs=inputs: measure(what, small, windows, *inputs)[0],
            lambda: measure("plain", small, windows)[0],
            count,
        )
        print(f"| SmolLM2-135M: {what} | {ours:.1f} | {theirs:.1f} | {1 / ratio:.2f} | ≤ {GOALS[what]} |")


def memory(windows: int) -> None:
    """The second one."""
    print(f"| {windows} × {CONTEXT} tokens | seconds | peak memory, MB | goal |")
    print("|---|---|---|---|")
    for blocks in (2, 4):
        folder = checkpoint(f"Llama-3-8B-{blocks}", {**LLAMA_8B, "num_hidden_layers": blocks})
        seconds, peak = measure("scores", folder, windows)
        print(f"| Llama-3-8B, {blocks} blocks, scored | {seconds:.0f} | {peak:.0f} | < {GOAL_PEAK} |")


if __name__ == "__main__":
    main()
