"""`ggufsmith imatrix` without a model: merging, converting between the formats, statistics, and errors."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_models as models
from commands import run

import checkpoints
from ggufsmith.cli.convert import convert
from ggufsmith.cli.imatrix import imatrix
from ggufsmith.cli.quant import quant
from ggufsmith.cli.sensitivity import sensitivity
from ggufsmith.evaluate import needed
from ggufsmith.quantize.imatrix.read import open_imatrix


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    means = models.importance(models.arrays())
    models.write_imatrix(Path("one.gguf"), means)
    Path("two.dat").write_bytes(models.legacy_bytes(means))
    stack = "blk.1.ffn_up_exps.weight"
    models.write_imatrix(Path("uneven.gguf"), {stack: means[stack]}, {stack: [4, 0, 1]})
    return tmp_path


def test_merging_both_formats_into_either(home: Path) -> None:
    for name, format in (("both.gguf", "gguf"), ("both.dat", "dat")):
        done = run(imatrix, "--in", "one.gguf", "--in", "two.dat", "-o", name)
        assert done.exit_code == 0, done.output
        assert name in done.output and "calibration.txt, calibration.txt" in done.output
        assert (home / name).read_bytes().startswith(b"GGUF") == (format == "gguf")
        means = models.importance(models.arrays())
        for tensor, entry in open_imatrix(home / name).entries.items():
            np.testing.assert_allclose(entry.weights, means[tensor].reshape(-1), rtol=1e-5)
    assert run(imatrix, "--in", "one.gguf", "-o", "odd.name", "--format", "dat").exit_code == 0
    assert not (home / "odd.name").read_bytes().startswith(b"GGUF")


def test_a_report_for_machines(home: Path) -> None:
    done = run(imatrix, "--in", "uneven.gguf", "--json", "--show-statistics")
    report = json.loads(done.stdout)
    assert report["output"] is None and report["entries"] == 1 and report["chunk_size"] == 512
    assert report["unused_experts"] == {"blk.1.ffn_up_exps.weight": [1]}
    assert report["tensors"][0]["unused"] == 1 and report["layers"][0]["layer"] == 1
    made = json.loads(run(imatrix, "--in", "one.gguf", "-o", "x.gguf", "--json").stdout)
    assert made["output"] == "x.gguf" and made["bytes"] == (home / "x.gguf").stat().st_size and "tensors" not in made


def test_statistics_write_nothing_and_say_what_is_not_covered(home: Path) -> None:
    before = sorted(home.iterdir())
    done = run(imatrix, "--in", "uneven.gguf", "--show-statistics")
    assert done.exit_code == 0 and sorted(home.iterdir()) == before
    assert "1 of 3" in done.output and "blk.1: 1 of 3 experts saw no token: 1" in done.output
    assert "count equally" in done.output
    even = run(imatrix, "--in", "one.gguf", "--show-statistics")
    assert "every expert saw tokens, at least 4 tokens" in even.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "no model was given"),
        (["--in", "one.gguf"], 2, "-o FILE"),
        (["--in", "one.gguf", "-o", "x", "--format", "json"], 2, "gguf, dat"),
        (["--in", "one.gguf", "-o", "one.gguf"], 6, "input"),
        (["--in", "one.gguf", "-o", "two.dat", "--no-overwrite"], 6, "exists"),
        (["--in", "absent", "-o", "x"], 2, "absent"),
        (["--in", "one.gguf", "--in", "other.gguf", "-o", "x"], 4, "different models"),
        (["--in", "model.gguf", "-o", "x"], 2, "not an importance matrix"),
    ],
)
def test_errors(arguments: list[str], code: int, said: str, home: Path) -> None:
    models.write_imatrix(home / "other.gguf", models.importance(models.arrays(width=32)))
    models.write_model(home / "model.gguf")
    before = sorted(home.iterdir())
    done = run(imatrix, *arguments)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize("command", [quant, convert])
def test_a_dry_run_with_auto_says_what_would_be_made(command: Callable[..., None], home: Path) -> None:
    models.write_model(home / "Tiny-F16.gguf", width=256)
    before = sorted(home.iterdir())
    done = run(command, "Tiny-F16.gguf", "-r", "iq2_xs", "--imatrix", "auto", "--keep-imatrix", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "importance matrix would first be made" in done.output and "IQ2_XS" in done.output
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize(
    "arguments", [(imatrix, "Tiny"), (convert, "Tiny", "-r", "q4_0", "--imatrix", "auto"), (sensitivity, "Tiny")]
)
def test_without_torch_nothing_begins(
    arguments: tuple[Callable[..., None], str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an installation without the extra, with a model that nothing else is wrong with."""
    monkeypatch.setattr(needed, "LIBRARIES", ("torch_that_is_not_there",))
    checkpoints.write("llama", home / "Tiny")
    before = sorted(home.iterdir())
    done = run(*arguments)
    assert done.exit_code == 3 and "ggufsmith[eval]" in done.output, done.output
    assert sorted(home.iterdir()) == before


def test_what_does_not_fit_auto(home: Path) -> None:
    models.write_model(home / "Tiny-F16.gguf", width=256)
    done = run(quant, "Tiny-F16.gguf", "-r", "q4_0", "--keep-imatrix")
    assert done.exit_code == 2 and "--imatrix auto" in done.output
    done = run(quant, "Tiny-F16.gguf", "--outtype", "f32", "--imatrix", "auto")
    assert done.exit_code == 2 and "no recipe" in done.output
