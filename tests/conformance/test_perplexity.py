"""Perplexity and divergence against llama-perplexity, on fixtures of several architectures and on a trained model.

What is left of the difference. In float32, our source's perplexity is llama-perplexity's but for the order of sums. Of
quantized files, llama.cpp also rounds the activations to 8 bits, which our torch engine does not: it measures the
weights alone. That is the larger part of the little that Q8_0 loses, so its divergence is compared in the llama.cpp
engine, and that of Q4_0 in both. On the trained model, whose activations have outliers, it moves the perplexity of
Q8_0 by 1 to 3 %, by which our torch engine may differ there; our llama.cpp engine agrees to half a percent.
llama-perplexity keeps the logits of the source in 16 bits, between the largest and 16 below it: steps of at most
16/65535, which add some 1e-9 to a divergence in the mean. A token that follows although it lies below counts as if it
lay 16 below: the perplexity of the source that it prints beside divergences is therefore lower than the one it prints
by itself, by 0.3 % on the trained model; ours is the latter.
"""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import app
from ggufsmith.evaluate.evaluation import EvalTask, evaluate
from ggufsmith.evaluate.judged import Evaluation
from ggufsmith.evaluate.quality import Quality
from ggufsmith.pipeline.request import Request, TextOptions
from llama_tools import divergence, perplexity
from needed import need
from real_model import noised
from requesting import request
from requesting import run as convert

pytestmark = pytest.mark.conformance

KINDS = ("llama", "qwen3", "gemma3", "mixtral")
RECIPES = ("f32", "q8_0", "q4_0")
CONTEXT, CHUNKS, FEW = 64, 12, 6  # windows: of fixtures, and of the trained model
WITHIN = {"F32": 1e-3, "Q8_0": 5e-3, "Q4_0": 5e-3}  # of perplexity, in torch
OUTLIERS = {"F32": 1e-3, "Q8_0": 4e-2, "Q4_0": 4e-2}


def judged(source: Path, files: list[Path], chunks: int, **options: object) -> Evaluation:
    reading = TextOptions(text=(text(source.parent),), context=CONTEXT, chunks=chunks, device="cpu")
    return evaluate(EvalTask(Request(source), tuple(files), reading, **options))  # type: ignore[arg-type]


def text(folder: Path) -> Path:
    """Prose long enough for the windows, whatever the vocabulary."""
    path = folder / "text.txt"
    if not path.exists():
        pages = sorted((Path(__file__).resolve().parents[2] / "docs").glob("*.md"))[:4]
        path.write_text("\n".join(page.read_text(encoding="utf-8") for page in pages), encoding="utf-8", newline="\n")
    return path


def check(folder: Path, source: Path, files: dict[str, Path], chunks: int, within: dict[str, float]) -> None:
    """Both engines against llama-perplexity. files: by the name of their type."""
    page = text(source.parent)
    plain: dict[str, Any] = {"context": CONTEXT, "chunks": chunks, "base": folder / "plain.bin"}
    wanted = perplexity(source, page, **plain)
    theirs = {name: divergence(path, page, **plain) for name, path in files.items()}
    ours = judged(source, list(files.values()), chunks)
    own = ours.source_quality[0]
    assert (own.perplexity, own.perplexity_error) == pytest.approx(wanted, rel=1e-3)
    for name, found in _by_type(ours, files).items():
        assert found.perplexity == pytest.approx(theirs[name]["perplexity"], rel=within[name]), name
        assert found.perplexity_error == pytest.approx(theirs[name]["perplexity_error"], rel=0.05), name
        if name == "Q4_0":
            close(found, theirs[name])
    usual: dict[str, Any] = {**plain, "base": folder / "usual.bin", "options": ()}
    perplexity(source, page, **usual)
    quantized = {name: path for name, path in files.items() if name != "F32"}
    in_llama = judged(source, list(quantized.values()), chunks, engine="llama.cpp")
    for name, found in _by_type(in_llama, quantized).items():
        said = divergence(quantized[name], page, **usual)
        close(found, said)
        assert found.perplexity == pytest.approx(said["perplexity"], rel=5e-3), name


def close(found: Quality, wanted: dict[str, float]) -> None:
    """Every number about the divergence; the mean most closely, then what depends on fewer tokens."""
    assert found.divergence == pytest.approx(wanted["divergence"], rel=0.03, abs=2e-6)
    for key in ("divergence_error", "divergence_median", "divergence_99"):
        assert getattr(found, key) == pytest.approx(wanted[key], rel=0.1, abs=2e-6), key
    assert found.change == pytest.approx(wanted["change"], rel=0.1, abs=1e-5)
    assert found.same_top == pytest.approx(wanted["same_top"], abs=0.03)
    assert found.log_ratio == pytest.approx(wanted["log_ratio"], abs=max(2e-3, wanted["log_ratio_error"]))


def _by_type(found: Evaluation, files: dict[str, Path]) -> dict[str, Quality]:
    of_file = {row.name: row.whole for row in found.files}
    return {name: of_file[path.name] for name, path in files.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_fixtures(kind: str, tmp_path: Path) -> None:
    folder = checkpoints.write(kind, tmp_path / "Tiny-2M-v1.0")
    convert(request(folder, *RECIPES, outdir=tmp_path))
    files = {name: tmp_path / f"Tiny-2M-v1.0-{name}.gguf" for name in WITHIN}
    check(tmp_path, files["F32"], files, CHUNKS, WITHIN)


def test_a_trained_model(tmp_path: Path) -> None:
    (published,) = need("real").glob("*.gguf")
    source = noised(published, tmp_path / "SmolLM2-135M-F32.gguf")
    convert(request(source, "q8_0", "q4_0", outdir=tmp_path))
    files = {name: tmp_path / f"SmolLM2-135M-{name}.gguf" for name in WITHIN}
    check(tmp_path, source, files, FEW, OUTLIERS)


def test_a_recipe_is_judged_as_the_file_that_it_writes(tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    convert(request(folder, "q4_0", outdir=tmp_path))
    reading = TextOptions(text=(text(tmp_path),), context=CONTEXT, chunks=CHUNKS, device="cpu")
    task = EvalTask(request(folder, "q4_0"), (tmp_path / "Tiny-2M-v1.0-Q4_0.gguf",), reading)
    file, recipe = evaluate(task).files
    assert file.whole == recipe.whole
    assert (file.bytes, file.bits_per_weight) == (recipe.bytes, recipe.bits_per_weight)


def test_a_job_puts_the_table_of_eval_into_the_card(tmp_path: Path) -> None:
    checkpoints.write("llama", tmp_path / "Tiny-2M-v1.0")
    lines = ['output = "out"', "[[model]]", 'source = "Tiny-2M-v1.0"', 'recipes = ["q8_0", "q4_0"]']
    job = tmp_path / "job.toml"
    job.write_text("\n".join([*lines, 'card = "README.md"', "quality = true", ""]), encoding="utf-8")
    made = CliRunner().invoke(app, ["batch", str(job)])
    assert made.exit_code == 0, made.output
    (card,) = tmp_path.glob("out/*/README.md")
    text = card.read_text(encoding="utf-8")
    assert "KL divergence" in text and "`Q4_0`** |" in text
    assert "ggufsmith eval Tiny-2M-v1.0-Q8_0.gguf Tiny-2M-v1.0-Q4_0.gguf --against Tiny-2M-v1.0" in text
