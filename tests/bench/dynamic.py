"""What the layer-dynamic recipes save of the loss at low bits, and what they add to the size. Prints a Markdown table.

Of every base three files, run in llama.cpp over the test text: the standard recipe, the dynamic one, and the dynamic
one with `--calibrate`, where the addition is spent by measurement. Models, texts and files are of calibrated.py.

usage: dynamic.py [--model smollm2|gemma3] [--chunks N] [--calibrate-chunks N] [BASE ...]
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from calibrated import TEXTS, Setting, importance, made, prepared, sensitivity

import real_model
from ggufsmith.evaluate.evaluation import EvalTask
from ggufsmith.evaluating import evaluated
from ggufsmith.pipeline.request import MakeOptions, Request, SourceOptions, TextOptions
from ggufsmith.progress import Display
from ggufsmith.report import as_dict

BASES = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s")
KINDS = ("standard", "dynamic", "dynamic, calibrated")


def files_of(setting: Setting, base: str) -> list[Path]:
    """The standard file, the dynamic one, and the calibrated one."""
    imatrix, source = importance(setting), setting.source
    paths = [setting.folder / f"{base}{kind}.gguf" for kind in ("", "_dyn", "_dyn-calibrated")]
    by_measurement = ["--sensitivity", sensitivity(setting, "normal"), *setting.calibrate]
    return [
        made(paths[0], "quant", source, "--recipe", base, "--imatrix", imatrix),
        made(paths[1], "quant", source, "--recipe", f"{base}_dyn", "--imatrix", imatrix),
        made(paths[2], "quant", source, "--recipe", f"{base}_dyn", *by_measurement),
    ]


def report(setting: Setting, bases: Sequence[str]) -> dict[str, Any]:
    """What `ggufsmith eval --engine llama.cpp` says of all files."""
    path = setting.folder / f"dynamic-{'-'.join(bases)}-{setting.chunks}.json"
    if not path.exists():
        files = tuple(file for base in bases for file in files_of(setting, base))
        reading = TextOptions(text=tuple(sorted((TEXTS / setting.test).iterdir())), chunks=setting.chunks)
        task = EvalTask(Request(setting.source, SourceOptions(), MakeOptions()), files, reading, "llama.cpp")
        path.write_text(json.dumps(as_dict(evaluated(task, str(setting.source), Display()))), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def lines(base: str, files: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of one base."""
    first, size = files[0]["quality"][0], files[0]["bytes"]
    for kind, file in zip(KINDS, files, strict=True):
        whole, change = file["quality"][0], ["", ""]
        if file is not files[0]:
            change = [
                f"{100 * whole['perplexity'] / first['perplexity'] - 100:+.1f} %",
                f"{100 * file['bytes'] / size - 100:+.1f} %",
            ]
        cells = [base, kind, f"{file['bytes'] / 1e6:.1f} MB", change[1], f"{whole['perplexity']:.4g}", change[0]]
        cells += [f"{whole['divergence']:.3f}", f"{file['speed']['generation']:.0f}"]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", default=BASES)
    parser.add_argument("--model", choices=tuple(real_model.REAL), default="smollm2")
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--calibrate-chunks", type=int, default=64)
    given = parser.parse_args()
    setting = Setting(given.model, "calibration", "test", given.calibrate_chunks, given.chunks)
    setting.folder.mkdir(parents=True, exist_ok=True)
    prepared(setting)
    found = report(setting, given.bases)
    print("| base | file | size | Δ size | perplexity | Δ perplexity | KL divergence | tokens per second |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    by_name = {file["name"]: file for file in found["files"]}
    for base in given.bases:
        print("\n".join(lines(base, [by_name[path.name] for path in files_of(setting, base)])))
    own = found["source_quality"][0]
    print(
        f"\n{found['windows']} windows of {found['context']} tokens, {own['tokens']} tokens scored in llama.cpp; "
        f"source: perplexity {own['perplexity']:.4g}; {setting.calibrate_chunks} windows for calibrating."
    )


if __name__ == "__main__":
    main()
