"""`ggufsmith imatrix` without a model: merging, converting between the formats, statistics, and errors."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_models as models
from commands import run

import checkpoints
from ggufsmith.calibrate import make
from ggufsmith.cli.convert import convert
from ggufsmith.cli.imatrix import imatrix
from ggufsmith.cli.quant import quant
from ggufsmith.cli.sensitivity import sensitivity
from ggufsmith.container.reader import open_gguf
from ggufsmith.evaluate import needed
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.write import write_imatrix


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
        (["--in", "model.gguf", "-o", "x"], 2, "Name a file that llama-imatrix"),
        (["--in", "junk.dat", "-o", "x"], 4, "4 bytes follow"),
        (["--in", "one.gguf", "--show-statistics", "--format", "dat"], 2, "--format would do nothing"),
        (["--in", "one.gguf", "--show-statistics", "--no-overwrite"], 2, "--no-overwrite would do nothing"),
    ],
)
def test_errors(arguments: list[str], code: int, said: str, home: Path) -> None:
    models.write_imatrix(home / "other.gguf", models.importance(models.arrays(width=32)))
    models.write_model(home / "model.gguf")
    (home / "junk.dat").write_bytes((home / "two.dat").read_bytes() + b"junk")
    before = sorted(home.iterdir())
    done = run(imatrix, *arguments)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize(
    "option",
    [
        "--text t.txt",
        "--context 64",
        "--chunks 3",
        "--device cuda",
        "--lora nope",
        "--revision main",
        "--token x",
        "--threads 2",
        "--process-output",
    ],
)
@pytest.mark.parametrize("rest", [["-o", "x.gguf"], ["--show-statistics"]])
def test_options_about_running_need_a_model(option: str, rest: list[str], home: Path) -> None:
    done = run(imatrix, "--in", "one.gguf", *option.split(), *rest)
    assert done.exit_code == 2 and "MODEL" in done.output, done.output
    assert option.split()[0] in done.output
    assert not (home / "x.gguf").exists()


def test_the_length_of_chunks_is_said_where_a_file_does_not(home: Path) -> None:
    """Which is the only thing that --context is for where nothing is run."""
    said = [
        run(imatrix, "--in", "two.dat", "-o", "x.gguf", *more, "--json").stdout for more in ([], ["--context", "64"])
    ]
    first, second = map(json.loads, said)
    assert (first["chunk_size"], second["chunk_size"]) == (512, 64)
    assert first["notes"] == ["two.dat: the file does not say how many tokens a chunk has; 512 were assumed"]
    assert first["device"] is None and first["dtype"] is None


def test_chunks_of_several_lengths_are_added_by_their_tokens(home: Path) -> None:
    means = models.importance(models.arrays())
    for name, size in (("long.gguf", 512), ("short.gguf", 4)):
        counts = {tensor: [2.0 * size] * len(values) for tensor, values in means.items()}
        found = open_imatrix(models.write_imatrix(home / "plain.gguf", means, counts))
        write_imatrix(replace(found, chunks=2, chunk_size=size), home / name)
    done = run(imatrix, "--in", "long.gguf", "--in", "short.gguf", "-o", "x.gguf")
    assert "2 chunks of 512 tokens" in done.output, done.output
    assert "chunks of 4 and 512 tokens were added" in " ".join(done.output.split())
    done = run(imatrix, "--in", "short.gguf", "-o", "x.gguf")
    assert "2 chunks of 4 tokens" in done.output and "note" not in done.output, done.output


@pytest.mark.parametrize("command", [[imatrix, "--in", "bad.gguf", "-o", "x"], [quant, "m.gguf", "-r", "q4_0"]])
def test_all_bad_entries_are_named_at_once(command: list[Any], home: Path) -> None:
    means = models.importance(models.arrays(width=256))
    first, second, third, *_ = means
    means[third][0, 0] = np.nan
    models.write_imatrix(home / "bad.gguf", means, {first: [0.0], second: [0.0]})
    models.write_model(home / "m.gguf", width=256)
    quantizes = command[0] is quant
    done = run(*command, *(["--imatrix", "bad.gguf", "-o", "x"] if quantizes else []))
    assert done.exit_code == 4 and "3 entries" in done.output, done.output
    said = " ".join(done.output.split())
    assert f"no counts: the matrix was never used: {first}, {second}" in said
    assert f"NaN or infinite: {third}" in said
    options = re.search(r"gguf-quant or gguf-convert the options (.*)$", said)
    assert options, said
    done = run(quant, "m.gguf", "-r", "q4_0", "--imatrix", "bad.gguf", "-o", "x.gguf", *options[1].split())
    assert done.exit_code == 0, done.output


def test_what_does_not_fit_is_found_before_the_model_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of another size, a stack of other counts, another model, and too little room."""

    def never(*given: object, **more: object) -> None:
        raise AssertionError("the model is run")

    monkeypatch.setattr(make, "make_imatrix", never)
    monkeypatch.setattr(needed, "need_libraries", lambda: None)
    checkpoints.write("mixtral", home / "Tiny")
    assert run(convert, "Tiny", "--outtype", "f32", "-o", "Tiny.gguf").exit_code == 0
    with open_gguf(home / "Tiny.gguf") as file:
        shapes = {name: each.shape for name, each in file.tensors.items() if len(each.shape) == 3}
    stack, shape = next(iter(shapes.items()))
    bad = {
        "narrow": {stack: np.ones((shape[0], shape[-1] // 2), np.float32)},
        "counts": {stack: np.ones((2, shape[0] // 2 * shape[-1]), np.float32)},
        "stranger": {"blk.0.no_such.weight": np.ones((1, shape[-1]), np.float32)},
    }
    for name, means in bad.items():
        models.write_imatrix(home / f"{name}.gguf", means)
        done = run(imatrix, "Tiny", "--in", f"{name}.gguf", "-o", "x.gguf")
        assert done.exit_code == 4 and re.search("different models|another model", done.output), done.output
        assert f"{name}.gguf" in done.output
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    for format in ("gguf", "dat"):
        done = run(imatrix, "Tiny", "-o", f"x.{format}")
        assert done.exit_code == 5 and "only 1000 are free" in done.output, done.output


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
