"""No file that a command writes is one that it reads, or one that it writes already: refused before the work."""

import shutil
from pathlib import Path

import pytest
import small_models as models
from click.testing import Result
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import app

RECIPE = 'extends = "q4_0"\n'
TEXT = "The quick brown fox jumps over the lazy dog. " * 200
JOB = """output = "out"
[[model]]
source = "m"
outtypes = ["f16"]
recipes = ["mine.toml"]
checksums = "SUMS"
metadata = "keys.json"
"""


def command(words: str) -> Result:
    result: Result = CliRunner().invoke(app, words.split())
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one input of every kind, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    models.write_model(tmp_path / "g.gguf")
    models.write_imatrix(tmp_path / "i.gguf", models.importance(models.arrays()))
    (tmp_path / "out" / "m").mkdir(parents=True)
    checkpoints.write("llama", tmp_path / "m", num_hidden_layers=1)
    shutil.copytree(tmp_path / "m", tmp_path / "tk")
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "m" / "pytorch_model.bin")  # which is not read
    texts = {"mine.toml": RECIPE, "base.toml": RECIPE, "top.toml": 'extends = "base.toml"\n', "jobs.toml": JOB}
    texts |= {"text.txt": TEXT, "types.txt": "ffn_down=q8_0\n", "keys.json": "{}", "card.j2": "{{ name }}"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


QUANT = "quant g.gguf --no-sync"
CONVERT = "convert m --no-sync"
REFUSED = [
    *(f"batch jobs.toml --{kind}={path}" for kind in ("report", "junit") for path in (
        "jobs.toml", "mine.toml", "keys.json", "m/config.json", "m/model.safetensors", "m/pytorch_model.bin",
        "out/m/m-F16.gguf", "out/m/m-F16-00001-of-00002.gguf", "out/m/m-MINE.gguf", "out/m/SUMS", "out/m/.m.batch.json",
    )),
    "batch jobs.toml --report=x --junit=x",
    "batch jobs.toml --report=new.json --junit=./out/../new.json",
    f"{QUANT} -r mine.toml -o mine.toml",
    f"{QUANT} -r top.toml -o base.toml",
    f"{QUANT} -r q4_0 --tensor-type-file types.txt -o types.txt",
    f"{QUANT} --target-size 2M -o t.toml --save-recipe t.toml",
    f"{QUANT} -r q4_0 --tokenizer tk -o tk/model.safetensors",
    f"{QUANT} -r q4_0 --tokenizer tk -o tk/tokenizer.model",
    f"{CONVERT} -o m/pytorch_model.bin",
    f"{CONVERT} --card --outfile README.md",
    "inspect g.gguf --html g.html",
    "card g.gguf -o g.gguf",
    "card g.gguf --card-template card.j2 -o card.j2",
    "modelfile g.gguf -o g.gguf",
    "imatrix --in i.gguf -o i.gguf",
    "imatrix m -o m/model.safetensors",
    "imatrix m --text text.txt -o text.txt",
    "sensitivity m -o m/config.json",
    "sensitivity m --text text.txt -o text.txt",
    "eval --against m -r mine.toml --csv mine.toml",
    "eval --against m -r q4_0 --csv m/model.safetensors",
    "eval --against m -r q4_0 --text text.txt --csv text.txt",
    "eval --against m g.gguf --csv g.gguf",
    "eval --against m g.gguf --csv new.svg --plot new.svg",
]  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_it_is_refused_and_nothing_changes(place: Path, words: str) -> None:
    if "g.html" in words:
        (place / "g.html").symlink_to("g.gguf")
    before = bytes_of(place)
    done = command(words)
    assert done.exit_code == 6, done.output
    assert bytes_of(place) == before


def test_the_same_command_twice_is_fine(place: Path) -> None:
    """What a run left beside the model is not an input of the next."""
    for _ in range(2):
        for words in (
            f"{CONVERT} --target-size 2M --save-recipe m/r.toml --provenance --card -o m/x.gguf",
            f"{QUANT} -r mine.toml --tokenizer tk -o tk/x.gguf",
            "batch jobs.toml --report=out/r.json --junit=out/r.xml --no-sync",
            "inspect g.gguf --html page.html",
        ):
            done = command(words)
            assert done.exit_code == 0, f"{words}\n{done.output}"


def test_finished_outputs_are_kept(place: Path) -> None:
    assert command("batch jobs.toml --no-sync").exit_code == 0
    before = bytes_of(place)
    for name in ("out/m/m-F16.gguf", "out/m/SUMS"):
        assert command(f"batch jobs.toml --report={name}").exit_code == 6
    assert bytes_of(place) == before


def test_a_draft_keeps_the_weights_of_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.write("llama", tmp_path / "big", num_hidden_layers=1)
    checkpoints.write("llama", tmp_path / "draft", num_hidden_layers=1)
    before = bytes_of(tmp_path)
    done = command("convert draft --target big -o big/model.safetensors")
    assert done.exit_code == 6, done.output
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("key", ['checksums = "jobs.toml"', 'card = "jobs.toml"', 'checksums = "config.json"'])
def test_no_output_of_a_job_is_one_of_its_inputs(place: Path, key: str) -> None:
    folder = "m" if "config" in key else "."
    job = f'output = "."\n[[model]]\nfolder = "{folder}"\nsource = "m"\nouttypes = ["f16"]\n{key}\n'
    (place / "jobs.toml").write_text(job, encoding="utf-8")
    before = bytes_of(place)
    assert command("batch jobs.toml").exit_code == 4
    assert bytes_of(place) == before
