"""`--calibrate` as a whole: llama.cpp loads what it writes, and the model loses less than with plain bytes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_models import logits

import checkpoints
import tiny
import zoo
from ggufsmith.calibrate.gram import GramCollector, Inputs
from ggufsmith.calibrate.head import inputs_of
from ggufsmith.calibrate.run import calibrated
from ggufsmith.container.errors import Usage
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.open import open_pass
from ggufsmith.evaluate.evaluation import EvalTask, evaluate
from ggufsmith.pipeline.outputs import Written
from ggufsmith.pipeline.request import Request, TextOptions
from needed import need
from real_model import noised
from requesting import request
from requesting import run as convert

pytestmark = pytest.mark.conformance

DOCS = Path(__file__).resolve().parents[2] / "docs"


def text(folder: Path, *pages: str) -> Path:
    path = folder / f"{pages[0]}.txt"
    said = "\n".join((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in pages)
    path.write_text(said, encoding="utf-8", newline="\n")
    return path


def make(asked: Request) -> Written:
    """As the commands do it."""
    with calibrated(asked, open_pass) as (ready, opener), opener(ready) as planned:
        return planned.run(ready.write)


def options(folder: Path, chunks: int = 4, effort: str = "fast") -> dict[str, object]:
    return {
        "calibrate": (text(folder, "converting", "batch", "files"),),
        "calibrate_chunks": chunks,
        "effort": effort,
        "calibrate_device": "cpu",
    }


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3-moe"])
def test_llama_cpp_runs_the_file(kind: str, tmp_path: Path) -> None:
    source = checkpoints.write(kind, tmp_path / "Tiny-2M-v1.0")
    convert(request(source, "q4_K_M", outdir=tmp_path / "plain"))
    written = make(request(source, "q4_K_M", outdir=tmp_path / "calibrated", **options(tmp_path)))
    (plain,), (better,) = ((tmp_path / name).glob("*.gguf") for name in ("plain", "calibrated"))
    with open_gguf(plain) as one, open_gguf(better) as other:
        types = [{name: info.format.name for name, info in file.tensors.items()} for file in (one, other)]
        said = {key: value.data for key, value in other.metadata.items() if key.startswith("quantize.")}
        assert Counter(types[0].values()) == Counter(types[1].values())
    assert said["quantize.method"] == "ggufsmith-calibrated" and said["quantize.calibration.effort"] == "fast"
    assert said["quantize.calibration.tokens"] == 4 * 512 and said["quantize.imatrix.chunks_count"] == 4
    assert any("calibration took" in note for note in written.notes)
    assert np.isfinite(logits(better, range(3, 40))).all()


@pytest.mark.parametrize("name", ["qwen3_5", "deepseek-v3", "gemma4-26b"])
def test_of_what_is_written_otherwise_in_transformers(name: str, tmp_path: Path) -> None:
    """Linear attention with regrouped heads, latent attention, experts with gate and up in one."""
    source = tmp_path / "Tiny-2M-v1.0"
    source.mkdir()
    zoo.write(name, source, wide=True, dtype="bfloat16")
    written = make(request(source, "q4_K_M", outdir=tmp_path / "made", **options(tmp_path, chunks=2)))
    assert not any("were not refined" in note or "without importance" in note for note in written.notes)
    assert np.isfinite(logits(next((tmp_path / "made").glob("*.gguf")), range(3, 40))).all()


def test_experts_in_mxfp4_stay_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "Tiny-2M-v1.0"
    source.mkdir()
    zoo.write("gpt-oss", source, wide=True, dtype="bfloat16")
    tiny.to_mxfp4(source)
    convert(request(source, "mxfp4_moe", outfile=tmp_path / "plain.gguf"))
    make(request(source, "mxfp4_moe", outfile=tmp_path / "made.gguf", **options(tmp_path, chunks=2)))
    one, other = tensors(tmp_path / "plain.gguf"), tensors(tmp_path / "made.gguf")
    experts = [name for name, (kind, _) in one.items() if kind == "MXFP4"]
    assert len(experts) == 12 and all(one[name] == other[name] for name in experts)
    assert any(one[name] != other[name] for name in one)


@pytest.mark.parametrize(("kind", "head"), [("llama", "output.weight"), ("gemma3", "token_embd.weight")])
def test_the_matrix_of_the_logits_is_refined(kind: str, head: str, tmp_path: Path) -> None:
    """Also if it is the embedding; an embedding that is nothing else has no inputs that could be summed."""
    source = checkpoints.write(kind, tmp_path / "Tiny-2M-v1.0")
    convert(request(source, "q4_K_M", outfile=tmp_path / "plain.gguf"))
    make(request(source, "q4_K_M", outfile=tmp_path / "made.gguf", **options(tmp_path, chunks=2)))
    one, other = tensors(tmp_path / "plain.gguf"), tensors(tmp_path / "made.gguf")
    assert one[head][0] == other[head][0] and one[head] != other[head]
    assert head == "token_embd.weight" or one["token_embd.weight"] == other["token_embd.weight"]


def test_an_embedding_that_makes_the_logits_counts_for_both_uses() -> None:
    h = np.array([[4, 1], [1, 2]], np.float32)
    given = Inputs((h,), (7,))
    assert inputs_of("output.weight", given) is given
    (found,) = inputs_of("token_embd.weight", given).h
    assert found.dtype == np.float32 and np.allclose(found, h + 0.9 * np.eye(2))


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    data = path.read_bytes()
    with open_gguf(path) as file:
        return {i.name: (i.format.name, data[i.offset : i.offset + i.nbytes]) for i in file.tensors.values()}


def test_the_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    for threads in (1, 2):
        make(request(source, "q4_K_M", outdir=tmp_path / str(threads), threads=threads, **options(tmp_path)))
    one, two = (next((tmp_path / name).glob("*.gguf")).read_bytes() for name in "12")
    assert one == two


def test_several_recipes_in_one_pass(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    make(request(source, "q4_K_M", "q3_K_M", outdir=tmp_path / "both", **options(tmp_path)))
    make(request(source, "q3_K_M", outdir=tmp_path / "one", **options(tmp_path)))
    name = "Tiny-2M-v1.0-Q3_K_M.gguf"
    assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_keys_go_when_the_file_is_quantized_again(tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    make(request(source, "q8_0", outdir=tmp_path, **options(tmp_path)))
    convert(request(tmp_path / "Tiny-2M-v1.0-Q8_0.gguf", "q4_0", outdir=tmp_path, allow_requantize=True))
    with open_gguf(tmp_path / "Tiny-2M-v1.0-Q4_0.gguf") as file:
        assert not [key for key in file.metadata if key.startswith(("quantize.method", "quantize.calibration"))]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"imatrix": Path("auto")}, "--imatrix cannot be combined with --calibrate"),
        ({"scheduler": "tcp://localhost:1"}, "--scheduler cannot be combined"),
        ({"recipes": ()}, "but no recipe"),
        ({"effort": "huge"}, "unknown effort 'huge'"),
    ],
)
def test_options_that_do_not_go_together(given: dict[str, object], what: str, tmp_path: Path) -> None:
    source = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    asked = request(source, **{"recipes": ("q4_K_M",), **options(tmp_path), "outdir": tmp_path / "out", **given})
    with pytest.raises(Usage, match=what):
        make(asked)
    assert not (tmp_path / "out").exists()


def test_a_trained_model_loses_less(tmp_path: Path) -> None:
    (published,) = need("real").glob("*.gguf")
    source = noised(published, tmp_path / "SmolLM2-135M-F32.gguf")
    convert(request(source, "q4_0", pure=True, outdir=tmp_path))
    (plain := tmp_path / "SmolLM2-135M-Q4_0.gguf").rename(tmp_path / "plain.gguf")
    make(request(source, "q4_0", pure=True, outdir=tmp_path, **options(tmp_path, chunks=8)))
    plain.rename(tmp_path / "calibrated.gguf")
    assert (tmp_path / "calibrated.gguf").stat().st_size == pytest.approx(
        (tmp_path / "plain.gguf").stat().st_size, abs=4096
    )
    reading = TextOptions(text=(text(tmp_path, "quantizing", "hub"),), context=256, chunks=4, device="cpu")
    files = tuple(tmp_path / name for name in ("plain.gguf", "calibrated.gguf"))
    plain, calibrated = evaluate(EvalTask(Request(source), files, reading)).files
    assert calibrated.whole.divergence < 0.75 * plain.whole.divergence
    assert (plain.group, calibrated.group) == (tmp_path.name, f"{tmp_path.name}, calibrated")


def test_sums_are_those_of_the_inputs() -> None:
    collector = GramCollector({"a": (4, 8), "b": (6, 8), "e": (2, 4, 8)})
    torch.manual_seed(1)
    x = [torch.randn(5, 8) for _ in range(3)]
    for each in x:
        collector("a", each, None)
        collector("b", each, None)
        collector("other", each, None)
    collector("e", x[0], 1)
    found = collector.take(["a", "b", "e"])
    wanted = sum((each.double().T @ each.double()).numpy() for each in x) / 15
    assert np.allclose(found["a"].h[0], wanted, atol=1e-6) and found["a"].counts == (15,)
    assert found["a"] is found["b"], "one sum for the same inputs"
    own = (x[0].double().T @ x[0].double()).numpy() / 5
    assert not found["e"].h[0].any(), "an expert without tokens is not refined"
    assert np.allclose(found["e"].h[1], own, atol=1e-6) and found["e"].counts == (0, 5)
