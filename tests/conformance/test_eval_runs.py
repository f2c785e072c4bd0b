"""Whole runs of `ggufsmith eval` on a small model: what it shows, what it writes, and what it refuses in the end."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import app
from ggufsmith.container.reader import open_gguf
from requesting import request
from requesting import run as convert

pytestmark = pytest.mark.conformance


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of two blocks, its files, one text of some windows."""
    monkeypatch.chdir(tmp_path)
    folder = checkpoints.write("llama", tmp_path / "Tiny", num_hidden_layers=2)
    convert(request(folder, "f32", "q8_0", "q4_0", outdir=tmp_path))
    Path("t.txt").write_text("The quick brown fox jumps over the lazy dog, said Mr. Smith.\n" * 60, encoding="utf-8")
    return tmp_path


def judge(*words: str, chunks: int = 1, context: int = 32) -> Result:
    usual = f"--text t.txt --chunks {chunks} --context {context} --device cpu".split()
    against = [] if "--against" in words else ["--against", "Tiny-F32.gguf"]
    result: Result = CliRunner().invoke(app, ["eval", *words, *against, *usual])
    return result


def overflowing(path: str) -> None:
    """Of Tiny-F32.gguf: weights that are finite, and with which nothing else is."""
    Path(path).write_bytes(Path("Tiny-F32.gguf").read_bytes())
    with open_gguf(path) as file:
        places = [(each.offset, each.nbytes) for name, each in file.tensors.items() if name.startswith("output")]
        start = file.data_start
    with open(path, "r+b") as stored:
        for offset, nbytes in places:
            stored.seek(start + offset)
            weights = np.frombuffer(stored.read(nbytes), np.float32)
            stored.seek(start + offset)
            stored.write((weights * np.float32(1e30)).tobytes())


def test_what_overflows_is_an_error_and_nothing_is_written(home: Path) -> None:
    overflowing("big.gguf")
    outputs = ("--csv", "n.csv", "--plot", "n.svg", "--card")
    for extra in ((), ("--json",), ("--compare", "Tiny-Q4_0.gguf", "big.gguf")):
        done = judge("big.gguf", "Tiny-Q4_0.gguf", *outputs, *extra)
        assert done.exit_code == 4, done.output
        assert "big.gguf" in done.output and "the model computes NaN or infinity at 15 of 15" in " ".join(
            done.output.split()
        )
    done = judge("Tiny-Q4_0.gguf", *outputs, "--against", "big.gguf")
    assert done.exit_code == 4 and "the source computes NaN or infinity" in done.output
    assert not any(Path(name).exists() for name in ("n.csv", "n.svg", "README.md"))


def test_shards_and_links_are_judged_once(home: Path) -> None:
    assert CliRunner().invoke(app, "split Tiny-Q4_0.gguf S --split-max-tensors 5".split()).exit_code == 0
    shards = sorted(path.name for path in home.glob("S-*.gguf"))
    Path("link.gguf").symlink_to("Tiny-Q8_0.gguf")
    done = judge(*shards, "Tiny-Q8_0.gguf", "link.gguf", "--json")
    report = json.loads(done.stdout)
    assert [row["name"] for row in report["files"]] == [shards[0], "Tiny-Q8_0.gguf"]
    assert [f"was named {count} times" in note for count, note in zip((len(shards), 2), report["notes"], strict=True)]


def test_files_of_equal_name_are_told_apart(home: Path) -> None:
    for folder, name in (("one", "Q8_0"), ("two", "Q4_0")):
        Path(folder).mkdir()
        Path(folder, "A.gguf").write_bytes(Path(f"Tiny-{name}.gguf").read_bytes())
    pair = ("one/A.gguf", "two/A.gguf")
    done = judge(*pair, "--compare", *pair, "--csv", "a.csv", "--card", chunks=6)
    assert done.exit_code == 0, done.output
    assert "two/A diverges" in done.stdout and "one/A is closer to the source" in done.stdout
    card = Path("one", "README.md").read_text(encoding="utf-8")
    assert "`one/A`" in card and "`two/A`" in card and "ggufsmith eval two/A.gguf one/A.gguf --against" in card
    with open("a.csv", encoding="utf-8") as table:
        assert {row["name"] for row in csv.DictReader(table)} == set(pair)
    refused = judge(*pair, "--compare", "A.gguf", "two/A.gguf")
    assert refused.exit_code == 2 and "Choose two of one/A.gguf, two/A.gguf." in refused.output


def test_one_window_and_one_token_say_what_cannot_be_known(home: Path) -> None:
    pair = ("Tiny-Q8_0.gguf", "Tiny-Q4_0.gguf")
    done = judge(*pair, "--compare", *pair)
    assert "in 1 window, but an interval takes 6 windows" in " ".join(done.stdout.split())
    report = json.loads(judge("Tiny-Q4_0.gguf", "--json", context=4).stdout)
    whole = report["files"][0]["quality"][0]
    assert whole["tokens"] == 1 and whole["divergence"] > 0
    assert {value for name, value in whole.items() if name.endswith("_error")} == {None}
    said = " ".join(judge("Tiny-Q4_0.gguf", context=4).stdout.split())
    assert f"{whole['divergence']:.3g} {whole['divergence_999']:.3g}" in said and "±" not in said
    assert "1 token scored" in said


def test_the_table_goes_to_standard_output(home: Path) -> None:
    done = judge("Tiny-Q4_0.gguf", "--csv", "-")
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert row["name"] == "Tiny-Q4_0.gguf" and not Path("-").exists()
