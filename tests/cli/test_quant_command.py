"""gguf-quant and `ggufsmith recipes` as users meet them: files, reports, exit codes."""

import json
from pathlib import Path

import pytest
import small_models as models
from commands import run

from ggufsmith.cli.quant import quant
from ggufsmith.cli.recipes import recipes
from ggufsmith.container.layout import lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import string
from ggufsmith.container.writer import Writer
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES, shown


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.write_model(tmp_path / "Tiny-1M-F16.gguf")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_recipes(model: Path) -> None:
    done = run(quant, model, "-r", "q8_0", "-r", "f32", "--no-sync", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert names(model.parent) == ["Tiny-1M-F16.gguf", "Tiny-1M-F32.gguf", "Tiny-1M-Q8_0.gguf"]
    assert "verified" in done.output and "32.00 bits per weight" in done.output


def test_json_reports_everything(model: Path) -> None:
    imatrix = models.write_imatrix(model.parent / "i", models.importance(models.arrays()))
    done = run(quant, model, "-r", "q8_0", "--imatrix", imatrix, "--include-weights", "attn_v", "--json", "--no-sync")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    (output,) = report["outputs"]
    size = (model.parent / "Tiny-1M-Q8_0.gguf").stat().st_size
    assert (output["recipe"], output["bytes"], output["types"]) == ("Q8_0", size, {"Q8_0": 9, "F32": 3})
    assert report["importance"]["covered"] == ["blk.0.attn_v.weight", "blk.1.attn_v.weight"]
    assert report["weights_per_second"] > 0


def test_dry_run_is_exact_and_writes_nothing(model: Path) -> None:
    before = names(model.parent)
    done = run(quant, model, "-r", "q4_0", "--dry-run", "--json")
    assert done.exit_code == 0 and names(model.parent) == before
    (planned,) = json.loads(done.output)["outputs"]
    assert run(quant, model, "-r", "q4_0", "--no-sync").exit_code == 0
    with open_gguf(model.parent / "Tiny-1M-Q4_0.gguf") as gguf:
        assert gguf.size == planned["bytes"]
        assert [(t["name"], t["type"], t["offset"]) for t in planned["tensors"]] == [
            (t.name, t.format.name, t.offset) for t in gguf.tensors.values()
        ]


def test_a_dry_run_refuses_an_output_that_is_an_input_as_a_run_does(model: Path) -> None:
    imatrix = models.write_imatrix(model.parent / "i.gguf", models.importance(models.arrays()))
    (model.parent / "link.gguf").hardlink_to(model)
    for output in (model, model.parent / "link.gguf", imatrix):
        command = quant, model, "-r", "q8_0", "-o", output, "--imatrix", imatrix, "--no-sync"
        done, dry = run(*command), run(*command, "--dry-run")
        assert (dry.exit_code, dry.stderr) == (done.exit_code, done.stderr)
        assert dry.exit_code == 6 and "the output is the input" in dry.stderr


def test_a_budget_leaves_its_recipe(model: Path) -> None:
    done = run(quant, model, "--target-bpw", "6", "-o", model.parent / "out.gguf", "--no-sync")
    assert done.exit_code == 0 and f"recipe  {model.parent / 'out.toml'}" in done.output, done.output
    again = run(quant, model, "-r", model.parent / "out.toml", "-o", model.parent / "again.gguf", "--no-sync", "-q")
    assert again.exit_code == 0, again.output
    assert (model.parent / "again.gguf").read_bytes() == (model.parent / "out.gguf").read_bytes()
    dry = run(quant, model, "--target-size", "1M", "--dry-run", "--save-recipe", model.parent / "dry.toml")
    assert dry.exit_code == 0 and (model.parent / "dry.toml").is_file()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-r", "q4km"], 2, "q4_K_M"),
        ([], 2, "this is already a GGUF file"),
        (["-r", "q8_0", "--tensor-type", "attn_w=q4_0"], 2, "attn_w"),
        (["-r", "q8_0", "--leave-output-tensor", "--output-tensor-type", "q6_K"], 2, "contradict"),
        (["-r", "q8_0", "--target-bpw", "4"], 2, "cannot be given"),
        (["--target-bpw", "4", "--target-size", "1G"], 2, "together"),
        (["--target-bpw", "1"], 2, "smallest"),
        (["-r", "q8_0", "--save-recipe", "x.toml"], 2, "--target"),
        (["--target-bpw", "6", "--save-recipe", "MODEL"], 2, "must end in .toml"),
        (["--target-bpw", "6", "--save-recipe", "absent/x.toml"], 2, "does not exist"),
        (["-r", "q8_0", "--output-tensor-type", "q9"], 2, "q9"),
        (["-r", "f16", "-o", "MODEL"], 6, "input"),
        (["-r", "q8_0", "-o", "x.gguf", "--outdir", "x"], 2, "both say"),
        (["-r", "q8_0", "--outdir", "MODEL"], 2, "cannot be used as the output folder"),
        (["-r", "absent.toml"], 2, "absent.toml"),
        (["-r", "q8_0", "--imatrix", "absent"], 2, "absent"),
    ],
)
def test_errors(model: Path, options: list[str], code: int, message: str) -> None:
    before = names(model.parent)
    done = run(quant, model, *(str(model) if option == "MODEL" else option for option in options))
    assert done.exit_code == code, done.output
    assert message in done.output + done.stderr
    assert names(model.parent) == before


def test_recipes_are_listed(model: Path) -> None:
    done = run(recipes)
    assert done.exit_code == 0
    listed = {line.split()[0] for line in done.output.splitlines()}
    assert {shown(name) for name in FILE_TYPES} <= listed and "iq1_s_dyn" in listed
    report = json.loads(run(recipes, model, "-r", "q8_0", "--json").output)
    (entry,) = report["recipes"]
    assert entry["types"] == {"Q8_0": 9, "F32": 3} and len(entry["tensors"]) == 12
    assert run(quant, model, "-r", "q8_0", "--no-sync", "-q").exit_code == 0
    assert entry["bytes"] == (model.parent / "Tiny-1M-Q8_0.gguf").stat().st_size > entry["tensor_bytes"]
    assert "token_embd.weight" in run(recipes, model, "-r", "q4_0").output


def test_recipes_for_a_vocabulary_alone(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    with Writer(path, lay_out({"general.architecture": string("llama")}, []), sync=False) as writer:
        writer.commit()
    assert "not possible: the file has no weights" in run(recipes, path, "-r", "q4_0").output
