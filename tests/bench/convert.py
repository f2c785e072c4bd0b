"""Speed and memory of gguf-convert against the reference converter and against copying. Prints a Markdown table.

Whole processes, in pairs, one after the other on the same cores, with the input in the page cache; medians. Peak memory
is what the operating system says of the finished process (ru_maxrss, which counts file-backed pages; it begins with the
size of the process that started it, so this one stays small).

usage: convert.py [--pairs N]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

import numpy as np  # noqa: E402

import reference  # noqa: E402

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as after an installation, where modules are compiled once

BENCH = ROOT / "build" / "bench"
CONVERT = [sys.executable, "-c", "from ggufsmith.cli.app import convert_main; convert_main()"]
TINYLLAMA: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def timed(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """(seconds, peak MB) of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} failed: {error.decode('utf-8', 'replace')[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * unit / 1e6


def settle(inputs: Sequence[Path] = ()) -> None:
    """Read the inputs into the page cache; write and remove a gigabyte, so that a run finds memory that was just used.

    On a virtual machine, memory that nobody used for a while belongs to the host again; to touch it first costs whoever
    comes next several seconds of system time. (More would be given back at once, while the run is being measured; so
    outputs are removed when a run is over, not when the next begins.) Pages of the cache may go as well: a minute after
    an input was read last, a seventh of it had to come from the disk again.
    """
    if inputs:
        copy(inputs, Path(os.devnull))
    path, block = BENCH / "settle.bin", bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(1000):
            file.write(block)
    path.unlink()


def pairs(
    ours: Callable[[], float], theirs: Callable[[], float], count: int, inputs: Sequence[Path] = ()
) -> tuple[float, float, float]:
    """Medians of ours, theirs, and of theirs / ours within each pair. inputs: the files that both read."""
    measured = []
    for _ in range(count):
        settle(inputs)
        a = ours()
        settle(inputs)
        measured.append((a, theirs()))
    ratio = statistics.median(b / a for a, b in measured)
    return statistics.median(a for a, _ in measured), statistics.median(b for _, b in measured), ratio


def copy(sources: Sequence[Path], output: Path) -> None:
    """All bytes of the sources into one file, forced to the disk."""
    with output.open("wb", buffering=0) as target:
        for path in sources:
            with path.open("rb", buffering=0) as source:
                while block := source.read(1 << 20):
                    target.write(block)
        if output != Path(os.devnull):
            os.fsync(target.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    count = parser.parse_args().pairs
    folder, output = BENCH / "TinyLlama-1.1B", BENCH / "out.gguf"
    if not (folder / "config.json").is_file():
        make = "import sys, json, checkpoints; from pathlib import Path\n"
        make += "checkpoints.write('llama', Path(sys.argv[1]), shards=2, **json.loads(sys.argv[2]))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "fixtures")}
        subprocess.run([sys.executable, "-c", make, str(folder), json.dumps(TINYLLAMA)], env=environment, check=True)
    weights = sorted(folder.glob("*.safetensors"))
    peak = 0.0

    def ours(*options: str) -> float:
        nonlocal peak
        seconds, memory = timed([*CONVERT, str(folder), "-o", str(output), "--quiet", *options])
        output.unlink()
        peak = max(peak, memory)
        return seconds

    def theirs() -> float:
        environment = reference.environment()
        command = [
            sys.executable,
            "-c",
            reference.DRIVER,
            "",
            str(folder),
            "--outfile",
            str(output),
            "--outtype",
            "f16",
        ]
        seconds = timed(command, environment)[0]
        output.unlink()
        return seconds

    def copied() -> float:
        started = time.perf_counter()
        copy(weights, output)
        seconds = time.perf_counter() - started
        output.unlink()
        return seconds

    ours("--no-sync")  # compiles the kernels, warms the caches
    print(f"TinyLlama-1.1B in bfloat16 ({sum(p.stat().st_size for p in weights) / 1e9:.2f} GB) to F16, ", end="")
    print(f"{os.cpu_count()} cores, medians of {count} pairs\n")
    print("| | ours | other | ratio |\n|---|---|---|---|")
    a, b, ratio = pairs(lambda: ours("--no-sync"), theirs, count, weights)
    print(f"| reference converter, neither flushes | {a:.2f} s | {b:.2f} s | {ratio:.1f} times faster |", flush=True)
    a, b, ratio = pairs(ours, copied, count, weights)
    print(f"| copying the same bytes, both fsync | {a:.2f} s | {b:.2f} s | {1 / ratio:.2f} of its time |", flush=True)
    print(f"| peak memory | {peak:.0f} MB | | |")
    help_time = statistics.median(timed([*CONVERT, "--help"])[0] for _ in range(9))
    print(f"| gguf-convert --help | {help_time:.2f} s | | |")
    a, b = header()
    print(f"| opening a header of 152 000 tokens | {a:.2f} s | {b:.2f} s (gguf package) | {b / a:.0f} times faster |")


def header() -> tuple[float, float]:
    """Seconds to open a file with 152 000 tokens and merges: with our reader, and with the gguf package's."""
    import gguf

    from ggufsmith.container.layout import lay_out
    from ggufsmith.container.reader import open_gguf
    from ggufsmith.container.values import array, string, strings

    tokens = [f"token{k}" for k in range(152_000)]
    metadata = {
        "general.architecture": string("qwen2"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": array(np.ones(len(tokens), np.int32)),
        "tokenizer.ggml.merges": strings(f"{token} x" for token in tokens),
    }
    path = BENCH / "header.gguf"
    path.write_bytes(lay_out(metadata, []).header)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        open_gguf(path).close()
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    gguf.GGUFReader(path)
    other = time.perf_counter() - started
    path.unlink()
    return statistics.median(times), other


if __name__ == "__main__":
    main()
