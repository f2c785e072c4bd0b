"""Speed of every block format against ggml_quantize_chunk and to_float: one thread, the same rows, the same process.

    python tests/bench/kernels.py [types…]          needs the extra `conformance`

Prints a Markdown table: million weights per second, and how many times as fast as ggml (the median of pairs of runs,
which alternate so that both see the same machine). `compile`: seconds for the first use, from an empty cache.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=… measures another CPU's code
os.environ["XDG_CACHE_HOME"] = os.environ["LOCALAPPDATA"] = tempfile.mkdtemp()  # so that every kernel is compiled here
sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))

import numpy as np
import oracle  # type: ignore[import-not-found]

from ggufsmith.container.formats import BY_NAME, format_of
from ggufsmith.quantize import rows

PAIRS = 7
SECONDS = 0.15  # about how long one run of ggml should take
WIDTH = 4096


def timed(work: Callable[[], object]) -> float:
    """Seconds of this thread on a CPU, so that waiting for one does not count."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def race(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """The median of our times, and of their time over ours in each pair."""
    pairs = [(timed(ours), timed(theirs)) for _ in range(PAIRS)]
    return statistics.median(a for a, _ in pairs), statistics.median(b / a for a, b in pairs)


def rows_for(work: Callable[[int], object]) -> int:
    """How many rows keep `work` busy for SECONDS; at least one chunk of ours."""
    work(4)
    return int(np.clip(4 * SECONDS / timed(lambda: work(4)), 64, 1024)) // 64 * 64


def measure(name: str) -> list[str]:
    form, rng = format_of(name), np.random.default_rng(0)
    x = (rng.standard_normal((1024, WIDTH)) * 0.02).astype(np.float32)
    importance = rng.uniform(0.1, 2, WIDTH).astype(np.float32)
    out = np.empty((1024, form.nbytes((WIDTH,))), np.uint8)
    back = np.empty_like(x)
    codec = rows.codec_of(form)
    cells = [name]
    for weights in (None, importance):
        if (codec.encode if weights is None else codec.weighted) is None:
            cells += ["", "", ""]
            continue
        first = timed(lambda w=weights: rows.warm_up(form, weighted=w is not None))  # type: ignore[misc]
        n = rows_for(lambda n, w=weights: oracle.quantize(name, x[:n], w))  # type: ignore[misc]
        seconds, ratio = race(
            lambda n=n, w=weights: rows.encode(form, x[:n], out[:n], importance=w),  # type: ignore[misc]
            lambda n=n, w=weights: oracle.quantize(name, x[:n], w),  # type: ignore[misc]
        )
        if not np.array_equal(out[:n], oracle.quantize(name, x[:n], weights)):
            raise SystemExit(f"{name}: the bytes differ from ggml's")
        cells += [f"{n * WIDTH / seconds / 1e6:.0f}", f"{ratio:.1f}", f"{first:.1f}"]
    rows.decode(form, out[:64], back[:64])
    if name == "Q8_K":
        return [*cells, "", ""]
    n = 256
    packed = oracle.quantize(name, x[:n], importance)
    seconds, ratio = race(lambda: rows.decode(form, packed, back[:n]), lambda: oracle.dequantize(name, packed))
    return [*cells, f"{n * WIDTH / seconds / 1e6:.0f}", f"{ratio:.1f}"]


def main() -> None:
    names = sys.argv[1:] or [name for name in BY_NAME if name in rows.MODULES and name != "Q8_K"]
    print("| type | Mw/s | x ggml | compile | imatrix Mw/s | x ggml | compile | decode Mw/s | x ggml |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        print("| " + " | ".join(measure(name)) + " |", flush=True)


if __name__ == "__main__":
    main()
