"""Speed of every block format against ggml_quantize_chunk and to_float: the same rows, the same process.

    python tests/bench/kernels.py [types…]          needs the extra `conformance`

Prints a Markdown table: million weights per second on one thread, and how many times as fast as ggml on as many threads
(the median of pairs of runs, which alternate so that both see the same machine). On one thread its processor time is
taken, on two the time of the clock. `compile`: seconds for the first use of both modes, from an empty cache.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

# GGUFSMITH_CPU=x86-64-v3 measures another level of machine code
os.environ["XDG_CACHE_HOME"] = os.environ["LOCALAPPDATA"] = tempfile.mkdtemp()  # so that every kernel is compiled here
sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))

import numpy as np
import oracle  # type: ignore[import-not-found]

from ggufsmith.container.formats import BY_NAME, format_of
from ggufsmith.quantize import rows

PAIRS = 7
SECONDS = 0.15  # about how long one run of ggml should take
WIDTH = 4096


def timed(work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    start = clock()
    work()
    return clock() - start


def race(ours: Callable[[], object], theirs: Callable[[], object], **clock: Any) -> tuple[float, float]:
    """The median of our times, and of their time over ours in each pair."""
    pairs = [(timed(ours, **clock), timed(theirs, **clock)) for _ in range(PAIRS)]
    return statistics.median(a for a, _ in pairs), statistics.median(b / a for a, b in pairs)


def both(pool: ThreadPoolExecutor, work: Callable[[int, int], object], n: int) -> Callable[[], object]:
    """The same rows on two threads."""
    return lambda: list(pool.map(work, (0, n // 2), (n // 2, n)))


def rows_for(work: Callable[[int, int], object]) -> int:
    """How many rows keep `work` busy for SECONDS; at least one chunk of ours."""
    work(0, 4)
    return int(np.clip(4 * SECONDS / timed(lambda: work(0, 4)), 64, 1024)) // 64 * 64


def measure(name: str, pool: ThreadPoolExecutor) -> list[str]:
    form, rng = format_of(name), np.random.default_rng(0)
    x = (rng.standard_normal((1024, WIDTH)) * 0.02).astype(np.float32)
    importance = rng.uniform(0.1, 2, WIDTH).astype(np.float32)
    out = np.empty((1024, form.nbytes((WIDTH,))), np.uint8)
    back = np.empty_like(x)
    codec = rows.codec_of(form)
    cells, compiling = [], 0.0
    for weights in (None, importance):
        if (codec.encode if weights is None else codec.weighted) is None:
            cells += ["", "", ""]
            continue
        compiling += timed(partial(rows.warm_up, form, weighted=weights is not None))

        def ours(start: int, stop: int, weights: Any = weights) -> object:
            return rows.encode(form, x[start:stop], out[start:stop], importance=weights)

        def theirs(start: int, stop: int, weights: Any = weights) -> object:
            return oracle.quantize(name, x[start:stop], weights)

        n = rows_for(theirs)
        seconds, ratio = race(partial(ours, 0, n), partial(theirs, 0, n))
        _, ratio_of_two = race(both(pool, ours, n), both(pool, theirs, n), clock=time.perf_counter)
        if not np.array_equal(out[:n], oracle.quantize(name, x[:n], weights)):
            raise SystemExit(f"{name}: the bytes differ from ggml's")
        cells += [f"{n * WIDTH / seconds / 1e6:.0f}", f"{ratio:.1f}", f"{ratio_of_two:.1f}"]
    rows.decode(form, out[:64], back[:64])
    n = 256
    packed = oracle.quantize(name, x[:n], importance)
    seconds, ratio = race(lambda: rows.decode(form, packed, back[:n]), lambda: oracle.dequantize(name, packed))
    return [name, *cells, f"{n * WIDTH / seconds / 1e6:.0f}", f"{ratio:.1f}", f"{compiling:.1f} s"]


def main() -> None:
    names = sys.argv[1:] or [name for name in BY_NAME if name in rows.MODULES and name != "Q8_K"]
    print("| type | Mw/s | x ggml | x on two | imatrix Mw/s | x ggml | x on two | decode Mw/s | x ggml | compile |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with ThreadPoolExecutor(2) as pool:
        for name in names:
            print("| " + " | ".join(measure(name, pool)) + " |", flush=True)


if __name__ == "__main__":
    main()
