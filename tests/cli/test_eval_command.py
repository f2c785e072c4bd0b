"""`ggufsmith eval`, as far as it goes without running a model: what it refuses, and what it shows, writes and keeps."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as models
from commands import run
from rich.cells import cell_len
from rich.console import Console
from schemas import faults

import checkpoints
from ggufsmith.cli import eval as command
from ggufsmith.cli import render
from ggufsmith.container.errors import NoSpace, Usage
from ggufsmith.container.formats import format_of
from ggufsmith.container.values import string
from ggufsmith.evaluate import needed, plot
from ggufsmith.evaluate.evaluation import EvalTask
from ggufsmith.evaluate.judged import HEADS, Candidate, Evaluation, TokenSpeed, csv_of, judged
from ggufsmith.evaluate.quality import compare, qualities
from ggufsmith.evaluate.token_scores import TokenScores
from ggufsmith.naming.modelcard import MARK, MEASURED, with_measurements
from ggufsmith.pipeline.request import MakeOptions, Request, TextOptions
from ggufsmith.report import as_dict, json_schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "eval.schema.json"
NAMES = ("Tiny-2M-IQ2_XXS.gguf", "Tiny-2M-Q4_K_M.gguf", "Tiny-2M-Q8_0.gguf")


def scores(scale: float, windows: int = 6) -> TokenScores:
    generator = np.random.default_rng(1)
    nll = generator.gamma(2, 1, (windows, 31)).astype(np.float32)
    divergence = (scale * generator.gamma(0.5, 1, nll.shape)).astype(np.float32)
    return TokenScores(nll + divergence, divergence, divergence < 0.5, np.exp(-nll - divergence))


def evaluation(speed: TokenSpeed | None = None, domains: int = 2, windows: int = 6) -> Evaluation:
    of_window = [f"domain {k % domains}" for k in range(windows)]
    source, found = scores(0, windows), [scores(scale, windows) for scale in (0.9, 0.03, 1e-5)]
    candidates = [Candidate(name, "out", size * 10**8, 8.5) for name, size in zip(NAMES, (1, 20, 400), strict=True)]
    rows = judged(candidates, [qualities(each, source, of_window) for each in found], [speed] * 3)
    own = qualities(source, source, of_window)
    pairs = [compare((NAMES[1], NAMES[2]), found[1], found[2])]
    return Evaluation(
        *(1, "Tiny-2M", own, "torch", "cpu", "float32", ["prose.txt"], "0" * 64, 64, windows, 186, rows, pairs, [], 1.5)
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny-2M-F16.gguf"
    models.write_model(path)
    return path


def refused(code: int, words: str, *arguments: object) -> None:
    done = run(command.evaluate, *arguments)
    assert done.exit_code == code, done.output
    assert re.search(words, " ".join(done.output.split())), done.output


def test_what_is_refused_before_anything_is_opened(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = ("--against", model)
    refused(2, "nothing to judge", *against)
    refused(2, "no engine", model, *against, "--engine", "onnx")
    refused(2, "has none yet", *against, "-r", "q8_0", "--engine", "llama.cpp")
    refused(2, "recipes only", model, *against, "--imatrix", model)
    refused(2, "too few", model, *against, "--context", "3")
    refused(2, r"\.svg", model, *against, "--plot", tmp_path / "a.pdf")
    refused(2, "folder does not exist", model, *against, "--csv", tmp_path / "absent" / "a.csv")
    refused(2, "recipe has none", *against, "-r", "q8_0", "--card")
    (tmp_path / "README.md").write_text("# Mine\n", encoding="utf-8")
    refused(6, "did not write.*Leave out --card, and take the numbers from --csv", model, *against, "--card")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    refused(3, "pip install llama-cpp-python", model, *against, "--engine", "llama.cpp")
    monkeypatch.setattr(needed, "LIBRARIES", ("torch_that_nobody_has",))
    checkpoints.write("llama", tmp_path / "Sound")
    sound = ("--against", tmp_path / "Sound", "-r", "q8_0")
    refused(3, r"pip install --upgrade 'ggufsmith\[eval\]'", *sound)


def test_what_lies_beside_models_is_no_model(model: Path, tmp_path: Path) -> None:
    for kind in ("mmproj", "imatrix"):
        models.write_gguf(
            tmp_path / f"{kind}.gguf",
            {"general.type": string(kind)},
            {"a": models.plain(np.ones((2, 32), np.float32), format_of("F32"))},
        )
    files = [tmp_path / "mmproj.gguf", tmp_path / "imatrix.gguf"]
    refused(2, "mmproj.gguf is a projector, so it is left out", *files, "--against", model)


def test_errors_are_json_where_that_was_asked_for(model: Path) -> None:
    done = run(command.evaluate, "--against", model, "--json")
    assert json.loads(done.output)["error"]["code"] == 2


@pytest.mark.parametrize("speed", [None, TokenSpeed(1234.5, 98.7)])
def test_tables_fit_80_columns(speed: TokenSpeed | None, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None, soft_wrap=True, highlight=False)
    monkeypatch.setattr(render, "out", out)
    command._show(evaluation(speed), [("csv", "a.csv")])
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell_len(line) <= 80 for line in said.splitlines())
    table, _, rest = said.partition("domain")
    assert all(word in table for head in HEADS for word in head.split()) or speed
    assert "RMS Δp" in rest and "divergence" in rest
    assert re.search(r"\n *\n *source ", said)
    for words in (
        "IQ2_XXS *",
        "Q4_K_M *",
        "Q8_0 *",
        "domain 1",
        "6 windows of 64, 186 tokens",
        "is closer to the source",
    ):
        assert words in said, words
    assert ("1234" in said or "1235" in said) == (speed is not None)
    row = next(line for line in said.splitlines() if "IQ2_XXS" in line)
    assert "±" in row and "%" in row


def test_the_report_is_as_its_schema_says() -> None:
    schema = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    assert schema == json_schema(Evaluation, schema["title"])
    for report in (evaluation(), evaluation(TokenSpeed(1.0, 2.0), domains=1)):
        plain = json.loads(json.dumps(as_dict(report)))
        assert list(faults(plain, schema)) == []
        assert len(plain["files"][0]["quality"]) in (1, 3)


def judging(monkeypatch: pytest.MonkeyPatch, *, windows: int = 6) -> None:
    """No model is run; these numbers are found."""
    monkeypatch.setattr("ggufsmith.evaluating.evaluated", lambda *task: evaluation(windows=windows))


def test_no_output_is_another_or_what_somebody_else_wrote(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (model, "--against", model)
    card = tmp_path / "README.md"
    refused(6, "two different files would be written here", *asked, "--card", "--csv", card)
    assert not card.exists()
    card.write_text(f"{MARK}\n", encoding="utf-8")
    refused(6, "two different files would be written here", *asked, "--card", "--csv", tmp_path / "." / "README.md")
    refused(6, "the output is the input", *asked, "--card", "--text", card)
    other = tmp_path / "other.gguf"
    other.write_bytes(model.read_bytes())
    refused(6, "no table of ggufsmith eval.*Name another file with --csv", *asked, "--csv", other)
    assert other.read_bytes() == model.read_bytes()
    other.write_text("name,group,bytes,bits_per_weight,pareto,domain\n", encoding="utf-8")
    refused(6, "already exists.*leave out --no-overwrite", *asked, "--csv", other, "--no-overwrite")
    judging(monkeypatch)
    for taken in (("--csv", other), ("--csv", tmp_path / "new.csv", "--no-overwrite")):
        assert run(command.evaluate, *asked, *taken).exit_code == 0
    refused(6, "already exists", *asked, "--card", "--no-overwrite")
    assert card.read_text(encoding="utf-8") == f"{MARK}\n"


def test_numbers_that_nobody_would_see_are_not_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging(monkeypatch)
    asked = (model, "--against", model)
    for taken in (("-q", "--csv", tmp_path / "a.csv"), ("-q", "--csv", "-"), ("--json",), ("-q", "--json")):
        assert run(command.evaluate, *asked, *taken).exit_code == 0
    refused(2, "nothing would be shown or written.*or leave out --quiet", *asked, "-q")
    refused(2, "both go to standard output", *asked, "--json", "--csv", "-")
    refused(2, "without a suffix", *asked, "--plot", "-")
    task = EvalTask(Request(model), (model,), TextOptions())
    monkeypatch.setattr(sys, "stdout", None)
    for as_json in (True, False):
        with pytest.raises(Usage, match="standard output is closed"):
            command._check_outputs(
                command.Outputs(None, None, None), task, overwrite=True, as_json=as_json, quiet=False
            )
    command._check_outputs(command.Outputs(Path("a.csv"), None, None), task, overwrite=True, as_json=False, quiet=True)


def test_what_was_measured_is_shown_if_a_file_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging(monkeypatch)

    def full(path: Path, data: bytes, **options: Any) -> None:
        if path.suffix == ".svg":
            raise NoSpace("cannot write: No space left on device", where=path, fix="Free some space.")
        path.write_bytes(data)

    monkeypatch.setattr("ggufsmith.container.replace.replace_bytes", full)
    monkeypatch.setattr(plot, "picture", lambda *rows, **named: b"")
    asked = (model, "--against", model, "--plot", tmp_path / "a.svg", "--card")
    done = run(command.evaluate, *asked)
    assert done.exit_code == 5 and "IQ2_XXS *" in done.stdout
    assert "a.svg" in done.stderr and "No space left" in done.stderr
    assert "README.md" in done.stdout  # which could be written
    done = run(command.evaluate, *asked, "--json")
    assert done.exit_code == 5 and len(json.loads(done.stdout)["files"]) == 3 and "No space left" in done.stderr


def test_a_table_can_be_standard_output(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judging(monkeypatch)
    monkeypatch.chdir(tmp_path)
    done = run(command.evaluate, model, "--against", model, "--csv", "-")
    assert done.exit_code == 0 and done.stdout == csv_of(evaluation().files)
    assert not Path("-").exists()


def test_one_window_and_one_token_do_not_say_how_sure_they_are(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judging(monkeypatch, windows=1)
    done = run(command.evaluate, model, "--against", model)
    said = " ".join(done.stdout.split())
    assert "in 1 window, but an interval takes 6 windows" in said and "cannot be told" in said
    assert "closer to the source than" not in said
    report = json.loads(run(command.evaluate, model, "--against", model, "--json").stdout)
    (pair,) = report["comparisons"]
    assert pair["better"] is None
    assert [pair["divergence_ratio"][key] for key in ("low", "high")] == [None, None]
    schema = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    assert list(faults(report, schema)) == []


def test_an_error_that_is_not_known_rounds_nothing_away() -> None:
    assert command._with_error(0.00437, None) == "0.00437"
    assert command._with_error(811.4, None) == "811"
    assert command._with_error(0.25, 0.0) == "0.25 ±0"
    assert command._with_error(None, None) == "over 1e308"
    assert command._with_error(12.345, 0.0123) == "12.345 ±0.012"


def test_reports_are_json_whatever_was_computed(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    render.as_json({"a": [float("nan"), 1.5, {"b": float("inf")}], "c": (float("-inf"),)})
    said = capfdbinary.readouterr().out
    assert json.loads(said, parse_constant=lambda word: pytest.fail(word)) == {
        "a": [None, 1.5, {"b": None}],
        "c": [None],
    }


def task(model: Path, **reading: Any) -> EvalTask:
    return EvalTask(Request(model, make=MakeOptions()), (model,), TextOptions(**reading))


def test_a_card_is_made_kept_and_measured_again(model: Path) -> None:
    asked = task(model, text=(Path("some", "folder", "my text.txt"),), chunks=7)
    path = model.parent / "README.md"
    command._write_card(path, asked, evaluation(), str(model))
    first = path.read_text(encoding="utf-8")
    assert all(mark in first for mark in MEASURED)
    assert f"ggufsmith eval {' '.join(NAMES)} --against Tiny-2M-F16.gguf --text 'my text.txt' --chunks 7" in first
    assert str(model.parent) not in first
    assert first.index("## Provided files") < first.index("## Quality") < first.index("## How to run")
    again = replace(evaluation(), scored_tokens=4711)
    command._write_card(path, asked, again, str(model))
    second = path.read_text(encoding="utf-8")
    assert second.count("## Quality") == 1 and "4711 tokens" in second
    assert second == first.replace("186 tokens", "4711 tokens")


def test_a_card_without_the_heading_gets_the_table_at_its_end() -> None:
    card = with_measurements("# Mine\n", "| a |", "Says.", "ggufsmith eval")
    assert card.startswith("# Mine\n\n<!-- measured") and card.endswith(f"{MEASURED[1]}\n")
