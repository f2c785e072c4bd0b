"""Who types what llama.cpp's tools take is told the command that does it here, and that command works."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import adapters
import checkpoints
from ggufsmith.cli.app import app, convert_app, quant_app
from ggufsmith.cli.hints import advice, suspicious
from ggufsmith.quantize.recipes.files import recipe_name

OPTIONS = {"--outfile": True, "-o": True, "--threads": True, "--recipe": True, "-r": True, "--outtype": True}
FLAGS = {"--stream": False, "--dry-run": False, "--quiet": False, "-q": False, "--outdir": True}
APPS = {"gguf-convert": convert_app, "gguf-quant": quant_app, "ggufsmith": app}

# What is typed -> what works.
HABITS = {
    "gguf-convert model --outtype q8_0": "gguf-convert model --recipe q8_0",
    "gguf-convert model --outtype Q4_K_M": "gguf-convert model --recipe q4_K_M",
    "gguf-convert model --outtype=tq2_0 --outfile x.gguf": "gguf-convert model --recipe tq2_0 --outfile x.gguf",
    "gguf-convert model --outtype q4_k_m,q6_k": "gguf-convert model --recipe q4_K_M --recipe q6_K",
    "gguf-convert model q4_k_m": "gguf-convert model --recipe q4_K_M",
    "gguf-convert model q4_k_m q8_0": "gguf-convert model --recipe q4_K_M --recipe q8_0",
    "gguf-convert model out.gguf": "gguf-convert model --outfile out.gguf",
    "gguf-convert model -r q4_0,q8_0": "gguf-convert model --recipe q4_0 --recipe q8_0",
    "gguf-convert model --recipe=q4_0,q8_0 --quiet": "gguf-convert model --recipe q4_0 --recipe q8_0 --quiet",
    "gguf-convert model --type q8_0": "gguf-convert model --recipe q8_0",
    "gguf-convert model --quantize q4_K_M": "gguf-convert model --recipe q4_K_M",
    "gguf-convert model -q q8_0": "gguf-convert model --recipe q8_0",
    "gguf-convert model --quant q8_0 --output x.gguf": "gguf-convert model --recipe q8_0 --outfile x.gguf",
    "gguf-convert --no-lazy --outtype f16 model --verbose": "gguf-convert model --outtype f16",
    "gguf-quant m.gguf q4_0": "gguf-quant m.gguf --recipe q4_0",
    "gguf-quant m.gguf out.gguf Q4_0": "gguf-quant m.gguf --recipe q4_0 --outfile out.gguf",
    "gguf-quant m.gguf out.gguf Q4_0 2": "gguf-quant m.gguf --recipe q4_0 --outfile out.gguf --threads 2",
    "gguf-quant --pure m.gguf out.gguf 7 2": "gguf-quant m.gguf --recipe q8_0 --outfile out.gguf --threads 2 --pure",
    "gguf-quant m.gguf q4_0,q8_0": "gguf-quant m.gguf --recipe q4_0 --recipe q8_0",
    "gguf-quant m.gguf sub/out.gguf q4_0,q8_0": "gguf-quant m.gguf --recipe q4_0 --recipe q8_0 --outdir sub",
    "ggufsmith quant m.gguf Q8_0 --nthreads 1": "ggufsmith quant m.gguf --recipe q8_0 --threads 1",
    "ggufsmith convert model --outtype q8_0": "ggufsmith convert model --recipe q8_0",
    "ggufsmith split --split --split-max-size 1M m.gguf out": "ggufsmith split m.gguf out --split-max-size 1M",
}


CALIBRATING = {**OPTIONS, **FLAGS, "--calibrate": True, "--lora": True}


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("convert", "--calibrate ./model -r q4_0", "./model --calibrate -r q4_0"),
        ("quant", "-r q4_0 --calibrate m.gguf", "m.gguf -r q4_0 --calibrate"),
        ("convert", "--calibrate o/n -r q4_0 --calibrate a.txt", "o/n --calibrate -r q4_0 --calibrate a.txt"),
        ("convert", "model --calibrate texts -r q4_0", None),
        ("convert", "--calibrate mine.txt -r q4_0", None),  # a model is missing, and this is none
        ("convert", "--calibrate texts --lora adapter -r q4_0", None),  # which names its base
        ("convert", "model --calibrate auto -r q4_0", None),
    ],
)
def test_a_model_that_calibrate_took_for_its_text(command: str, words: str, expected: str | None) -> None:
    assert suspicious(words.split())
    found = advice(command, words.split(), CALIBRATING, recipe_name)
    assert (found and " ".join(found.words)) == expected


def test_it_is_said_instead_of_that_there_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for program in ("gguf-convert", "gguf-quant"):
        done = CliRunner().invoke(APPS[program], ["--calibrate", "m.gguf", "-r", "q4_0"])
        said = " ".join(done.output.split())
        assert done.exit_code == 2 and "--calibrate took m.gguf as its text" in said
        assert "m.gguf --calibrate -r q4_0" in said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a file of it."""
    home = tmp_path_factory.mktemp("m")
    checkpoints.write("llama", home / "model")
    done = CliRunner().invoke(convert_app, [str(home / "model"), "-o", str(home / "m.gguf"), "--no-sync"])
    assert done.exit_code == 0, done.output
    return home


def run(line: str, *more: str) -> tuple[int, str, str]:
    program, *words = shlex.split(line)
    done = CliRunner().invoke(APPS[program], [*words, *more], prog_name=program)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("typed", HABITS)
def test_the_advice_works(typed: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a plan; that plans are carried out is shown elsewhere."""
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    code, out, err = run(typed)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.splitlines()[-1] == f"Did you mean: {HABITS[typed]}"
    assert sorted(home.rglob("*")) == before
    code, out, err = run(err.splitlines()[-1].removeprefix("Did you mean: "), "--dry-run")
    assert code == 0, err


def test_a_machine_is_told_too(home: Path) -> None:
    code, out, err = run(f"gguf-convert '{home / 'model'}' q8_0 --json")
    error = json.loads(out)["error"]
    assert (code, err, error["code"]) == (2, "", 2)
    assert error["fix"] == f"Did you mean: gguf-convert {shlex.quote(str(home / 'model'))} --recipe q8_0 --json"


@pytest.mark.parametrize(
    "line",
    [
        "gguf-convert model --outtype q9_9",
        "gguf-convert model unknown",
        "gguf-convert model q8_0 unknown",
        "gguf-convert model q8_0 --no-such-option",
        "gguf-convert model a.gguf b.gguf",
        "gguf-quant m.gguf 8",
        "gguf-convert model -r q8_0,unknown",
    ],
)
def test_no_advice_without_an_idea(line: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    code, _, err = run(line)
    assert code == 2 and "Did you mean: " not in err


def test_an_adapter_is_never_quantized(home: Path, tmp_path: Path) -> None:
    adapters.write(home / "model", tmp_path / "Chat")
    code, _, err = run(f"gguf-convert {tmp_path / 'Chat'} --outtype q8_0")
    assert code == 2 and "Did you mean: " not in err


@pytest.mark.parametrize(
    "line",
    [
        "model",
        "model --outtype f16 -r q4_K_M",
        "model --outtype=BF16",
        "model -o a,b.gguf",
        "m.gguf --prune-layers 1,2",
        "q8_0 -r q4_0",
        "-q model",
        "",
    ],
)
def test_our_own_words_are_left_alone(line: str) -> None:
    options = {**OPTIONS, **FLAGS, "--prune-layers": True}
    for command in ("convert", "quant"):
        assert advice(command, line.split(), options, recipe_name) is None


@pytest.mark.parametrize("line", ["model", "model --outtype f16 -o x", "model --outtype=BF16", "--outtype auto model"])
def test_usual_lines_are_not_looked_at_twice(line: str) -> None:
    """What looks for recipes imports much."""
    assert not suspicious(line.split())
