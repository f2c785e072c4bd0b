"""What types cost, as it is measured, against sums over the whole model; and the files that are chosen by it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_models import logits
from numpy.typing import NDArray
from typer.testing import CliRunner

import checkpoints
from ggufsmith.calibrate import measure
from ggufsmith.calibrate.auto import unquantized
from ggufsmith.calibrate.fisher import FisherCollector
from ggufsmith.calibrate.measure import measure_sensitivity
from ggufsmith.calibrate.ready import Readied, readied
from ggufsmith.calibrate.run import calibrated
from ggufsmith.cli.app import app
from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.open import open_pass
from ggufsmith.evaluate.backward import Told, run_backward
from ggufsmith.evaluate.evaluation import EvalTask, evaluate
from ggufsmith.evaluate.variants import read_tensors
from ggufsmith.pipeline.outputs import Written
from ggufsmith.pipeline.request import Request, TextOptions
from ggufsmith.quantize.measured import silently, with_budgets
from ggufsmith.quantize.reference import dequantize
from ggufsmith.quantize.rows import encode
from ggufsmith.quantize.sensitivity import Sensitivity, read_sensitivity, write_sensitivity
from requesting import opened, request
from requesting import run as convert

pytestmark = pytest.mark.conformance

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHUNKS = 2


def text(folder: Path, page: str = "converting") -> Path:
    path = folder / f"{page}.txt"
    path.write_text((DOCS / f"{page}.md").read_text(encoding="utf-8"), encoding="utf-8", newline="\n")
    return path


@contextmanager
def ready(source: Path, folder: Path) -> Iterator[Readied]:
    reading = TextOptions(text=(text(folder),), chunks=CHUNKS, device="cpu")
    with readied(unquantized(request(source)), open_pass, reading) as found:
        yield found


def table(source: Path, folder: Path, **options: Any) -> Sensitivity:
    with ready(source, folder) as found:
        return measure_sensitivity(found, options.pop("effort", None), **options)


def test_losses_are_those_of_the_whole_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all rows measured: 1/2 sum_i F_i / sum F dw_i A dw_i^T, from what is told of every linear."""
    monkeypatch.setattr(measure, "PART", 1)
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    found = table(source, tmp_path)
    told: dict[str, list[Told]] = {}

    def keep(windows: Any) -> None:
        for each in (each for window in windows for each in window):
            told.setdefault(each.tensor, []).append(each)

    with ready(source, tmp_path) as model:
        run_backward(
            model.skeleton,
            model.model.source,
            model.windows.tokens,
            observe=keep,
            finished=lambda block: None,
            device="cpu",
        )
        weights = read_tensors(model.model.source, [*told], threads=1)
        count = model.windows.tokens.size
    assert set(told) | {"output.weight", "token_embd.weight"} == set(found.tensors)
    for name, several in told.items():
        x = torch.cat([each.inputs for each in several]).double()
        g = torch.cat([each.gradients for each in several]).double()
        squares = g.square().sum(1)
        form = BY_NAME["Q4_K"]
        data = np.empty((len(weights[name]), form.nbytes((x.shape[1],))), np.uint8)
        encode(form, weights[name], data, importance=x.square().mean(0).float().numpy())
        error = torch.from_numpy(weights[name] - dequantize(form, data)).double()
        rows = ((x @ error.T).square() * squares[:, None]).sum(0) / count
        share = g.square().sum(0) / g.square().sum()
        assert found.tensors[name].losses["Q4_K"] == pytest.approx(0.5 * (rows @ share).item(), rel=0.02), name


def test_the_same_from_a_file_and_on_any_number_of_threads(tmp_path: Path) -> None:
    source = checkpoints.write("qwen3-moe", tmp_path / "Tiny-2M-v1.0")
    convert(request(source, outtype="f32", outfile=tmp_path / "model.gguf"))
    one = table(source, tmp_path, effort="fast", threads=1)
    two = table(tmp_path / "model.gguf", tmp_path, effort="fast", threads=2)
    assert one == two
    assert {"blk.0.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight", "blk.0.attn_q.weight"} <= set(one.tensors)
    for name, each in one.tensors.items():
        assert each.losses["Q8_0"] < each.losses["Q4_K"] < each.losses["Q2_K"], name
        assert "IQ2_XXS" in each.losses or not name.startswith("blk."), name


def test_refined_types_cost_less(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    plain, refined = table(source, tmp_path), table(source, tmp_path, effort="fast")
    assert (plain.effort, refined.effort) == ("none", "fast") and plain.tokens == CHUNKS * 512
    for type in ("Q3_K", "Q4_K", "IQ4_XS"):
        names = [name for name in plain.tensors if name.startswith("blk.")]
        ratios = [refined.tensors[name].losses[type] / plain.tensors[name].losses[type] for name in names]
        assert np.median(ratios) < 0.8


def make(asked: Request) -> tuple[Written, list[Path]]:
    """As the commands do it."""
    with calibrated(asked, open_pass) as (made, opener):
        solved, _ = with_budgets(made, opener, silently)
        with opener(solved) as planned:
            return planned.run(made.write), [output.paths[0] for output in planned.outputs]


def options(folder: Path, effort: str) -> dict[str, Any]:
    return {
        "calibrate": (text(folder),),
        "calibrate_chunks": CHUNKS,
        "effort": effort,
        "calibrate_device": "cpu",
        "outdir": folder / effort,
    }


@pytest.mark.parametrize("effort", ["none", "fast"])
def test_a_match_is_written_and_read(effort: str, tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    with opened(request(source, "q3_K_M")) as planned:
        wanted = planned.outputs[0].size
    _, (path,) = make(request(source, match=("q3_K_M",), **options(tmp_path, effort)))
    assert 0.97 * wanted < path.stat().st_size < wanted + 2048  # keys on the calibration
    with open_gguf(path) as file:
        said = {key for key in file.metadata if key.startswith("quantize.")}
        types = {name: info.format.name for name, info in file.tensors.items()}
    assert ("quantize.method" in said) == (effort != "none") and "quantize.imatrix.chunks_count" in said
    assert len(set(types.values())) > 3
    assert np.isfinite(logits(path, range(3, 20))).all()


def test_a_dynamic_recipe_spends_its_addition_by_measurement(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    _, (base, path) = make(request(source, recipes=("iq2_xxs", "iq2_xxs_dyn"), **options(tmp_path, "none")))
    size = base.stat().st_size
    assert path.name == "Tiny-2M-v1.0-IQ2_XXS_DYN.gguf" and size < path.stat().st_size <= 1.041 * size
    with open_gguf(path) as file:
        types = {info.format.name for info in file.tensors.values()}
    assert len(types - {"F32"}) > 5, "the rules have fewer"


def test_without_effort_the_bytes_are_those_of_the_plain_quantizer(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    _, (path,) = make(request(source, recipes=("q4_K_M",), **options(tmp_path, "none")))
    from ggufsmith.calibrate.make import make_imatrix
    from ggufsmith.quantize.imatrix.write import write_imatrix

    reading = TextOptions(text=(text(tmp_path),), chunks=CHUNKS, device="cpu")
    imatrix = make_imatrix(unquantized(request(source)), open_pass, reading).imatrix
    write_imatrix(imatrix, tmp_path / "Tiny-2M-v1.0-imatrix.gguf")
    convert(request(source, "q4_K_M", imatrix=tmp_path / "Tiny-2M-v1.0-imatrix.gguf", outdir=tmp_path / "plain"))
    assert path.read_bytes() == (tmp_path / "plain" / path.name).read_bytes()


def test_a_table_that_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    write_sensitivity(table(source, tmp_path, effort="fast"), tmp_path / "t.json")
    _, (measured,) = make(request(source, match=("q4_K_M",), **options(tmp_path, "fast")))
    before = measured.read_bytes()
    monkeypatch.setattr("ggufsmith.calibrate.run.measure_sensitivity", None)
    asked = request(source, match=("q4_K_M",), sensitivity=tmp_path / "t.json", **options(tmp_path, "fast"))
    assert make(asked)[1] == [measured] and measured.read_bytes() == before
    assert read_sensitivity(tmp_path / "t.json").effort == "fast"


def test_the_command_writes_a_table_for_the_option(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0", num_hidden_layers=1)
    words = ["sensitivity", str(source), "--text", str(text(tmp_path)), "--chunks", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--effort", "none", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    path = source / "Tiny-2M-v1.0-sensitivity.json"
    assert report["output"] == str(path) and report["tokens"] == 512
    assert report["tensors"] == len(read_sensitivity(path).tensors) == 9
    words = ["convert", str(source), "--match", "q4_K_M", "--sensitivity", str(path), "-o", str(tmp_path / "m.gguf")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "predicted KL divergence" in " ".join(done.output.split()), done.output
    for wrong, code, said in ((["--effort", "huge"], 2, "unknown effort 'huge'"), (["--no-overwrite"], 6, "exists")):
        done = CliRunner().invoke(app, ["sensitivity", str(source), *wrong])
        assert done.exit_code == code and said in done.output


def test_with_the_best_effort_files_are_measured(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0", num_hidden_layers=1)
    written, (path,) = make(request(source, match=("q4_0",), **options(tmp_path, "best")))
    (note,) = (note for note in written.notes if "measured KL divergence" in note)
    found = evaluate(EvalTask(Request(source), (path,), TextOptions(chunks=10, device="cpu")))
    assert f"{path.name}: measured KL divergence {found.files[0].whole.divergence:.3g} ± " in note


def test_activations_that_are_not_finite() -> None:
    collector = FisherCollector({"a": (4, 8)}, 5, threads=1)
    inputs: NDArray[np.float32] = np.ones((5, 8), np.float32)
    inputs[2, 3] = np.inf
    collector([[Told("a", torch.from_numpy(inputs), torch.ones(5, 4), None)]])
    with pytest.raises(Malformed, match="inputs or gradients of a are NaN"):
        collector.take(["a"])


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    asked = request(source, match=("q4_0",), outdir=tmp_path / "out", calibrate=(tmp_path / "short.txt",))
    with pytest.raises(Usage, match="one window has 512"):
        make(asked)
    assert not (tmp_path / "out").exists()
