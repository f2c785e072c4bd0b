"""What a GPU computes against what the CPU computes: importance matrices, and what files have lost.

    python tests/device/forward.py [--device cuda] [MODEL]

MODEL: a folder or a GGUF file; a fixture is made if there is none. It needs `pip install -e ".[eval]"`, nothing else.
Exit code 1, with the numbers, if anything differs by more than one part in a thousand.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "fixtures")]

import checkpoints  # noqa: E402
from ggufsmith.calibrate.make import make_imatrix  # noqa: E402
from ggufsmith.convert.open import open_pass  # noqa: E402
from ggufsmith.evaluate.evaluation import EvalTask, evaluate  # noqa: E402
from ggufsmith.pipeline.request import MakeOptions, Request, TextOptions  # noqa: E402

TOLERANCE = 1e-3
RECIPES = ("q8_0", "q4_0")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = given.model or checkpoints.write("qwen3-moe", Path(scratch) / "Tiny-2M-v1.0")
        readings = [
            TextOptions(context=given.context, chunks=given.chunks, device=device) for device in ("cpu", given.device)
        ]
        wrong = [*imatrices(model, readings), *qualities(model, readings)]
    print("\n".join(wrong) or f"{given.device} agrees with the CPU")
    return bool(wrong)


def imatrices(model: Path, readings: list[TextOptions]) -> list[str]:
    """How the sums of an importance matrix differ."""
    cpu, other = (make_imatrix(Request(model), open_pass, reading).imatrix.entries for reading in readings)
    wrong = [] if cpu.keys() == other.keys() else [f"other tensors: {sorted(cpu.keys() ^ other.keys())}"]
    for name in cpu.keys() & other.keys():
        one, two = cpu[name].sums.astype(np.float64), other[name].sums.astype(np.float64)
        error = float(np.linalg.norm(one - two) / max(np.linalg.norm(one), 1e-30))
        if error > TOLERANCE:
            wrong.append(f"{name}: the sums differ by {error:.2g}")
    return wrong


def qualities(model: Path, readings: list[TextOptions]) -> list[str]:
    """How perplexity and divergence differ."""
    request = Request(model, make=MakeOptions(recipes=RECIPES))
    cpu, other = (evaluate(EvalTask(request, (), reading)).files for reading in readings)
    wrong = []
    for one, two in zip(cpu, other, strict=True):
        for key in ("perplexity", "divergence"):
            a, b = getattr(one.whole, key), getattr(two.whole, key)
            if abs(a - b) > TOLERANCE * max(abs(a), 1e-4):
                wrong.append(f"{one.name}: {key} is {b:.6g}, not {a:.6g}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
