"""Running a job: the same files as single commands, what is skipped, what fails, what runs side by side."""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import jobs
import old_ggml
import pytest
from typer.testing import CliRunner

import adapters
import checkpoints
import quantized as quantized_checkpoints
from ggufsmith.cli.app import convert_app
from ggufsmith.container.errors import Malformed, NoSpace, OutputConflict
from ggufsmith.container.provenance import file_sha256
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.batch import passes
from ggufsmith.convert.batch import run as batch
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.report import Outcome
from ggufsmith.convert.batch.run import Draft, Watcher
from ggufsmith.convert.open import open_pass
from ggufsmith.quantize.measured import silently, with_budgets
from ggufsmith.quantize.sensitivity import Sensitivity, TensorSensitivity, write_sensitivity
from requesting import opened, request, run

HEAD = 'output = "out"\n[defaults]\nrecipes = ["q4_K_M", "q8_0"]\n'
RECIPES = ("q4_K_M", "q8_0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    for name in ("A", "B", "C"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.model.name: outcome.status for outcome in outcomes}


def test_the_files_are_those_of_single_commands(home: Path) -> None:
    entries = [
        'source = "A"\nouttypes = ["f16", "bf16"]\ncard = "README.md"\nauthor = "me"',
        'source = "B"\nshard_size = "200K"',
    ]
    outcomes = jobs.run(jobs.write(home / "jobs.toml", HEAD, entries))
    assert statuses(outcomes) == {"A": "done", "B": "done"}
    alone = home / "alone"
    for outtype in ("f16", "bf16"):
        run(request(home / "A", outtype=outtype, outdir=alone / "A"))
    run(request(home / "A", *RECIPES, outdir=alone / "A"))
    run(request(home / "B", *RECIPES, outdir=alone / "B", split_max_size="200K"))
    expected = jobs.hashes(alone)
    found = jobs.hashes(home / "out")
    assert {name: digest for name, digest in found.items() if name.endswith(".gguf")} == expected
    assert sum("-of-" in name for name in expected) > 4
    others = {name for name in found if not name.endswith(".gguf")}
    assert others == {"A/SHA256SUMS", "A/README.md", "A/.A.batch.json", "B/SHA256SUMS", "B/.B.batch.json"}
    sums = dict(line.split("  ")[::-1] for line in (home / "out/B/SHA256SUMS").read_text(encoding="utf-8").splitlines())
    assert {f"B/{name}": digest for name, digest in sums.items()} == {k: v for k, v in expected.items() if k[0] == "B"}
    card = (home / "out/A/README.md").read_text(encoding="utf-8")
    assert all(expected[f"A/A-{name}.gguf"] in card for name in ("F16", "BF16", "Q4_K_M", "Q8_0")) and "me" in card


def test_adapters(home: Path) -> None:
    adapters.write(home / "A", home / "adapter")
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"\nlora = "adapter:0.5"'])
    assert statuses(jobs.run(path)) == {"A": "done"}
    run(request(home / "A", RECIPES[0], lora=((home / "adapter", 0.5),), outfile=home / "alone.gguf"))
    assert file_sha256(home / "alone.gguf") == file_sha256(home / "out" / "A" / "A-Q4_K_M.gguf")
    adapters.write(home / "A", home / "adapter", seed=2)
    assert statuses(jobs.run(path)) == {"A": "done"}
    assert statuses(jobs.run(path)) == {"A": "finished"}


def test_weights_that_are_kept_exactly(home: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    quantized_checkpoints.write_gptq("llama", home / "G", config=config, group=32, order=False)
    path = jobs.write(
        home / "jobs.toml", 'output = "out"\n', ['source = "G"\nrecipes = ["copy", "q8_0"]\nouttypes = "f16"']
    )
    (outcome,) = jobs.run(path)
    assert outcome.status == "done", outcome.error
    copy = next(made for made in outcome.made if made.label == "copy")
    assert copy.types.get("Q4_0")
    run(request(home / "G", "copy", outdir=home))
    assert file_sha256(home / "G-COPY.gguf") == file_sha256(home / "out" / "G" / "G-COPY.gguf")


def test_an_adapter_of_its_own(home: Path) -> None:
    adapters.write(home / "A", home / "Tuned", named="nobody/knows")
    path = jobs.write(
        home / "jobs.toml", HEAD, ['source = "Tuned"\nbase = "A"\nrecipes = []\nouttypes = ["f32", "f16"]']
    )
    assert statuses(jobs.run(path)) == {"Tuned": "done"}
    for kind in ("f32", "f16"):
        run(request(home / "Tuned", outtype=kind, base=home / "A", outdir=home))
        name = f"Tuned-{kind.upper()}-LoRA.gguf"
        assert file_sha256(home / name) == file_sha256(home / "out" / "Tuned" / name)
    assert statuses(jobs.run(path, by_content=True)) == {"Tuned": "finished"}
    config = json.loads((home / "A/config.json").read_text(encoding="utf-8"))
    (home / "A/config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}), encoding="utf-8")
    assert statuses(jobs.run(path)) == {"Tuned": "done"}, "what is read of the base counts"


def test_what_an_adapter_is_called_counts(home: Path) -> None:
    """general.name is made of it."""
    adapters.write(home / "A", home / "one")
    jobs.run(jobs.write(home / "jobs.toml", HEAD, ['source = "A"\nlora = "one"']))
    (home / "one").rename(home / "two")
    assert statuses(jobs.run(jobs.write(home / "jobs.toml", HEAD, ['source = "A"\nlora = "two"']))) == {"A": "done"}


def test_targets(home: Path) -> None:
    entry = 'source = "A"\nrecipes = ["q8_0"]\ntarget_bpw = [5.5]\ntarget_size = "1.2M"'
    path = jobs.write(home / "jobs.toml", HEAD, [entry])
    (outcome,) = jobs.run(path)
    made = {each.label: each for each in outcome.made}
    assert outcome.status == "done" and list(made) == ["q8_0", "1.2M", "5.5 bpw"]
    assert [file.name for each in outcome.made for file in each.files] == [
        "A-Q8_0.gguf",
        "A-Q1_2M.gguf",
        "A-Q5_5BPW.gguf",
    ]
    assert 1_100_000 < made["1.2M"].size <= 1_200_000 and 5 < made["5.5 bpw"].bits_per_weight <= 5.5
    assert "bits per weight" in made["5.5 bpw"].notes[0]
    asked = request(home / "A", outfile=home / "alone.gguf", target_bpw=(5.5,))
    run(with_budgets(asked, open_pass, silently)[0])
    assert file_sha256(home / "alone.gguf") == file_sha256(home / "out" / "A" / "A-Q5_5BPW.gguf")
    assert statuses(jobs.run(path)) == {"A": "finished"}
    (outcome,) = jobs.run(jobs.write(home / "jobs.toml", HEAD, [entry.replace("5.5", "5.25")]))
    assert outcome.new == {"5.25 bpw"}


def test_matches_by_a_table(home: Path) -> None:
    with opened(request(home / "A", "q4_0")) as planned:
        matrices = {each.name: each.shape for each in planned.tensors if len(each.shape) > 1}
    tensors = {name: TensorSensitivity(shape, {"Q4_K": 0.01, "Q8_0": 0.001}) for name, shape in matrices.items()}
    write_sensitivity(Sensitivity(tensors, "none", 512, ""), home / "A.json")
    path = jobs.write(
        home / "jobs.toml", HEAD, ['source = "A"\nrecipes = []\nmatch = ["q5_0"]\nsensitivity = "{model}.json"']
    )
    (outcome,) = jobs.run(path)
    assert outcome.status == "done", outcome.error
    (made,) = outcome.made
    assert made.label == "match q5_0" and [each.name for each in made.files] == ["A-Q5_0_MATCH.gguf"]
    assert "predicted KL divergence" in made.notes[0] and set(made.types) == {"F32", "Q4_K", "Q8_0"}
    asked = request(home / "A", outfile=home / "alone.gguf", match=("q5_0",), sensitivity=home / "A.json")
    run(with_budgets(asked, open_pass, silently)[0])
    assert file_sha256(home / "alone.gguf") == file_sha256(home / "out/A/A-Q5_0_MATCH.gguf")
    assert statuses(jobs.run(path)) == {"A": "finished"}
    tensors.popitem()
    write_sensitivity(Sensitivity(tensors, "none", 512, ""), home / "A.json")
    assert statuses(jobs.run(path)) == {"A": "done"}


def test_recipes_that_stand_for_a_size(home: Path) -> None:
    """They spend it by the table, and keep their names; beside them, others are as they were."""
    with opened(request(home / "A", "q4_0")) as planned:
        matrices = {each.name: each.shape for each in planned.tensors if len(each.shape) > 1}
        base = planned.outputs[0].size
    tensors = {name: TensorSensitivity(shape, {"Q4_0": 0.01, "Q8_0": 0.001}) for name, shape in matrices.items()}
    write_sensitivity(Sensitivity(tensors, "none", 512, ""), home / "A.json")
    (home / "grown.toml").write_text('extends = "q4_0"\naddition = 0.3\n', encoding="utf-8")
    entry = 'source = "A"\nrecipes = ["grown.toml", "q4_0"]\nsensitivity = "A.json"'
    path = jobs.write(home / "jobs.toml", HEAD, [entry])
    (outcome,) = jobs.run(path)
    assert outcome.status == "done", outcome.error
    sizes = {each.files[0].name: each.size for each in outcome.made}
    assert sizes["A-Q4_0.gguf"] == base and 1.1 * base < sizes["A-GROWN.gguf"] <= 1.3 * base
    assert statuses(jobs.run(path)) == {"A": "finished"}


def test_options_of_types_and_shards(home: Path) -> None:
    options = 'pure = true\noutput_tensor_type = "q8_0"\ntensor_types = ["attn_v=q6_K"]\nshard_tensors = 4'
    path = jobs.write(home / "jobs.toml", HEAD, [f'source = "A"\n{options}\nno_tensor_first_split = true'])
    assert statuses(jobs.run(path)) == {"A": "done"}
    types = {"pure": True, "output_tensor_type": "q8_0", "tensor_types": ("attn_v=q6_K",)}
    split = {"split_max_tensors": 4, "no_tensor_first_split": True}
    run(request(home / "A", *RECIPES, outdir=home / "alone", **types, **split))
    found = {name: digest for name, digest in jobs.hashes(home / "out" / "A").items() if name.endswith(".gguf")}
    assert found == jobs.hashes(home / "alone") and len(found) > 4
    assert statuses(jobs.run(path)) == {"A": "finished"}
    text = path.read_text(encoding="utf-8")
    for change in (("attn_v", "attn_k"), ("pure = true", "pure = false"), ("= 4", "= 5"), ("= true", "= false")):
        text = text.replace(*change)
        path.write_text(text, encoding="utf-8")
        assert statuses(jobs.run(path)) == {"A": "done"}, change


def test_what_is_set_for_files(home: Path) -> None:
    run(request(home / "A"))
    checkpoints.write("llama", home / "Two", **{**jobs.SMALL, "num_hidden_layers": 2})
    run(request(home / "Two", split_max_tensors=8))
    entry = "prune_layers = [1]\noverride_kv = ['general.author=str:me']\nkeep_split = true\nmodel_name = 'x'"
    (shard,) = home.glob("Two/*-00001-of-*.gguf")
    path = jobs.write(home / "jobs.toml", HEAD, [f"source = 'Two/{shard.name}'\n{entry}"])
    assert statuses(jobs.run(path)) == {"Two": "done"}
    keys = ("general.name=str:x", "general.author=str:me")
    run(request(shard, *RECIPES, outdir=home / "alone", prune_layers=(1,), override_kv=keys, keep_split=True))
    found = {name: digest for name, digest in jobs.hashes(home / "out" / "Two").items() if name.endswith(".gguf")}
    assert found == jobs.hashes(home / "alone") and len(found) > 2
    assert statuses(jobs.run(path)) == {"Two": "finished"}


def test_files_from_before_gguf(home: Path) -> None:
    run(request(home / "A"))
    with open_gguf(home / "A" / "A-F16.gguf") as gguf:
        old_ggml.write("ggjt v3", gguf, home / "tiny.ggmlv3.f16.bin")
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "tiny.ggmlv3.f16.bin"\ntokenizer = "A"'])
    (outcome,) = jobs.run(path)
    assert statuses([outcome]) == {"tiny": "done"}, outcome.error
    alone = ["tiny.ggmlv3.f16.bin", "--tokenizer", "A", "-r", "q8_0", "-o", "alone.gguf"]
    result = CliRunner().invoke(
        convert_app, [str(home / each) if "." in each or each == "A" else each for each in alone]
    )
    assert result.exit_code == 0, result.output
    assert file_sha256(home / "alone.gguf") == file_sha256(home / "out" / "tiny" / "tiny-Q8_0.gguf")
    assert statuses(jobs.run(path)) == {"tiny": "finished"}
    (home / "A" / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert statuses(jobs.run(path)) == {"tiny": "done"}


def test_gguf_files(home: Path) -> None:
    run(request(home / "A"))
    source = home / "A" / "A-F16.gguf"
    outcomes = jobs.run(jobs.write(home / "jobs.toml", HEAD, ['source = "A/A-F16.gguf"\nouttypes = "f32"']))
    assert statuses(outcomes) == {"A": "done"}
    run(request(source, *RECIPES, outtype="f32", outdir=home))
    for name in ("A-F32.gguf", "A-Q4_K_M.gguf", "A-Q8_0.gguf"):
        assert file_sha256(home / name) == file_sha256(home / "out" / "A" / name)


def test_a_dry_run_refuses_an_output_that_is_an_input(home: Path) -> None:
    """Here, the second shard of the source."""
    (home / "out").mkdir()
    run(request(home / "A", outfile=home / "out" / "in.gguf", split_max_tensors=9))
    (source, *_) = sorted((home / "out").iterdir())
    entry = f'source = "out/{source.name}"\nfolder = "."\nfile = "in.gguf"\nrecipes = "q8_0"\nkeep_split = true'
    path = jobs.write(home / "jobs.toml", 'output = "out"\n', [entry])
    _, (outcome,) = batch.plan_job(read_job(path, {}), batch.BatchOptions(), Watcher(), dry=True)
    assert isinstance(outcome.error, OutputConflict) and "the output is the input" in str(outcome.error)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_finished_is_left_alone(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"', 'source = "B"'])
    jobs.run(path)
    before = times(home / "out")
    outcomes = jobs.run(path)
    assert statuses(outcomes) == {"A": "finished", "B": "finished"}
    assert times(home / "out") == before
    assert [len(outcome.made) for outcome in outcomes] == [2, 2]


def test_only_what_is_missing_is_made(home: Path) -> None:
    entries = ['source = "A"', 'source = "B"']
    jobs.run(jobs.write(home / "jobs.toml", HEAD, entries))
    before = times(home / "out")
    (outcome, _) = jobs.run(
        jobs.write(home / "jobs.toml", HEAD, ['source = "A"\nrecipes = ["q8_0", "q6_K"]', entries[1]])
    )
    assert (outcome.status, outcome.new) == ("done", {"q6_K"})
    after = times(home / "out")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"A-Q6_K.gguf", "SHA256SUMS", ".A.batch.json"} or changed == {"A-Q6_K.gguf", ".A.batch.json"}
    sums = (home / "out/A/SHA256SUMS").read_text(encoding="utf-8")
    assert "Q6_K" in sums and "Q8_0" in sums and "Q4_K_M" not in sums


@pytest.mark.parametrize(
    "change", ["weights", "config", "imatrix", "recipe", "output", "truncated", "gone", "record", "sums"]
)
def test_what_changed_is_made_again(home: Path, change: str) -> None:
    (home / "mine.toml").write_text('extends = "q8_0"', encoding="utf-8")
    path = jobs.write(home / "jobs.toml", 'output = "out"\n', ['source = "A"\nrecipes = ["q6_K", "mine.toml"]'])
    jobs.run(path)
    expected = jobs.hashes(home / "out")
    output = home / "out/A/A-Q6_K.gguf"
    touched = {"output", "truncated", "gone", "record", "sums"}
    new = {"q6_K", "mine.toml"}
    match change:
        case "weights":
            os.utime(home / "A" / "model.safetensors")
            if (home / "A" / "model.safetensors").stat().st_size <= 1 << 20:
                pytest.fail("small files are known by content: make the fixture larger")
        case "config":
            config = json.loads((home / "A/config.json").read_text(encoding="utf-8"))
            (home / "A/config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}), encoding="utf-8")
        case "imatrix":
            jobs.write(
                home / "jobs.toml",
                'output = "out"\n',
                ['source = "A"\nrecipes = ["q6_K", "mine.toml"]\nmodel_name = "x"'],
            )
        case "recipe":
            (home / "mine.toml").write_text('extends = "q8_0"\n[[rule]]\nrole="attn_v"\ntype="q6_K"', encoding="utf-8")
            new = {"mine.toml"}
        case "output":
            content = bytearray(output.read_bytes())
            content[-1] ^= 1
            output.write_bytes(content)
            new = {"q6_K"}
        case "truncated":
            os.truncate(output, 1000)
            new = {"q6_K"}
        case "gone":
            output.unlink()
            new = {"q6_K"}
        case "record":
            (home / "out/A/.A.batch.json").write_text("[", encoding="utf-8")
        case "sums":
            (home / "out/A/SHA256SUMS").unlink()
            new = set()
    (outcome,) = jobs.run(path)
    assert set(outcome.new) == new
    if change in touched:
        assert jobs.hashes(home / "out") == expected
    assert statuses(jobs.run(path)) == {"A": "finished"}


def test_a_changed_output_with_an_old_time_is_found_when_asked(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    jobs.run(path)
    output = home / "out/A/A-Q8_0.gguf"
    expected, time = output.read_bytes(), output.stat().st_mtime_ns
    output.write_bytes(bytes(len(expected)))
    os.utime(output, ns=(time, time))
    assert statuses(jobs.run(path)) == {"A": "finished"}
    (outcome,) = jobs.run(path, verify=True)
    assert outcome.new == {"q8_0"} and output.read_bytes() == expected


def test_a_newer_time_alone_costs_a_hash(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    jobs.run(path)
    os.utime(home / "out/A/A-Q8_0.gguf")
    assert statuses(jobs.run(path)) == {"A": "finished"}
    record = home / "out/A/.A.batch.json"
    assert record.stat().st_mtime_ns >= (home / "out/A/A-Q8_0.gguf").stat().st_mtime_ns, "it is not hashed next time"


def test_inputs_with_new_times_are_the_same_by_content(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    jobs.run(path, by_content=True)
    os.utime(home / "A" / "model.safetensors")
    assert statuses(jobs.run(path, by_content=True)) == {"A": "finished"}
    with (home / "A" / "model.safetensors").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\0\0")
    assert statuses(jobs.run(path, by_content=True)) == {"A": "done"}


def damage(folder: Path, kind: str) -> None:
    if kind == "config":
        (folder / "config.json").write_text("{", encoding="utf-8")
    else:  # NaN in the last matrix: found while it is read
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\xff\xff")


@pytest.mark.parametrize("kind", ["config", "weights"])
def test_one_failing_model_does_not_stop_the_others(home: Path, kind: str) -> None:
    damage(home / "B", kind)
    path = jobs.write(home / "jobs.toml", HEAD, [f'source = "{name}"' for name in "ABC"])
    outcomes = jobs.run(path)
    assert statuses(outcomes) == {"A": "done", "B": "failed", "C": "done"}
    assert isinstance(outcomes[1].error, Malformed)
    assert not any(path.is_file() for path in (home / "out").glob("B/*")), "no half file is kept that never gets whole"


@pytest.mark.parametrize("kind", ["config", "weights"])
def test_unless_asked_for(home: Path, kind: str) -> None:
    damage(home / "A", kind)
    path = jobs.write(home / "jobs.toml", HEAD, [f'source = "{name}"' for name in "ABC"])
    assert statuses(jobs.run(path, fail_fast=True, side_by_side=1)) == {
        "A": "failed",
        "B": "not begun",
        "C": "not begun",
    }


def test_a_foreign_readme_is_never_replaced(home: Path) -> None:
    (home / "out/A").mkdir(parents=True)
    (home / "out/A/README.md").write_text("mine", encoding="utf-8")
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"\ncard = "README.md"'])
    (outcome,) = jobs.run(path)
    assert isinstance(outcome.error, OutputConflict)
    assert (home / "out/A/README.md").read_text(encoding="utf-8") == "mine"


def test_models_on_one_line(home: Path) -> None:
    path = home / "jobs.yaml"
    path.write_text("{output: out, model: [{source: A, recipes: q8_0}, {source: B, recipes: q8_0}]}", encoding="utf-8")
    assert statuses(jobs.run(path)) == {"A": "done", "B": "done"}


def test_a_dry_run_writes_nothing(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    jobs.run(path)
    (home / "out/A/SHA256SUMS").unlink()
    before = times(home)
    assert jobs.cli(path, "--dry-run").exit_code == 0
    assert times(home) == before


@pytest.mark.parametrize("moment", ["begun", "ended"])
def test_who_watches_can_fail_too(home: Path, moment: str) -> None:
    """As standard output does when nobody reads it any more."""

    class Broken(Watcher):
        pass

    def fail(*arguments: object) -> None:
        raise BrokenPipeError("nobody listens")

    setattr(Broken, moment, fail)
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"', 'source = "B"'])
    with pytest.raises(BrokenPipeError):
        jobs.run(path, Broken())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the space of a file is not reserved")
def test_interrupted_work_is_resumed_in_the_space_that_it_holds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Watcher):
        done = 0

        def advanced(self, model: JobModel, weights: int) -> None:
            self.done += weights
            if self.done > 500_000:
                raise OSError("no more")

    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    assert statuses(jobs.run(path, Full(), threads=1)) == {"A": "failed"}
    held = sum(file.stat().st_size for file in (home / "out/A").glob(".*.partial"))
    assert held > 500_000
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=held // 10))
    (outcome,) = jobs.run(path)
    assert outcome.status == "done" and any("resumed" in note for note in outcome.notes), outcome.notes


def test_what_was_made_but_not_hashed_is_not_made_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    jobs.run(path)
    expected = jobs.hashes(home / "out")
    shutil.rmtree(home / "out")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "file_sha256", lambda path, told: 1 / 0)
        assert statuses(jobs.run(path)) == {"A": "failed"}
    made = {name: time for name, time in times(home / "out").items() if name.endswith(".gguf")}
    (outcome,) = jobs.run(path)
    assert outcome.status == "finished" and all(file.sha256 for each in outcome.made for file in each.files)
    assert jobs.hashes(home / "out") == expected
    assert {name: time for name, time in times(home / "out").items() if name.endswith(".gguf")} == made


class Counting(Watcher):
    """How many models run at one time."""

    def __init__(self) -> None:
        self.drafts: dict[str, Draft] = {}
        self.running: set[str] = set()
        self.most: list[set[str]] = []
        self.lock = threading.Lock()

    def planned(self, draft: Draft) -> None:
        self.drafts[draft.model.name] = draft

    def begun(self, draft: Draft) -> None:
        with self.lock:
            self.running.add(draft.model.name)
            self.most.append(set(self.running))

    def ended(self, outcome: Outcome) -> None:
        with self.lock:
            self.running.discard(outcome.model.name)


def test_budgets_decide_what_runs_side_by_side(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, [f'source = "{name}"' for name in "ABC"])
    dry = Counting()
    jobs.run(path, dry)
    shutil.rmtree(home / "out")
    sizes = {name: draft.size for name, draft in dry.drafts.items()}
    memory = {name: draft.memory for name, draft in dry.drafts.items()}
    for options in ({"disk": max(sizes.values())}, {"memory": passes.PROCESS + max(memory.values())}):
        watch = Counting()
        jobs.run(path, watch, side_by_side=3, **options)
        assert max(map(len, watch.most)) == 1, options
        shutil.rmtree(home / "out")


def test_what_never_fits_fails(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"', 'source = "B"'])
    (a, _) = jobs.run(path, disk=1000)
    assert isinstance(a.error, NoSpace) and "--max-disk" in str(a.error)
    (a, _) = jobs.run(path, memory=passes.PROCESS)
    assert a.error is not None and "--max-memory" in str(a.error)


def test_what_measuring_takes_is_in_the_budget(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "with_budgets", lambda *arguments: pytest.fail("it was measured"))
    path = jobs.write(home / "jobs.toml", 'output = "out"\n', ['source = "A"\ntarget_bpw = 5.5'])
    (a,) = jobs.run(path, memory=passes.PROCESS + passes.MEASURING - 1)
    assert a.error is not None and "--max-memory" in str(a.error)


def test_what_the_factors_of_adapters_take_is_in_the_budget(home: Path) -> None:
    factors = adapters.write(home / "A", home / "adapter", targets=adapters.ALL, rank=256)
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"', 'source = "A"\nname = "merged"\nlora = "adapter"'])
    drafts, _ = batch.plan_job(read_job(path, {}), batch.BatchOptions(), Watcher(), dry=True)
    plain, merged = (draft.memory for draft in drafts)
    assert merged - plain > sum(factor.nbytes for factor in factors.values()) > 1_000_000


def test_few_threads_where_memory_is_short(home: Path) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"'])
    watch = Counting()
    jobs.run(path, watch, threads=8)
    needed = watch.drafts["A"].memory
    shutil.rmtree(home / "out")
    jobs.run(path, watch, threads=8, memory=passes.PROCESS + needed - 1)
    assert 1 <= watch.drafts["A"].threads < 8


def test_a_full_disk_is_found_before_the_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jobs.write(home / "jobs.toml", HEAD, ['source = "A"', 'source = "B"'])
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(NoSpace):
        jobs.run(path)
    assert not (home / "out").exists()
