"""`ggufsmith which`."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import run

import checkpoints
import quantized
from ggufsmith.cli.convert import convert
from ggufsmith.cli.which import which


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.write("qwen2", tmp_path / "Tiny-2M")


def report(*arguments: object) -> dict[str, Any]:
    done = run(which, *arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_sizes_are_those_of_the_files(model: Path, tmp_path: Path) -> None:
    found = report(model, "--memory", "8M", "--context", 1024)
    made = run(convert, model, "-r", "q4_K_M", "-r", "q8_0", "--outdir", tmp_path / "out", "--no-sync")
    assert made.exit_code == 0
    files = {fit["recipe"].upper(): fit["file"] for fit in found["recipes"]}
    for name in ("Q4_K_M", "Q8_0"):
        assert files[name] == (tmp_path / "out" / f"Tiny-2M-{name}.gguf").stat().st_size
    # Two layers, two heads of 64 numbers, keys and values in 16 bits.
    assert found["cache"] == 1024 * 2 * 2 * 64 * 2 * 2
    for fit in found["recipes"]:
        assert fit["needed"] == fit["file"] + found["cache"] + found["buffers"]
        assert fit["fits"] == (fit["needed"] <= 8_000_000)
    assert [fit["file"] for fit in found["recipes"]] == sorted(files.values(), reverse=True)


def best(*arguments: object) -> str | None:
    return next((fit["recipe"] for fit in report(*arguments)["recipes"] if fit["best"]), None)


def test_the_largest_usual_recipe_that_fits_is_the_best(model: Path) -> None:
    known = {fit["recipe"]: fit["needed"] for fit in report(model, "--memory", "1G")["recipes"]}
    assert best(model, "--memory", "1G") in ("f16", "bf16")
    assert best(model, "--memory", known["q6_K"]) == "q6_K"
    assert best(model, "--memory", known["q5_1"]) not in ("q5_1", "q6_K")
    assert best(model, "--memory", 1000) is None
    done = run(which, model, "--memory", "1000")
    assert done.exit_code == 0 and "no recipe fits" in done.output


def test_what_was_measured_decides(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "quality.csv"
    sizes = {fit["recipe"].upper(): fit["file"] for fit in report(model, "--memory", "1G")["recipes"]}
    four, five, half = (sizes[name] + 100 for name in ("Q4_0", "Q5_K_M", "F16"))
    rows = ["name,bytes,domain,divergence", f"Tiny-2M-Q4_0.gguf,{four},all,0.5", f"Tiny-2M-Q4_0.gguf,{four},prose,0.01"]
    rows += [f"Tiny-2M-Q5_K_M.gguf,{five},all,0.02", f"Tiny-2M-F16.gguf,{half},all,nan", "other,1,all,1"]
    table.write_text("\n".join(rows), encoding="utf-8")
    found = report(model, "--memory", "1G", "--table", table)
    losses = {fit["recipe"]: fit["divergence"] for fit in found["recipes"] if fit["divergence"] is not None}
    assert losses == {"q4_0": 0.5, "q5_K_M": 0.02}
    assert best(model, "--memory", "1G", "--table", table) == "q5_K_M"
    shown = run(which, model, "--memory", "1G", "--table", table).output
    assert "0.02" in shown and "the best that fits" in shown and "divergences of Tiny-2M" in shown
    other = checkpoints.write("qwen2", tmp_path / "Other", num_hidden_layers=1)
    refused = run(which, other, "--memory", "1G", "--table", table)
    assert refused.exit_code == 4 and "of another model" in refused.output and str(five) in refused.output


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_nothing_larger_than_a_quantized_source_is_the_best(kind: str, model: Path, tmp_path: Path) -> None:
    made = run(convert, model, "-r", kind, "-r", "q2_K", "--outdir", tmp_path, "--no-sync")
    assert made.exit_code == 0
    file = tmp_path / f"Tiny-2M-{kind}.gguf"
    assert best(file, "--memory", "1G") == "copy"
    found = {fit["recipe"]: fit for fit in report(file, "--memory", "1G")["recipes"]}
    assert found["copy"]["file"] == file.stat().st_size
    for name, fit in found.items():
        assert fit["pointless"] == (name != "copy" and fit["file"] >= file.stat().st_size)
    small = next(fit["needed"] for name, fit in found.items() if name == "q3_K_S")
    assert best(file, "--memory", small) in ("q3_K_S", "iq3_s"), "which are equally large"
    assert "made of the original model" in " ".join(run(which, file, "--memory", small).output.split())


def test_a_quantized_checkpoint_is_copied(tmp_path: Path) -> None:
    """Symmetric GPTQ in 4 bits is Q4_0: more bits have nothing to hold."""
    folder = tmp_path / "Tiny-GPTQ"
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    quantized.write_gptq("llama", folder, config=config, group=32, zero=8)
    assert best(folder, "--memory", "1G") == "copy"
    fits = {fit["recipe"]: fit for fit in report(folder, "--memory", "1G")["recipes"]}
    assert fits["q8_0"]["pointless"] and not fits["q2_K"]["pointless"]


def test_the_cache_follows_context_and_type(model: Path) -> None:
    half, whole = (report(model, "--memory", "1G", "--context", each)["cache"] for each in (1024, 2048))
    assert whole == 2 * half
    eighth = report(model, "--memory", "1G", "--context", 1024, "--cache-type", "q8_0")["cache"]
    assert eighth == half * 34 // 64
    assert report(model, "--memory", "1G")["context"] == 2048  # what the model has


def test_what_is_wrong(model: Path, tmp_path: Path) -> None:
    assert run(which, model, "--memory", "much").exit_code == 2
    assert run(which, model, "--memory", "1G", "--context", 4096).exit_code == 2
    assert run(which, model, "--memory", "1G", "--cache-type", "q3_K").exit_code == 2
    assert run(which, model, "--memory", "1G", "--table", tmp_path / "absent").exit_code == 2
    (tmp_path / "no.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert run(which, model, "--memory", "1G", "--table", tmp_path / "no.csv").exit_code == 4
    assert run(which, tmp_path / "absent" / "x" / "y", "--memory", "1G").exit_code == 2
