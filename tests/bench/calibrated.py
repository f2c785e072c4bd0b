"""What calibration saves of the loss at equal bytes, on a trained model. Prints Markdown tables.

Every row is four files of one size: plain bytes by the recipe; calibrated bytes of the same types; plain bytes of types
chosen by measurement; and both. All of them know the same windows of the calibration text: the plain ones by the
importance matrix that calibrating makes. They are judged on the test text, of which calibration has no part, and
compared with the plain file in whole windows (paired bootstrap, 95 %).

The models are those that `tests/support/real_model.py` prepares. Files and reports are kept in build/bench/calibrated,
so that an interrupted run goes on where it was.

With --confirm, the llama-perplexity that `make conformance` built judges the first and the last file of every row.

usage: calibrated.py [--model smollm2|gemma3] [--exchanged] [--confirm] [--chunks N] [--calibrate-chunks N]
                     [--kinds KIND,...] [ROW ...]

A ROW is a recipe, a recipe and a share of its size that is added (iq2_xxs+7), or pure:RECIPE (two files of one type).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import real_model

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "build" / "bench" / "calibrated"
TEXTS = ROOT / "evaluate" / "text"
PROGRAM = [sys.executable, "-c", "from ggufsmith.cli.app import main; main()"]
ROWS = ("q4_K_M", "q3_K_M", "q2_K", "iq3_xxs", "iq2_xxs+7", "pure:q4_K_S", "pure:q3_K_S", "pure:iq3_s", "pure:iq4_xs")
SENSITIVITY_CHUNKS = 32
KINDS = {
    "plain": "plain",
    "calibrated": "same types, calibrated",
    "spent": "types by measurement, plain bytes",
    "matched": "types by measurement, calibrated",
}


@dataclass(frozen=True)
class Setting:
    """One model, and the texts it is calibrated with and judged on: folders of TEXTS."""

    model: str
    calibration: str
    test: str
    calibrate_chunks: int
    chunks: int

    @property
    def folder(self) -> Path:
        return BENCH / f"{self.model}-{self.calibration}-{self.calibrate_chunks}"

    @property
    def source(self) -> Path:
        return BENCH / f"{self.model}-F32.gguf"

    def texts(self, option: str, which: str) -> list[str | Path]:
        """The options that name this text: each file is a domain."""
        return [word for path in sorted((TEXTS / which).iterdir()) for word in (option, path)]

    @property
    def calibrate(self) -> list[str | Path]:
        return [*self.texts("--calibrate", self.calibration), "--calibrate-chunks", str(self.calibrate_chunks)]


@dataclass(frozen=True)
class Row:
    """recipe: of the plain file. added: per cent of its size that the others may have more. pure: one type for all.
    kinds: the files, of KINDS.
    """

    recipe: str
    added: int
    pure: bool
    kinds: Sequence[str]

    @property
    def label(self) -> str:
        return f"pure {self.recipe}" if self.pure else f"{self.recipe} + {self.added} %" if self.added else self.recipe


def row_of(text: str, kinds: Sequence[str]) -> Row:
    pure, recipe = text.startswith("pure:"), text.removeprefix("pure:")
    recipe, _, added = recipe.partition("+")
    possible = {"plain", "calibrated"} if pure else set(KINDS) - ({"calibrated"} if added else set())
    return Row(recipe, int(added or 0), pure, [kind for kind in kinds if kind in possible])


def ggufsmith(*words: str | Path) -> None:
    print("$ ggufsmith", *words, file=sys.stderr, flush=True)
    subprocess.run([*PROGRAM, *map(str, words), "--quiet"], check=True)


def made(path: Path, *words: str | Path) -> Path:
    """The file, made by this command if it is not there."""
    if not path.exists():
        ggufsmith(*words, "-o", path)
    return path


def prepared(setting: Setting) -> Path:
    """The model in float32."""
    if not setting.source.exists():
        published = real_model.published(setting.model, BENCH)
        partial = setting.source.with_suffix(".partial")
        real_model.noised(published, partial, real_model.REAL[setting.model]).rename(setting.source)
    return setting.source


def importance(setting: Setting) -> Path:
    """The importance matrix of the windows that calibrating sees."""
    texts = setting.texts("--text", setting.calibration)
    words = ("imatrix", setting.source, *texts, "--chunks", str(setting.calibrate_chunks))
    return made(setting.folder / "imatrix.gguf", *words)


def sensitivity(setting: Setting, effort: str) -> Path:
    texts = setting.texts("--text", setting.calibration)
    chunks = str(min(setting.calibrate_chunks, SENSITIVITY_CHUNKS))
    words = ("sensitivity", setting.source, *texts, "--chunks", chunks, "--effort", effort)
    return made(setting.folder / f"{effort}.json", *words)


def file_of(setting: Setting, row: Row, kind: str) -> Path:
    """One of the files of a row."""
    path = setting.folder / f"{row.label.replace(' ', '')}-{kind}.gguf"
    if path.exists():
        return path
    words: list[str | Path] = ["quant", setting.source]
    if kind in ("plain", "calibrated"):
        words += ["--recipe", row.recipe, *(["--pure"] if row.pure else [])]
    elif row.added:
        size = file_of(setting, row, "plain").stat().st_size * (100 + row.added) // 100
        words += ["--target-size", str(size)]
    else:
        words += ["--match", row.recipe]
    if kind in ("spent", "matched"):
        words += ["--sensitivity", sensitivity(setting, "none" if kind == "spent" else "normal")]
    words += setting.calibrate if kind in ("calibrated", "matched") else ["--imatrix", importance(setting)]
    return made(path, *words)


def report(setting: Setting, row: Row) -> dict[str, Any]:
    """What `ggufsmith eval` says of the files of a row, with every one compared with the plain one."""
    path = setting.folder / f"{row.label.replace(' ', '')}-{'-'.join(row.kinds)}-{setting.chunks}.json"
    if not path.exists():
        files = [file_of(setting, row, kind) for kind in row.kinds]
        path.write_text(evaluated(setting, files), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def evaluated(setting: Setting, files: Sequence[Path]) -> str:
    """In this process, because the command compares one pair only."""
    from ggufsmith.evaluate.evaluation import EvalTask
    from ggufsmith.evaluating import evaluated
    from ggufsmith.pipeline.request import MakeOptions, Request, SourceOptions, TextOptions
    from ggufsmith.progress import Display
    from ggufsmith.report import as_dict

    reading = TextOptions(text=tuple(sorted((TEXTS / setting.test).iterdir())), chunks=setting.chunks)
    pairs = tuple((str(files[0]), str(other)) for other in files[1:])
    task = EvalTask(Request(setting.source, SourceOptions(), MakeOptions()), tuple(files), reading, "torch", pairs)
    return json.dumps(as_dict(evaluated(task, str(setting.source), Display())))


def files_in(row: Row, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a report, which has the smallest first, says of the file of each kind."""
    by_name = {file["name"]: file for file in found["files"]}
    return {kind: by_name[f"{row.label.replace(' ', '')}-{kind}.gguf"] for kind in row.kinds}


def lines(row: Row, found: dict[str, Any]) -> Iterator[str]:
    """The lines of the table: one for every file of the row."""
    compared = {pair["second"]: pair for pair in found["comparisons"]}
    for kind, file in files_in(row, found).items():
        pair = compared.get(file["name"])
        whole = file["quality"][0]
        cells = [row.label, KINDS[kind], f"{file['bytes']:,}", f"{whole['perplexity']:.4g}"]
        cells += [f"{whole['divergence']:.4f} ± {whole['divergence_error']:.4f}", f"{100 * whole['same_top']:.1f} %"]
        if pair:
            ratio = pair["divergence_ratio"]
            value, low, high = (100 * ratio[key] - 100 for key in ("value", "low", "high"))
            cells += [f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"]
        else:
            cells += [""]
        yield "| " + " | ".join(cells) + " |"


def domains(row: Row, found: dict[str, Any]) -> str:
    """The change of the divergence in every domain, from the plain file to the last of the row."""
    plain, *_, last = (file["quality"] for file in files_in(row, found).values())
    cells = [
        f"{100 * b['divergence'] / a['divergence'] - 100:+.0f} %" for a, b in zip(plain[1:], last[1:], strict=True)
    ]
    return "| " + " | ".join([row.label, *cells]) + " |"


def confirmed(setting: Setting, rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table: what llama-perplexity says of the plain and of the last file of every row."""
    sys.path.insert(0, str(ROOT / "tests" / "conformance"))
    from llama_tools import divergence, perplexity

    text, base = setting.folder / "test.txt", setting.folder / "logits"
    texts = [path.read_text(encoding="utf-8") for path in sorted((TEXTS / setting.test).glob("*.txt"))]
    text.write_text("\n".join(texts), encoding="utf-8", newline="\n")
    perplexity(setting.source, text, context=512, chunks=setting.chunks, base=base, options=())
    for row in rows:
        files = [file_of(setting, row, kind) for kind in (row.kinds[0], row.kinds[-1])]
        a, b = (divergence(file, text, context=512, chunks=setting.chunks, base=base, options=()) for file in files)
        cells = [f"{each['divergence']:.4f} ± {each['divergence_error']:.4f}" for each in (a, b)]
        yield f"| {row.label} | {' | '.join(cells)} | {100 * b['divergence'] / a['divergence'] - 100:+.1f} % |"
    base.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--model", choices=tuple(real_model.REAL), default="smollm2")
    parser.add_argument("--exchanged", action="store_true", help="calibrate on the test text, and judge on the other")
    parser.add_argument("--confirm", action="store_true", help="measure with llama-perplexity")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=tuple(KINDS), help="plain first")
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--calibrate-chunks", type=int, default=64)
    given = parser.parse_args()
    calibration, test = ("test", "calibration") if given.exchanged else ("calibration", "test")
    setting = Setting(given.model, calibration, test, given.calibrate_chunks, given.chunks)
    setting.folder.mkdir(parents=True, exist_ok=True)
    prepared(setting)
    rows = [row_of(text, given.kinds) for text in given.rows]
    if given.confirm:
        print("| size of | plain | last of the row | change |\n|---|---|---|---:|")
        print("\n".join(confirmed(setting, rows)))
        return
    found = [report(setting, row) for row in rows]
    print("| size of | file | bytes | perplexity | KL divergence | same top token | change of the divergence |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for row, each in zip(rows, found, strict=True):
        print("\n".join(lines(row, each)))
    names = [quality["domain"] for quality in found[0]["source_quality"][1:]]
    print("\n| change by domain | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for row, each in zip(rows, found, strict=True):
        print(domains(row, each))
    own = found[0]["source_quality"][0]
    print(
        f"\n{found[0]['windows']} windows of {found[0]['context']} tokens, {own['tokens']} tokens scored; source: "
        f"perplexity {own['perplexity']:.4g}; {setting.calibrate_chunks} windows for calibrating."
    )


if __name__ == "__main__":
    main()
