"""Six tiny models in four recipes: `ggufsmith batch` against shell loops of gguf-convert. Prints a Markdown table.

Whole processes, in pairs, medians; nobody flushes. One loop has a command per model, with all recipes; the other one
per file. The second run of the finished job does nothing but see that. Memory: the peak of the whole process (it starts
no others) with a job of four models of TinyLlama's width, under a budget in which two of them fit side by side.

usage: batch.py [--pairs N]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from quant import checkpoint

from convert import BENCH, CONVERT, ROOT, TINYLLAMA, timed

sys.path.insert(0, str(ROOT / "fixtures"))

import checkpoints
from ggufsmith.convert.batch.passes import PROCESS

BATCH = [sys.executable, "-c", "from ggufsmith.cli.app import main; main()", "batch"]
RECIPES = ("q4_K_M", "q5_K_M", "q6_K", "q8_0")
KINDS = ("llama", "qwen2", "llama-3", "mistral", "qwen3", "phi3")


def seconds(commands: Sequence[Sequence[str]]) -> float:
    started = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def memory(home: Path) -> tuple[float, float]:
    """The budget, and the peak of a job under it, in MB."""
    job, out = home / "wide.toml", home / "wide"
    wide = checkpoint("TinyLlama-2-layers", {**TINYLLAMA, "num_hidden_layers": 2})
    models = "".join(f"[[model]]\nsource = '{wide}'\nname = '{name}'\n" for name in "abcd")
    recipes = ", ".join(f'"{name}"' for name in RECIPES)
    job.write_text(f"output = 'wide'\n[defaults]\nrecipes = [{recipes}]\n{models}", encoding="utf-8")
    priced = subprocess.run([*BATCH, str(job), "--dry-run", "--json"], check=True, capture_output=True).stdout
    budget = PROCESS + 2 * max(model["estimated_memory"] for model in json.loads(priced)["models"])
    limits = ["--max-memory", str(budget), "--jobs", "4"]
    _, peak = timed([*BATCH, str(job), "--no-sync", "--quiet", *limits])
    shutil.rmtree(out)
    return budget / 1e6, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    count = parser.parse_args().pairs
    home = BENCH / "batch"
    out, job = home / "out", home / "jobs.toml"
    folders = [home / kind for kind in KINDS]
    for kind, folder in zip(KINDS, folders, strict=True):
        if not (folder / "config.json").is_file():
            checkpoints.write(kind, folder)
    names = ", ".join(f'"{name}"' for name in RECIPES)
    models = "".join(f"[[model]]\nsource = '{folder}'\n" for folder in folders)
    job.write_text(f"output = 'out'\n[defaults]\nrecipes = [{names}]\n{models}", encoding="utf-8")

    def fresh(run: Callable[[], float]) -> float:
        shutil.rmtree(out, ignore_errors=True)
        return run()

    def loop(*groups: Sequence[str]) -> float:
        """A command for each model and each group of recipes."""
        commands = [
            [*CONVERT, str(folder), *(f"--recipe={name}" for name in group), f"--outdir={out}", "--no-sync", "--quiet"]
            for folder in folders
            for group in groups
        ]
        out.mkdir()
        return seconds(commands)

    batch = [*BATCH, str(job), "--no-sync", "--quiet"]
    fresh(lambda: seconds([batch]))  # compiles the kernels
    print(f"six tiny models × four recipes, medians of {count} pairs\n")
    print("| | batch | loop | ratio |\n|---|---|---|---|")
    for title, groups in (("a command per model", [RECIPES]), ("a command per file", [(name,) for name in RECIPES])):
        ours, theirs = [], []
        for _ in range(count):
            ours.append(fresh(lambda: seconds([batch])))
            theirs.append(fresh(lambda groups=groups: loop(*groups)))  # type: ignore[misc]
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"| {title} | {a:.2f} s | {b:.2f} s | {a / b:.2f} of its time (goal 0.5) |", flush=True)
    fresh(lambda: seconds([batch]))
    again = statistics.median(seconds([batch]) for _ in range(count))
    print(f"| the second run | {again:.2f} s | | (goal 2 s) |")
    shutil.rmtree(out)
    budget, peak = memory(home)
    print(f"| peak memory under --max-memory | {peak:.0f} MB | | (goal {budget:.0f} MB, the budget) |")


if __name__ == "__main__":
    main()
