"""Speed of looking at, splitting, merging and verifying a GGUF file, beside plain reading and copying of its bytes.

    python tests/bench/container.py [FOLDER] [GB]          default: a temporary folder, 2 GB

Prints a Markdown table: the median of several runs, which alternate with the yardstick so that both see the same
machine. Files lie in the page cache, and nothing is flushed, so the disk does not decide.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ggufsmith.container.copy import copy, plan_merge, plan_split
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.provenance import file_sha256
from ggufsmith.container.shards import Limits, open_gguf_set
from ggufsmith.container.values import array, string, strings
from ggufsmith.container.writer import Writer
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.quantize.verify import examine

RUNS = 5
TOKENS = 152_064  # Qwen2.5
PIECE = 4 << 20


def make(path: Path, gigabytes: float) -> None:
    """A model of Q4_K matrices with a vocabulary of the size of Qwen2.5's."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (TOKENS, 8), dtype=np.uint8)
    tokens = [bytes(row[: 2 + k % 7]).decode() + str(k) for k, row in enumerate(letters)]
    metadata = {
        "general.architecture": string("qwen2"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": array(np.ones(TOKENS, "<i4")),
        "tokenizer.ggml.merges": strings(f"{token[:2]} {token[2:]}" for token in tokens),
    }
    shape = (11008, 4096)
    form = format_of("Q4_K")
    count = max(8, round(gigabytes * 1e9 / form.nbytes(shape)))
    layout = lay_out(metadata, [TensorSpec(f"blk.{k}.ffn_up.weight", shape, form) for k in range(count)])
    block = rng.integers(0, 60, form.nbytes(shape), dtype=np.uint8)
    with Writer(path, layout, sync=False) as writer:
        for offset in layout.offsets:
            writer.write(offset, block)
        writer.commit()


def read(path: Path) -> None:
    buffer = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def race(
    ours: Callable[[], object], theirs: Callable[[], object], clean: Callable[[], None]
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of ours over theirs; every run begins with nothing left to be flushed."""
    pairs = [(timed(ours, clean), timed(theirs, clean)) for _ in range(RUNS)]
    return tuple(statistics.median(column) for column in zip(*((a, b, a / b) for a, b in pairs), strict=True))  # type: ignore[return-value]


def timed(work: Callable[[], object], clean: Callable[[], None] = lambda: None) -> float:
    clean()
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(folder: Path, gigabytes: float) -> None:
    model, cores = folder / "m.gguf", available_cores()
    make(model, gigabytes)
    print(f"{model.stat().st_size / 1e9:.2f} GB, {cores} cores\n")
    print("| what | seconds | yardstick | seconds | ratio |\n|---|---|---|---|---|")

    def clean() -> None:
        for path in (folder / "copy.gguf", folder / "merged.gguf", *(folder.glob("s-0*") if not merging else ())):
            path.unlink(missing_ok=True)

    merging = False

    def row(what: str, yardstick: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
        a, b, ratio = race(ours, theirs, clean)
        print(f"| {what} | {a:.3f} | {yardstick} | {b:.3f} | {ratio:.2f} |", flush=True)

    def run(*arguments: object) -> None:
        code = "from ggufsmith.cli.app import main; main()"
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.DEVNULL, check=True)

    def split() -> None:
        with open_gguf_set(model) as source:
            copy(source, plan_split(source, Limits(max_size=500_000_000)), folder / "s.gguf", sync=False, threads=cores)

    def merge() -> None:
        with open_gguf_set(next(folder.glob("s-00001-of-*.gguf"))) as source:
            copy(source, plan_merge(source), folder / "merged.gguf", sync=False, threads=cores)

    def verify() -> None:
        with open_gguf_set(model) as source:
            examine(source, threads=cores)

    def plain_copy() -> None:
        subprocess.run(["cp", "--reflink=never", str(model), str(folder / "copy.gguf")], check=True)

    def nothing() -> None:
        subprocess.run([sys.executable, "-c", "import numpy, typer"], check=True)

    opened = statistics.median(timed(lambda: open_gguf_set(model).close()) for _ in range(RUNS))
    print(f"| open, {TOKENS} tokens | {opened:.3f} | | | |")
    row("ggufsmith inspect", "python -c 'import numpy, typer'", lambda: run("inspect", model), nothing)
    row("split", "cp", split, plain_copy)
    split()
    merging = True  # the shards stay
    row("merge", "cp", merge, plain_copy)
    row("verify", "read", verify, lambda: read(model))
    row("SHA-256", "read", lambda: file_sha256(model), lambda: read(model))


if __name__ == "__main__":
    size = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), size)
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name), size)
