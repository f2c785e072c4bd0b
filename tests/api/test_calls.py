"""The calls: they are the commands' work under the commands' names, and say what is wrong with an argument."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as models
from commands import run

import checkpoints
import ggufsmith
from ggufsmith import calls
from ggufsmith.cli import eval as eval_command
from ggufsmith.cli.convert import convert as convert_command
from ggufsmith.cli.imatrix import imatrix as imatrix_command
from ggufsmith.cli.quant import quant as quant_command
from ggufsmith.cli.sensitivity import sensitivity as sensitivity_command
from ggufsmith.cli.verify import verify as verify_command
from ggufsmith.keywords import (
    KINDS,
    ConvertKeywords,
    EvaluateKeywords,
    ImatrixKeywords,
    QuantizeKeywords,
    SensitivityKeywords,
    VerifyKeywords,
    value_of,
)
from ggufsmith.pipeline.option import declared
from ggufsmith.pipeline.request import RECORDS, TextOptions

FIELDS = {each.name: each for record in (*RECORDS, TextOptions) for each in declared(record)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.write("qwen2", tmp_path / "Tiny-2M-Chat")


@pytest.mark.parametrize(
    ("keywords", "command", "own"),
    [
        (ConvertKeywords, convert_command, "tokenizer"),
        (QuantizeKeywords, quant_command, "tokenizer"),
        (VerifyKeywords, verify_command, ""),
        (ImatrixKeywords, imatrix_command, ""),
        (SensitivityKeywords, sensitivity_command, "effort"),
        (EvaluateKeywords, eval_command.evaluate, "card"),
    ],
)
def test_keywords_are_the_options_of_the_command(keywords: type, command: Any, own: str) -> None:
    options = command.__signature__.parameters.keys() & FIELDS.keys()
    assert options - {own} == keywords.__annotations__.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_type_of_a_field_is_known(name: str) -> None:
    kind = FIELDS[name].type
    assert kind.removeprefix("tuple[").removesuffix(", ...]").removesuffix(" | None") in KINDS


def test_the_calls_keep_their_names() -> None:
    """Packages of the same names are imported by the work itself."""
    code = (
        "import ggufsmith, ggufsmith.convert.open, ggufsmith.quantize.plan, ggufsmith.evaluate.chat\n"
        "from ggufsmith.convert.open import open_pass\n"
        "assert all(callable(getattr(ggufsmith, name)) for name in ('convert', 'quantize', 'evaluate'))\n"
        "print(ggufsmith.__version__, open_pass.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.split()[1] == "open_pass"
    assert done.stdout.split()[0] == ggufsmith.__version__


def test_importing_costs_nothing() -> None:
    code = (
        "import ggufsmith, sys\n"
        "heavy = {'numpy', 'numba', 'gguf', 'torch', 'rich', 'typer', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def test_the_bytes_and_the_report_are_those_of_the_command(model: Path, tmp_path: Path) -> None:
    report = ggufsmith.convert(model, recipes=["q4_K_M", "q8_0"], outdir=tmp_path / "call", sync=False, sha256=True)
    done = run(
        convert_command, model, "-r", "q4_K_M", "-r", "q8_0", "--outdir", tmp_path / "command", "--no-sync", "--json"
    )
    theirs = json.loads(done.stdout)
    for ours, entry in zip(report.outputs, theirs["outputs"], strict=True):
        assert [each.sha256 for each in ours.files or ()] == [each["sha256"] for each in entry["files"]]
        assert Path(ours.output[0]).read_bytes() == Path(entry["output"][0]).read_bytes()
    again = ggufsmith.quantize(
        tmp_path / "call" / "Tiny-2M-Chat-Q8_0.gguf",
        recipes="q4_0",
        allow_requantize=True,
        dry_run=True,
    )
    assert again.dry_run and again.outputs[0].tensors
    assert not list((tmp_path / "call").glob("*Q4_0*"))


def test_inspect_and_verify(model: Path, tmp_path: Path) -> None:
    ggufsmith.convert(model, outfile=tmp_path / "a.gguf", sync=False)
    report = ggufsmith.inspect(tmp_path / "a.gguf")
    assert report["metadata"]["general.architecture"]["value"] == "qwen2" and report["tensors"]
    assert "tensors" not in ggufsmith.inspect(str(tmp_path / "a.gguf"), tensors=False)
    assert ggufsmith.verify(tmp_path / "a.gguf", source=model)["compared"]
    other = checkpoints.write("qwen2", tmp_path / "other", seed=7)
    with pytest.raises(ggufsmith.Malformed, match="problems found"):
        ggufsmith.verify(tmp_path / "a.gguf", source=other)
    assert ggufsmith.inspect(tmp_path / "a.gguf", tmp_path / "a.gguf")["keys"]["changed"] == {}


def test_merging_importance_matrices(tmp_path: Path) -> None:
    models.write_imatrix(tmp_path / "one.gguf", models.importance(models.arrays()))
    made = ggufsmith.imatrix(inputs=tmp_path / "one.gguf", outfile=tmp_path / "both.dat")
    assert made.path == tmp_path / "both.dat" and made.path.is_file()
    with pytest.raises(ggufsmith.Usage, match="no name yet"):
        ggufsmith.imatrix(inputs=[tmp_path / "one.gguf"])


def test_what_is_wrong_with_a_table_of_sensitivities_is_said_before_the_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ggufsmith.Usage, match="unknown effort 'huge'"):
        ggufsmith.sensitivity(model, effort="huge")
    with pytest.raises(ggufsmith.Usage, match="output folder does not exist"):
        ggufsmith.sensitivity(model, outfile=tmp_path / "absent" / "t.json")
    with pytest.raises(ggufsmith.WrongArgument, match="no keyword 'context'"):
        ggufsmith.sensitivity(model, context=4)  # type: ignore[call-arg]


def test_progress_is_told(model: Path, tmp_path: Path) -> None:
    events: list[ggufsmith.ProgressEvent] = []
    ggufsmith.convert(model, outdir=tmp_path / "out", sync=False, sha256=True, progress=events.append)
    steps = [event.step for event in events]
    assert {"converting", "hashing"} <= set(steps)
    last = [event for event in events if event.step == "converting"][-1]
    assert last.done == last.total and last.share == 1 and last.files == ("Tiny-2M-Chat-F16.gguf",)
    counts = [event.done for event in events if event.step == "converting"]
    assert counts == sorted(counts)


def test_an_exception_of_the_callback_ends_the_run(model: Path, tmp_path: Path) -> None:
    def stop(event: ggufsmith.ProgressEvent) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        ggufsmith.convert(model, outdir=tmp_path / "out", sync=False, progress=stop)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"recipe": "q4_0"}, "It is called recipes"),
    "another spelling": ({"recipies": "q4_0"}, "Did you mean recipes"),
    "a name like nothing": ({"zzzzzz": 1}, "has no keyword"),
    "a number for a recipe": ({"recipes": 4}, "name of a recipe"),
    "a number among recipes": ({"recipes": ["q4_0", 4]}, "name of a recipe"),
    "a text for a switch": ({"pure": "yes"}, "True or False"),
    "a number for a switch": ({"card": 1}, "True or False"),
    "nothing for a switch": ({"overwrite": None}, "True or False"),
    "a text for a number": ({"threads": "2"}, "whole number"),
    "no threads": ({"threads": 0}, "whole number"),
    "a switch for a number": ({"threads": True}, "whole number"),
    "a text for bits": ({"target_bpw": "4.5"}, "a number"),
    "a number for a path": ({"outdir": 3}, "a path"),
    "bytes for a path": ({"outdir": b"out"}, "a path"),
    "no path": ({"outdir": ""}, "a path"),
    "a layer below zero": ({"prune_layers": -1}, "number of a layer"),
    "a factor alone": ({"lora": 0.5}, "folder of an adapter"),
    "no function": ({"progress": "bar"}, "takes one argument"),
    "a text for dry_run": ({"dry_run": "no"}, "True or False"),
    "a config for a folder": ({"config": {}}, "in memory"),
    "a number for a tokenizer": ({"tokenizer": 5}, "a path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_before_anything_happens(name: str, model: Path, tmp_path: Path) -> None:
    given, words = WRONG[name]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ggufsmith.WrongArgument, match=words) as caught:
        ggufsmith.convert(model, **given)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ggufsmith.Usage)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("source", [None, 5, b"model", ["a", "b"], object(), ""])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises(ggufsmith.WrongArgument, match="a path"):
        ggufsmith.convert(source)


def test_one_value_is_a_list_of_one_and_none_is_the_default() -> None:
    lora = FIELDS["lora"]
    assert value_of(lora, ("adapter", 0.5)) == ((Path("adapter"), 0.5),)
    assert value_of(lora, [Path("a"), ("b", 2), "c:0.5"]) == ((Path("a"), 1.0), (Path("b"), 2.0), "c:0.5")
    assert value_of(FIELDS["recipes"], "q4_0") == ("q4_0",)
    assert value_of(FIELDS["recipes"], None) == ()
    assert value_of(FIELDS["calibrate"], True) == (Path("auto"),)
    assert value_of(FIELDS["calibrate"], False) == ()
    assert value_of(FIELDS["prune_layers"], [0, np.int64(3), "5"]) == (0, 3, "5")
    assert value_of(FIELDS["target_bpw"], 4) == (4.0,)
    assert value_of(FIELDS["outdir"], None) is None


def test_every_call_is_documented() -> None:
    for name in ("convert", "quantize", "inspect", "verify", "imatrix", "sensitivity", "evaluate"):
        assert getattr(calls, name).__doc__ and name in ggufsmith.__all__
