"""What every recipe loses on a trained model. Prints a Markdown table.

The model is SmolLM2-135M-Instruct as `tests/support/real_model.py` prepares it; the importance matrix comes from the
calibration text that ships with the package, the numbers from the test text that ships, which has no part of it.
Reports are kept in build/bench/quality, so that an interrupted run goes on where it was.

usage: quality.py [--chunks N] [--imatrix-chunks N] [--plot FILE.svg] [RECIPE ...]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from ggufsmith.evaluate.judged import Candidate, Judged, judged, markdown
from ggufsmith.evaluate.plot import picture
from ggufsmith.evaluate.quality import Quality
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES, shown
from real_model import noised

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "build" / "bench" / "quality"
PUBLISHED = ROOT / "build" / "reference" / "real"
PROGRAM = [sys.executable, "-c", "from ggufsmith.cli.app import main; main()"]
LEFT_OUT = ("COPY", "F32")  # the source itself
TOGETHER = 6  # recipes in one pass


def source() -> Path:
    """The prepared model."""
    path = BENCH / "SmolLM2-135M-noised-F32.gguf"
    if not path.exists():
        (published,) = PUBLISHED.glob("*.gguf")
        noised(published, path.with_suffix(".partial")).rename(path)
    return path


def importance(chunks: int) -> Path:
    """The importance matrix over so many windows."""
    path = BENCH / f"imatrix-{chunks}.gguf"
    if not path.exists():
        subprocess.run([*PROGRAM, "imatrix", source(), "--chunks", str(chunks), "-o", path], check=True)
    return path


def report(recipes: Sequence[str], chunks: int, imatrix: Path) -> dict[str, Any]:
    """The report of `ggufsmith eval` for these recipes."""
    path = BENCH / f"{'-'.join(recipes)}-{chunks}-{imatrix.stem}.json"
    if not path.exists():
        words = [word for name in recipes for word in ("--recipe", name)]
        command = [*PROGRAM, "eval", "--against", source(), "--imatrix", imatrix, "--chunks", str(chunks), *words]
        done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True)
        path.write_bytes(done.stdout)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rows_of(reports: Sequence[dict[str, Any]]) -> list[Judged]:
    """The files of all reports as those of one."""
    files = [each for found in reports for each in found["files"]]
    candidates = [Candidate(each["name"], each["group"], each["bytes"], each["bits_per_weight"]) for each in files]
    return judged(candidates, [[Quality(**row) for row in each["quality"]] for each in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=[shown(name) for name in FILE_TYPES if name not in LEFT_OUT])
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--imatrix-chunks", type=int, default=64)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    BENCH.mkdir(parents=True, exist_ok=True)
    imatrix = importance(given.imatrix_chunks)
    batches = [given.recipes[first : first + TOGETHER] for first in range(0, len(given.recipes), TOGETHER)]
    reports = [report(batch, given.chunks, imatrix) for batch in batches]
    rows = rows_of(reports)
    own = Quality(**reports[0]["source_quality"][0])
    print(markdown(rows, source=own))
    print(
        f"\n{reports[0]['windows']} windows of {reports[0]['context']} tokens, {own.tokens} tokens scored; importance "
        f"matrix from {given.imatrix_chunks} windows."
    )
    if given.plot:
        title = f"SmolLM2-135M, {own.tokens} tokens"
        given.plot.write_bytes(picture(rows, title=title, suffix=given.plot.suffix))


if __name__ == "__main__":
    main()
