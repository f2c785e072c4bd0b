"""Budgets that are spent by a table of what types cost the predictions, and budgets of a recipe's size."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_models as models

from ggufsmith.container.errors import Failure, Malformed, Usage
from ggufsmith.container.reader import open_gguf
from ggufsmith.quantize.budget import Solved, measure
from ggufsmith.quantize.file_pass import open_file_pass
from ggufsmith.quantize.measured import silently, with_budgets
from ggufsmith.quantize.recipes.assign import Stored
from ggufsmith.quantize.recipes.rules import kept
from ggufsmith.quantize.sensitivity import Sensitivity, TensorSensitivity, read_sensitivity, write_sensitivity
from requesting import opened, request, run

LADDER = {"Q4_0": 1.0, "Q5_0": 0.25, "Q8_0": 0.004}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model(tmp_path_factory.mktemp("sensitivity") / "Tiny-1M-F16.gguf")


def matrices(model: Path) -> dict[str, tuple[int, ...]]:
    with open_gguf(model) as file:
        return {name: info.shape for name, info in file.tensors.items() if kept(name, info.shape, "llama") is None}


def table(model: Path, **factors: float) -> Sensitivity:
    """What types cost: of tensors whose names have one of these words so many times as much."""
    tensors = {}
    for name, shape in matrices(model).items():
        factor = next((value for word, value in factors.items() if word in name), 1.0)
        tensors[name] = TensorSensitivity(shape, {type: 1e-3 * factor * loss for type, loss in LADDER.items()})
    return Sensitivity(tensors, "normal", 1024, "00")


def solved(model: Path, found: Sensitivity | None, folder: Path, **options: Any) -> tuple[Solved, dict[str, str]]:
    """What is chosen, and the types."""
    path = folder / "table.json"
    if found is not None:
        write_sensitivity(found, path)
        options["sensitivity"] = path
    asked, (answer,) = with_budgets(request(model, outdir=folder, **options), open_file_pass, silently)
    with opened(asked) as planned:
        output = planned.outputs[0]
        assert output.size == answer.size
        return answer, {spec.name: spec.format.name for spec in output.shards.whole.tensors}


def test_a_table_is_read_as_it_was_written(model: Path, tmp_path: Path) -> None:
    found = table(model, attn_v=7.5)
    write_sensitivity(found, tmp_path / "t.json")
    assert read_sensitivity(tmp_path / "t.json") == found


def test_bytes_go_where_the_table_says(model: Path, tmp_path: Path) -> None:
    _, types = solved(model, table(model, ffn_down=100.0), tmp_path, target_bpw=(5.5,))
    assert all(type == "Q8_0" for name, type in types.items() if "ffn_down" in name)
    _, other = solved(model, table(model, ffn_down=0.01), tmp_path, target_bpw=(5.5,))
    assert {type for name, type in other.items() if "ffn_down" in name} == {"Q4_0"}


def test_the_sum_of_the_table_is_predicted(model: Path, tmp_path: Path) -> None:
    found = table(model, attn_v=3.0)
    answer, types = solved(model, found, tmp_path, target_bpw=(6.0,))
    said = sum(each.losses.get(types[name], 0.0) for name, each in found.tensors.items())
    assert answer.error == pytest.approx(said)
    assert f"predicted KL divergence {said:.3g}" in answer.recipe.description
    assert answer.recipe.description.partition(";")[0] in answer.text


def test_the_choice_is_in_the_notes(model: Path, tmp_path: Path) -> None:
    write_sensitivity(table(model, ffn_down=100.0), tmp_path / "t.json")
    asked = request(model, outdir=tmp_path, target_bpw=(5.5,), sensitivity=tmp_path / "t.json")
    with opened(with_budgets(asked, open_file_pass, silently)[0]) as planned:
        notes = planned.outputs[0].notes
    assert any("predicted KL divergence" in note for note in notes)
    assert any(note.startswith("types: ") and "ffn_down 2 Q8_0" in note for note in notes)


def test_what_the_table_lacks_is_taken_to_be_as_sensitive_as_the_rest(model: Path, tmp_path: Path) -> None:
    """A table that says of every type what the errors of the weights say: with or without a tensor, as without it."""
    plain, types = solved(model, None, tmp_path, target_bpw=(6.5,))
    with opened(request(model, "q8_0", outdir=tmp_path)) as planned:
        errors = {
            tensor.name: {each.format.name: each.error for each in measure(tensor, stored, None, 32) if each.error}
            for tensor in planned.tensors
            if (stored := Stored(tensor.name, tensor.shape, tensor.held)).name in matrices(model)
        }
    full = {
        name: TensorSensitivity(shape, {type: 3e-9 * error for type, error in errors[name].items()})
        for name, shape in matrices(model).items()
    }
    for missing in ("", "blk.1.ffn_down.weight", "blk.0.attn_v.weight"):
        found = {name: each for name, each in full.items() if name != missing}
        answer, same = solved(model, Sensitivity(found, "none", 1, ""), tmp_path, target_bpw=(6.5,))
        assert same == types
        assert answer.error == pytest.approx(3e-9 * plain.error * sum(math.prod(each.shape) for each in every(model)))


def every(model: Path) -> list[Any]:
    with open_gguf(model) as file:
        return list(file.tensors.values())


@pytest.mark.parametrize("recipe", ["q4_0", "q5_1", "q8_0"])
def test_a_match_is_no_larger_and_hardly_smaller(recipe: str, model: Path, tmp_path: Path) -> None:
    with opened(request(model, recipe, outdir=tmp_path)) as planned:
        wanted = planned.outputs[0].size
    for found in (None, table(model)):
        answer, _ = solved(model, found, tmp_path, match=(recipe,))
        assert 0.97 * wanted < answer.size <= wanted


def test_several_matches_and_a_recipe_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "q4_0"\n[[rule]]\ntype = "q8_0"\nrole = "ffn_down"\n', "utf-8")
    asked = request(model, outdir=tmp_path, match=("q4_0", str(tmp_path / "mine.toml"), "q8_0"))
    made, answers = with_budgets(asked, open_file_pass, silently)
    assert [each.size for each in answers] == sorted(each.size for each in answers)
    with opened(made) as planned:
        assert [each.size for each in planned.outputs] == [each.size for each in answers]


def test_a_match_with_shards_counts_their_headers(model: Path, tmp_path: Path) -> None:
    with opened(request(model, "q5_0", outdir=tmp_path, split_max_tensors=3)) as planned:
        wanted = planned.outputs[0].size
    asked, (answer,) = with_budgets(
        request(model, outdir=tmp_path, match=("q5_0",), split_max_tensors=3), open_file_pass, silently
    )
    with opened(asked) as planned:
        run_paths = planned.outputs[0].paths
        assert planned.outputs[0].size == answer.size <= wanted and len(run_paths) > 1


def test_a_matched_file_is_written(model: Path, tmp_path: Path) -> None:
    asked, (answer,) = with_budgets(request(model, match=("q5_0",), outdir=tmp_path), open_file_pass, silently)
    run(asked)
    (path,) = tmp_path.glob("*.gguf")
    assert path.stat().st_size == answer.size and path.name.startswith("Tiny-1M-Q5_")


GROWN = 'extends = "q4_0"\naddition = 0.2\n[[rule]]\ntype = "q8_0"\nrole = "attn_v"\n'


def test_a_recipe_that_stands_for_a_size(model: Path, tmp_path: Path) -> None:
    """By its rules without a table; with one, the best types for the size of what it extends and so much more."""
    (tmp_path / "grown.toml").write_text(GROWN, encoding="utf-8")
    write_sensitivity(table(model, ffn_down=100.0), tmp_path / "t.json")
    recipes = ("q4_0", str(tmp_path / "grown.toml"))
    with opened(request(model, *recipes, outdir=tmp_path)) as planned:
        base, by_rules = (output.size for output in planned.outputs)
        by_rules_types = planned.outputs[1].types
        assert {spec.format.name for spec in planned.outputs[1].shards.whole.tensors} == {"Q4_0", "Q8_0", "F32"}
    asked = request(model, *recipes, outdir=tmp_path, sensitivity=tmp_path / "t.json")
    made, answers = with_budgets(asked, open_file_pass, silently)
    with opened(made) as planned:
        same, grown = planned.outputs
        types = {spec.name: spec.format.name for spec in grown.shards.whole.tensors}
    assert answers == () and same.size == base and grown.path.name == "Tiny-1M-GROWN.gguf"
    assert 1.1 * base < grown.size <= 1.2 * base and grown.size != by_rules
    assert all(type == "Q8_0" for name, type in types.items() if "ffn_down" in name)
    for sensitivity in (tmp_path / "t.json", None):
        changed = replace(asked, make=replace(asked.make, tensor_types=("attn_q=q5_0",), sensitivity=sensitivity))
        with opened(with_budgets(changed, open_file_pass, silently)[0]) as planned:
            assert planned.outputs[1].types["Q8_0"] == by_rules_types["Q8_0"], "options leave the rules as they are"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"match": ("q4_0",), "target_bpw": (4.0,)}, "--target-bpw and --match cannot be used together"),
        ({"match": ("q4_0",), "target_size": ("1M",)}, "--target-size and --match cannot be used together"),
        ({"match": ("q9",)}, "there is no recipe 'q9'"),
        ({"match": ("q4_0",), "recipes": ("q8_0",)}, "cannot be given"),
        ({"match": ("q4_0",), "pure": True}, "cannot be given"),
        ({"match": ("iq2_xs",)}, "needs an importance matrix"),
        ({"sensitivity": Path("t.json"), "recipes": ("q8_0",)}, "nothing chooses among them"),
        ({"sensitivity": Path("t.json"), "match": ("q8_0",), "prune_layers": (1,)}, "--prune-layers renumbers"),
        ({"match": ("q4_0", "q8_0"), "save_recipe": Path("x.toml")}, "saves what one"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    wide = models.write_model(tmp_path / "Wide-1M-F16.gguf", width=256) if "iq2_xs" in str(options) else None
    source = wide or models.write_model(tmp_path / "Tiny-1M-F16.gguf")
    with pytest.raises(Usage, match=said):
        with_budgets(request(source, outdir=tmp_path, **options), open_file_pass, silently)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ("{}", "not a table of sensitivities"),
        ({"version": 2}, "not a table of sensitivities"),
        ({"tensors": []}, "tensors is an array"),
        ({"effort": 3}, "effort is an integer"),
        ({"tensors": {"a": {"shape": [0, 1], "losses": {}}}}, "has the shape"),
        ({"tensors": {"a": {"shape": "x", "losses": {}}}}, "a.shape is a string"),
        ({"tensors": {"a": {"shape": [1], "losses": {"Q9": 1}}}}, "'Q9', which is not a type"),
        ({"tensors": {"a": {"shape": [1], "losses": {"Q4_0": -1}}}}, "the loss -1"),
        ({"tensors": {"a": {"shape": [1], "losses": {"Q4_0": True}}}}, "the loss True"),
        (
            '{"format": "ggufsmith-sensitivity", "version": 1, "tensors": {"a": {"shape": [1], "losses": '
            '{"Q4_0": NaN}}}, "effort": "none", "tokens": 1, "sha256": ""}',
            "the loss nan",
        ),
        ({"tensors": {"other": {"shape": [4, 4], "losses": {"Q4_0": 1}}}}, "of another model"),
        ({"tensors": {"blk.0.attn_q.weight": {"shape": [4, 4], "losses": {"Q4_0": 1}}}}, "in the table"),
    ],
)
def test_tables_that_cannot_be_used(content: Any, said: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    if isinstance(content, dict):
        if content:
            whole = {"format": "ggufsmith-sensitivity", "version": 1, "effort": "none", "tokens": 1, "sha256": ""}
            content = {**whole, "tensors": {}, **content}
        content = json.dumps(content)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Malformed, match=said):
        with_budgets(request(model, target_bpw=(6.0,), sensitivity=path), open_file_pass, silently)


def test_a_table_that_is_not_there(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"absent\.json"):
        with_budgets(request(model, target_bpw=(6.0,), sensitivity=tmp_path / "absent.json"), open_file_pass, silently)


def test_a_budget_below_what_is_possible(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage, match="smallest file possible"):
        solved(model, table(model), tmp_path, target_bpw=(2.0,))


@pytest.mark.parametrize(("effort", "said"), [("none", False), ("normal", True)])
def test_a_table_for_other_bytes_is_named(effort: str, said: bool, model: Path, tmp_path: Path) -> None:
    answer, _ = solved(model, replace(table(model), effort=effort), tmp_path, target_bpw=(5.5,))
    found = f"measured with effort {effort}, and the bytes here are as without calibration" in answer.recipe.description
    assert found is said
