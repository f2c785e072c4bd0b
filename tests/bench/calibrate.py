"""Speed of what `--calibrate` does to the weights of a layer, on one thread, by type and width.

    python tests/bench/calibrate.py [--whole [BLOCKS]] [types…]

Prints a Markdown table: millions of weights per second of processor time, from weights to bytes, for feedback alone and
for every effort; and what normal effort leaves of the loss of ggml's bytes under H. Rows and H are those of the tests:
H has a few strong directions, as in real layers. The last lines are of H itself: checking and factoring it, which all
matrices with the same inputs share.

With --whole, instead: processor time and peak memory of a whole run, of the shape of Llama-3-8B at full width, cut to
four blocks or as many as are named, with 16 windows of text.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "calibrate"))

import numpy as np
from correlated import correlated  # type: ignore[import-not-found]

from ggufsmith.calibrate import refine
from ggufsmith.calibrate.hessian import Hessian, prepare
from ggufsmith.calibrate.lanes import to_lanes
from ggufsmith.container.formats import format_of
from ggufsmith.quantize import fields, rows

TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "Q4_0", "Q8_0", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_XS", "IQ1_S")
WIDTHS = (1024, 4096)
TIMES = 3


def seconds(work: Callable[[], object]) -> float:
    """The median of a few runs; the first, which may compile, does not count."""
    work()
    taken = []
    for _ in range(TIMES):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return statistics.median(taken)


def measure(name: str, w: "np.ndarray[tuple[int, int], np.dtype[np.float32]]", hessian: Hessian) -> list[str]:
    form, layout = format_of(name), fields.layout_of(name)
    done = {}

    def speed(work: Callable[[], object]) -> str:
        return f"{w.size / 1e6 / seconds(work):.3g}"

    def search() -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
        data = np.empty((len(w), form.nbytes((w.shape[1],))), np.uint8)
        rows.encode(form, w, data, importance=hessian.diagonal)
        return data

    def whole(effort: refine.Effort) -> None:
        done[effort] = refine.refine_block(form, w, search(), hessian, effort)

    cells = [speed(search), speed(lambda: refine.feed_back(layout, to_lanes(w), hessian, 0))]
    cells += [speed(lambda effort=effort: whole(effort)) for effort in refine.SWEEPS]  # type: ignore[misc]
    _, start, end = done["normal"]
    return [name, str(w.shape[1]), *cells, f"{end.sum() / start.sum():.0%}"]


def whole(blocks: int) -> None:
    """A run as users start it."""
    sys.path.insert(0, str(Path(__file__).parent))
    from quant import LLAMA_8B, checkpoint

    from convert import BENCH, CONVERT, timed

    folder = checkpoint(f"Llama-3-8B-{blocks}", {**LLAMA_8B, "num_hidden_layers": blocks})
    output = BENCH / "calibrated.gguf"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = ["--recipe", "q4_K_M", "--calibrate", "--calibrate-chunks", "16", "--outfile", str(output), "--quiet"]
    seconds, peak = timed([*CONVERT, str(folder), *options])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    output.unlink()
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"Llama-3-8B cut to {blocks} blocks: {spent:.0f} s of processor time in {seconds:.0f} s, ", end="")
    print(f"peak memory {peak:.0f} MB")


def main() -> None:
    if sys.argv[1:2] == ["--whole"]:
        whole(int(*sys.argv[2:3] or ("4",)))
        return
    print("| type | width | ggml's search | feedback alone | fast | normal | best | left of the loss |")
    print("|---|---|---|---|---|---|---|---|")
    factoring = []
    for width in WIDTHS:
        w, h = correlated(width, refine.BLOCK)
        found: list[Hessian] = []
        factoring.append((width, seconds(lambda h=h, found=found: found.append(prepare(h)))))  # type: ignore[misc]
        for name in sys.argv[1:] or TYPES:
            print("| " + " | ".join(measure(name, w, found[-1])) + " |", flush=True)
    said = ", ".join(f"{taken:.2g} s at width {width}" for width, taken in factoring)
    print(f"\nChecking and factoring H takes {said}.")


if __name__ == "__main__":
    main()
