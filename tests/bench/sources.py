"""Speed and memory of gguf-convert --recipe q4_K_M by what it reads: every kind of source, and adapters on the way.

Measured as convert.py does: whole processes in pairs with the same model in bfloat16, on the same cores, the input in
the page cache, medians, nothing flushed. One source is on the disk at a time, with half of TinyLlama's layers, so that
all are done in ten minutes. Prints a Markdown table.

usage: sources.py [--pairs N] [--layers N]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from convert import BENCH, CONVERT, ROOT, TINYLLAMA, pairs, timed

GOAL_GPTQ, GOAL_PEAK = 1.5, 600  # times the seconds of bfloat16; MB
FORM = [sys.executable, str(Path(__file__).with_name("stored.py"))]
PLAIN = "bfloat16"
Q4_K_M = ("-r", "q4_K_M")
AGAIN = (*Q4_K_M, "--allow-requantize")
WRITE = "import sys, json, checkpoints; from pathlib import Path\n"
WRITE += "checkpoints.write('llama', Path(sys.argv[1]), shards=2, **json.loads(sys.argv[2]))"


class Row(NamedTuple):
    """form: one of stored.py. file: of its folder that is the input. adapter: form of one that is merged in."""

    title: str
    form: str
    file: str = ""
    adapter: str | None = None
    options: tuple[str, ...] = Q4_K_M


ROWS = (
    Row("GPTQ, 4 bits, group 128", "gptq"),
    Row("GPTQ and a LoRA of rank 16", "gptq", adapter="lora"),
    Row("GPTQ, kept as Q4_0", "gptq", options=("-r", "copy")),
    Row("GPTQ with act-order", "gptq act-order"),
    Row("GPTQ, 3 bits", "gptq 3 bits"),
    Row("AWQ (GEMM)", "awq gemm"),
    Row("AWQ (GEMV)", "awq gemv"),
    Row("bitsandbytes NF4, double quantization", "nf4"),
    Row("bitsandbytes FP4", "fp4"),
    Row("LLM.int8()", "llm.int8"),
    Row("FP8, blocks of 128 × 128", "fp8 blocks"),
    Row("FP8, per tensor", "fp8 tensor"),
    Row("compressed-tensors, packed int4", "packed int4"),
    Row("compressed-tensors, packed int8", "packed int8"),
    Row("compressed-tensors, int-quantized", "int8"),
    Row("compressed-tensors, float-quantized", "float"),
    Row("NVFP4", "nvfp4"),
    Row("MXFP4", "mxfp4"),
    Row("HQQ, 4 bits", "hqq"),
    Row("BitNet", "bitnet"),
    Row("MLX, 4 bits", "mlx"),
    Row("bfloat16 and a LoRA of rank 16", PLAIN, adapter="lora"),
    Row("bfloat16 and a DoRA of rank 16", PLAIN, adapter="dora"),
    Row("pytorch_model.bin, two shards", "pickles"),
    Row("consolidated.pth, two parts", "consolidated"),
    Row("GGUF in BF16", "gguf", "model.gguf"),
    Row("ggjt v3 in Q4_0", "ggml q4_0", "model.bin", options=AGAIN),
    Row("ggjt v3 in Q4_K_M", "ggml q4_K_M", "model.bin", options=AGAIN),
)


def plain_model(name: str, **shape: int) -> Path:
    """A model in bfloat16, in two shards; written on the first call."""
    folder = BENCH / f"sources-{name}"
    if not (folder / "config.json").is_file():
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "fixtures")}
        subprocess.run([sys.executable, "-c", WRITE, str(folder), json.dumps(shape)], env=environment, check=True)
    return folder


def made(form: str, plain: Path) -> Path:
    """A folder with the model in this form, which takes the place of the one before."""
    if form == PLAIN:
        return plain
    folder = BENCH / "sources-made"
    mark, key = folder / "form.txt", f"{form} of {plain.name}"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != key:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([*FORM, form, str(plain), str(folder)], check=True)
        mark.write_text(key, encoding="utf-8")
    return folder


def arguments(row: Row, source: Path, plain: Path) -> list[str]:
    """How the source of a row is converted. The adapter is made if need be."""
    found = [str(source / row.file), *row.options]
    if row.adapter:
        adapter = plain.with_name(f"{plain.name}-{row.adapter}")
        if not adapter.exists():
            subprocess.run([*FORM, row.adapter, str(plain), str(adapter)], check=True)
        found += ["--lora", str(adapter)]
    return found


def convert(options: Sequence[str]) -> tuple[float, float]:
    """(seconds, peak MB) of one run; its output is gone."""
    output = BENCH / "sources.gguf"
    measured = timed([*CONVERT, *options, "-o", str(output), "--no-sync", "--quiet"])
    output.unlink()
    return measured


def largest_pickle(files: Sequence[Path]) -> int:
    """MB of the largest pickled file, 0 without any."""
    pickles = (path for path in files if path.name.startswith(("pytorch_model-", "consolidated.")))
    return max((path.stat().st_size for path in pickles), default=0) // 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--layers", type=int, default=11)
    options = parser.parse_args()
    plain = plain_model(f"bf16-{options.layers}", **{**TINYLLAMA, "num_hidden_layers": options.layers})
    tiny = plain_model("tiny")
    for row in ROWS:
        convert(arguments(row, made(row.form, tiny), tiny))  # compiles the kernels
    print(f"TinyLlama-1.1B ({options.layers} layers) to Q4_K_M, {os.cpu_count()} cores, ", end="")
    print(f"medians of {options.pairs} pairs\n")
    print("| source | seconds | bfloat16 | of its time | peak memory |\n|---|---|---|---|---|")
    for row in ROWS:
        source, peaks = made(row.form, plain), []
        ours, files = arguments(row, source, plain), list(source.iterdir())

        def measured() -> float:
            seconds, peak = convert(ours)  # noqa: B023
            peaks.append(peak)  # noqa: B023
            return seconds

        inputs = [*files, *plain.glob("*.safetensors")]
        seconds, other, ratio = pairs(measured, lambda: convert([str(plain), *Q4_K_M])[0], options.pairs, inputs)
        goal = f" (goal {GOAL_GPTQ:g})" if row.title.startswith("GPTQ, 4") else ""
        limit = GOAL_PEAK + largest_pickle(files)
        memory = f"{max(peaks):.0f} MB (goal {limit})"
        print(f"| {row.title} | {seconds:.2f} s | {other:.2f} s | {1 / ratio:.2f}{goal} | {memory} |", flush=True)
    shutil.rmtree(BENCH / "sources-made")


if __name__ == "__main__":
    main()
