"""`ggufsmith imatrix` and its kin where a model is run: what they report, and what their errors advise."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_models as models
from commands import run

import checkpoints
from ggufsmith.calibrate.price import ModelRuns, run_seconds
from ggufsmith.cli.convert import convert
from ggufsmith.cli.eval import evaluate
from ggufsmith.cli.imatrix import imatrix
from ggufsmith.cli.quant import quant
from ggufsmith.cli.sensitivity import sensitivity
from ggufsmith.cli.verify import verify
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.reader import open_gguf

pytestmark = pytest.mark.conformance
SHORT = ("--chunks", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.write("llama", tmp_path_factory.mktemp("run") / "Tiny")
    done = run(convert, folder, "--outtype", "f32", "-o", folder.parent / "F32.gguf")
    assert done.exit_code == 0, done.output
    return folder.parent / "F32.gguf"


def with_factor(model: Path, tensor: str, factor: float, path: Path) -> Path:
    """The file with one tensor of it multiplied."""
    data = bytearray(model.read_bytes())
    with open_gguf(model) as gguf:
        info = gguf.tensors[tensor]
        assert info.format is BY_NAME["F32"]
    values = np.frombuffer(data, "<f4", info.nbytes // 4, info.offset)
    data[info.offset : info.offset + info.nbytes] = (values * np.float32(factor)).astype("<f4").tobytes()
    path.write_bytes(data)
    return path


def test_where_numbers_stop_being_finite(model: Path, tmp_path: Path) -> None:
    """The first block is named, with its largest weights, and `verify` finds which of them are wrong."""
    # The norms after this one make zeros of what they are given.
    big = with_factor(model, "blk.0.ffn_down.weight", 1e30, tmp_path / "big.gguf")
    done = run(imatrix, big, *SHORT, "-o", tmp_path / "i.gguf")
    assert done.exit_code == 0 and "all inputs were 0, or too large" in " ".join(done.output.split()), done.output
    tensor = "blk.1.ffn_norm.weight"
    big = with_factor(model, tensor, 1e30, tmp_path / "big.gguf")
    done = run(imatrix, big, *SHORT, "-o", tmp_path / "i.gguf", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.exit_code == 4, done.output
    assert "first in block 1" in error["what"] and "blk.1.ffn_" in error["what"], error
    assert error["also"][0].startswith(f"the largest weight of {tensor} is ")
    assert "ggufsmith verify FILE --source MODEL" in error["fix"]
    done = run(verify, big, "--source", model, "--json")
    assert done.exit_code == 4 and tensor in done.stdout, done.output
    done = run(sensitivity, big, *SHORT, "-o", tmp_path / "s.json")
    assert done.exit_code == 4 and "ggufsmith imatrix MODEL" in done.output, done.output


@pytest.mark.parametrize(("command", "name"), [(imatrix, "i.gguf"), (sensitivity, "s.json")])
def test_reports_say_where_and_in_which_numbers_the_model_ran(
    command: object, name: str, model: Path, tmp_path: Path
) -> None:
    for more in ([], ["--json"]):
        done = run(command, model, *SHORT, "-o", tmp_path / name, *more)  # type: ignore[arg-type]
        assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["device"], report["dtype"]) == ("cpu", "float32")
    plain = run(command, model, *SHORT, "-o", tmp_path / name)  # type: ignore[arg-type]
    assert "in float32 on cpu" in plain.output


def test_small_blocks_are_estimated_to_take_longer_for_the_same_work() -> None:
    """Beside the products of matrices there is much else."""
    narrow, wide = (run_seconds(ModelRuns(10**12, {}, "cpu", width), 1) for width in (64, 1024))
    assert narrow > 2 * wide > 0


def test_one_of_a_kind_is_said_as_one(model: Path, tmp_path: Path) -> None:
    done = run(imatrix, model, "--chunks", 1, "--device", "cpu", "-o", tmp_path / "i.gguf")
    assert "1 chunk of 512 tokens" in done.output, done.output


def test_advice_for_other_programs_names_them(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What eval and imatrix have no option for, gguf-quant and gguf-convert have."""
    monkeypatch.chdir(tmp_path)
    models.write_model(tmp_path / "narrow.gguf")
    for command, words, option in (
        (evaluate, ["--against", "narrow.gguf", "-r", "q1_0"], "--tensor-type of gguf-quant and gguf-convert"),
        (
            evaluate,
            ["--against", model, "-r", "q4_0", "--imatrix", "bad.gguf"],
            "gguf-quant or gguf-convert the options",
        ),
    ):
        with open_gguf(model) as gguf:
            shape = gguf.tensors["blk.0.attn_q.weight"].shape
        means = {f"blk.{k}.attn_q.weight": np.ones((1, shape[-1]), np.float32) for k in range(2)}
        models.write_imatrix(tmp_path / "bad.gguf", means, {"blk.0.attn_q.weight": [0.0]})
        done = run(command, *words, *SHORT)
        assert done.exit_code in (3, 4), done.output
        assert option in " ".join(done.output.split()), done.output
    done = run(quant, "narrow.gguf", "-r", "q1_0", "--tensor-type", ".*=q4_0", "-o", "q.gguf")
    assert done.exit_code == 0, done.output
